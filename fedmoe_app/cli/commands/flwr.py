"""``fedmoe flwr``: Flower's own command in the environment of this app's runs."""

from __future__ import annotations

import subprocess

import typer

from fedmoe_app.cli.app import command
from fedmoe_app.launch.environment import flwr_home, local_port, run_environment
from fedmoe_app.launch.processes import program


@command(
    "fedmoe flwr run . --stream",
    context_settings={
        "allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": [],
    },
    add_help_option=False,
)  # fmt: skip
def flwr(context: typer.Context) -> None:
    """Run Flower's own command, `flwr`, with what this app's runs need in its environment.

    What follows is Flower's. The programs of this environment come first on the path, no
    dependency is downloaded again, nothing is fetched from a model hub and no telemetry is sent,
    unless your own variables say so.
    """
    home = flwr_home()
    environment = run_environment(home)
    # A SuperLink of another checkout keeps that one's environment.
    environment.setdefault("FLWR_LOCAL_SUPERLINK_HTTP_API_PORT", str(local_port(home)))
    with subprocess.Popen([program("flwr"), *context.args], env=environment) as process:
        while True:
            try:
                raise typer.Exit(process.wait())
            except KeyboardInterrupt:  # it got the Ctrl-C, too, and ends by itself
                continue
