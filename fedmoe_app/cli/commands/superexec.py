"""``fedmoe superexec``: a node's work in another container."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedmoe_app.cli.app import command
from fedmoe_app.config.hosts import check_address


@command("fedmoe superexec --runtime-api-address supernode:9094")
def superexec(
    runtime_api_address: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Runtime API of the SuperNode.")
    ],
    root_certificates: Annotated[
        Path | None,
        typer.Option(help="CA of the Runtime API.", show_default="it has no TLS"),
    ] = None,
    health_server_address: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Where `fedmoe health` finds out that it is ready."),
    ] = None,
) -> None:
    """Run the messages of a `fedmoe supernode --isolation process` that is in another container."""
    from fedmoe_app.launch.flower_release import check_release
    from fedmoe_app.launch.supernode import use_policy
    from fedmoe_app.launch.warm import start

    check_release()
    check_address(runtime_api_address, "--runtime-api-address")
    if health_server_address is not None:
        check_address(health_server_address, "--health-server-address")
    # What needs the node's data is asked in the processes that this one starts.
    use_policy([])
    start(runtime_api_address, root_certificates, health_server_address)
