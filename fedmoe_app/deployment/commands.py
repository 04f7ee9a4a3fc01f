"""The commands of a deployment: ``fedmoe certificates``, ``register`` and ``health``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedmoe_app.config import ConfigError
from fedmoe_app.launching.connections import (
    add_connection,
    find_connection,
    free_name,
    refuse_known,
)
from fedmoe_app.launching.environment import LOOPBACK, flwr_home

DAYS = 365
_CONNECTION = "lab"

Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of certificates and keys.")]


def add_to(app: typer.Typer) -> None:
    """Add the commands to ``fedmoe``."""
    example = "Example: fedmoe "
    app.command(
        epilog=f"{example}certificates ~/keys --host lab1.example.org --nodes 3 --connection lab"
    )(certificates)
    app.command(epilog=f"{example}register ~/keys lab")(register)
    app.command(epilog=f"{example}health 127.0.0.1:9190")(health)


def certificates(
    folder: Folder,
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
    debug: Debug = False,
) -> None:
    """Make certificates and keys of a deployment: TLS, one key pair a node. Overwrites nothing."""
    from fedmoe_app.deployment.certificates import CA_CERTIFICATE, create, extend
    from fedmoe_app.deployment.next_steps import CONTROL_PORT, Deployment, next_commands

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
        print(path)
    if connection:
        address = f"{LOOPBACK}:{CONTROL_PORT}"
        file = add_connection(flwr_home(), connection, address, folder / CA_CERTIFICATE)
        print(f"connection {connection} ({address}): {file}")
    if not add:
        config = None if connection else flwr_home().absolute() / "config.toml"
        print()
        print(next_commands(Deployment(folder.absolute(), hosts, nodes, name, config)))


def register(
    folder: Folder,
    connection: Annotated[
        str, typer.Argument(help="SuperLink connection of your Flower configuration.")
    ],
    debug: Debug = False,
) -> None:
    """Let the nodes whose public keys lie in DIR join; those that were let in stay so."""
    from fedmoe_app.deployment.certificates import node_names
    from fedmoe_app.launching.flower import register_node

    found = find_connection(connection)
    names = node_names(folder)
    if not names:
        raise ConfigError(f"{folder}: holds no public key node-N.pub")
    for name in names:
        is_new = register_node(found, folder / f"{name}.pub", name)
        print(f"{name}: {'registered' if is_new else 'was registered before'}", flush=True)


def health(
    address: Annotated[
        str, typer.Argument(metavar="HOST:PORT", help="Its --health-server-address.")
    ],
    debug: Debug = False,
) -> None:
    """Ask a SuperLink, SuperNode or SuperExec whether it is up; exit code 0 if so."""
    from fedmoe_app.deployment.health import is_serving

    if not is_serving(address):
        print(f"{address}: not serving")
        raise typer.Exit(1)
    print(f"{address}: serving")
