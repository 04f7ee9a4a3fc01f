"""``fedmoe flwr``: Flower's own command in the environment of this app's runs."""

from __future__ import annotations

import typer

from fedmoe_app.cli.app import command
from fedmoe_app.launch.flower_command import run_flower


@command(
    "fedmoe flwr run . --stream",
    context_settings={
        "allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False,
    },
)  # fmt: skip
def flwr(context: typer.Context) -> None:
    """Run Flower's own command, `flwr`, with what this app's runs need.

    What follows is Flower's: `flwr --help` lists its commands. The programs of this environment
    come first on the path, no dependency is downloaded again, nothing is fetched from a model hub
    and no telemetry is sent, unless your own variables say so.
    """
    raise typer.Exit(run_flower("flwr", context.args))
