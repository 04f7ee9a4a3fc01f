"""``fedmoe certificates``: TLS of a deployment and a key pair a node."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedmoe_app.cli.app import command
from fedmoe_app.config.errors import ConfigError
from fedmoe_app.config.names import LOOPBACK
from fedmoe_app.launch.connections import add_connection, free_name, refuse_known
from fedmoe_app.launch.environment import flwr_home
from fedmoe_app.shown.terminal import say, say_lines

DAYS = 365
_CONNECTION = "lab"


@command("fedmoe certificates ~/keys --host lab1.example.org --nodes 3 --connection lab")
def certificates(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of certificates and keys.")],
    host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="DNS name or IP address by which the nodes reach the SuperLink; repeat it for "
            "more. localhost and superlink (containers) are always added.",
        ),
    ] = None,
    nodes: Annotated[int, typer.Option(min=0, help="Nodes that get a key pair.")] = 0,
    days: Annotated[int, typer.Option(min=1, help="Validity of the server certificate.")] = DAYS,
    add: Annotated[
        bool,
        typer.Option(
            "--add",
            help="Add to the folder that is there: --nodes more, with --host a server "
            "certificate in place of one that you moved away.",
        ),
    ] = False,
    connection: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Write this connection to the SuperLink into $FLWR_HOME/config.toml, for "
            "`flwr run . NAME` on the SuperLink's machine.",
        ),
    ] = None,
) -> None:
    """Make certificates and keys of a deployment: TLS, one key pair a node. Overwrites nothing."""
    from fedmoe_app.cli.next_steps import Deployment, next_commands
    from fedmoe_app.deploy.certificates import CA_CERTIFICATE, create, extend
    from fedmoe_app.flower.fleet import CONTROL_PORT

    hosts = host or []
    if add and not (hosts or nodes):
        raise ConfigError("--add: give --nodes, --host or both, for what is to be added")
    if not add and not nodes:
        raise ConfigError("--nodes: give the number of nodes that get a key pair")
    # Before anything is made.
    if connection:
        refuse_known(flwr_home(), connection)
    name = connection or free_name(flwr_home(), _CONNECTION)
    made = (extend if add else create)(folder, hosts, nodes, days)
    for path in made:
        say(path)
    if connection:
        address = f"{LOOPBACK}:{CONTROL_PORT}"
        file = add_connection(flwr_home(), connection, address, folder / CA_CERTIFICATE)
        say(f"connection {connection} ({address}): {file}")
    if not add:
        config = None if connection else flwr_home().absolute() / "config.toml"
        say()
        say_lines(next_commands(Deployment(folder.absolute(), hosts, nodes, name, config)))
