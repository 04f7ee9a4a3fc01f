"""``fedmoe supernode``: a node whose clients start quickly."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedmoe_app.cli.app import command


@command(
    "fedmoe supernode --superlink lab1.example.org:9092 --root-certificates ca.crt "
    "--auth-supernode-private-key node-0 --node-config 'partition-id=0'",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def supernode(
    context: typer.Context,
    policy: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="What this node allows a run to do.",
            show_default="$FEDMOE_POLICY, then /etc/fedmoe/policy.toml if it is there",
        ),
    ] = None,
) -> None:
    """Join a deployment: `flower-supernode` with its arguments, and clients that start quickly.

    All other options are Flower's: `flower-supernode --help` lists them.
    """
    from fedmoe_app.launch.supernode import become_supernode

    named = [] if policy is None else ["--policy", str(policy)]
    become_supernode([*named, *context.args])
