"""``fedmoe supernode``: a node whose clients start quickly."""

from __future__ import annotations

import typer

from fedmoe_app.cli.app import command


@command(
    "fedmoe supernode --superlink lab1.example.org:9092 --root-certificates ca.crt "
    "--auth-supernode-private-key node-0 --node-config 'partition-id=0'",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def supernode(context: typer.Context) -> None:
    """Join a deployment: `flower-supernode` with its arguments, and clients that start quickly."""
    from fedmoe_app.launch.supernode import become_supernode

    become_supernode(context.args)
