"""The commands of a deployment: ``fedmoe certificates``, ``register`` and ``health``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedmoe_app.config import ConfigError
from fedmoe_app.launching.connections import add_connection, find_connection, refuse_known
from fedmoe_app.launching.environment import LOOPBACK, flwr_home
from fedmoe_app.shown.terminal import say, say_lines, shell_word
from fedmoe_app.shown.text import visible

DAYS = 365
CONTROL_PORT = 8000  # of `flwr` and the SuperExec
FLEET_PORT = 9092  # of the nodes

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
            "more. localhost is always added.",
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

    hosts = host or []
    if add and not (hosts or nodes):
        raise ConfigError("--add: give --nodes, --host or both, for what is to be added")
    if not add and not nodes:
        raise ConfigError("--nodes: give the number of nodes that get a key pair")
    if connection:
        refuse_known(flwr_home(), connection)  # before anything is made
    made = (extend if add else create)(folder, hosts, nodes, days)
    for path in made:
        say(path)
    if connection:
        address = f"{LOOPBACK}:{CONTROL_PORT}"
        file = add_connection(flwr_home(), connection, address, folder / CA_CERTIFICATE)
        say(f"connection {connection} ({address}): {file}")
    if not add:
        say_lines(_next_commands(folder.absolute(), hosts[0], connection or "lab"))


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
        say(f"{name}: {'registered' if is_new else 'was registered before'}")


def health(
    address: Annotated[
        str, typer.Argument(metavar="HOST:PORT", help="Its --health-server-address.")
    ],
    debug: Debug = False,
) -> None:
    """Ask a SuperLink, SuperNode or SuperExec whether it is up; exit code 0 if so."""
    from fedmoe_app.deployment.health import is_serving

    if not is_serving(address):
        say(f"{address}: not serving")
        raise typer.Exit(1)
    say(f"{address}: serving")


def _next_commands(folder: Path, host: str, connection: str) -> str:
    """Return what comes next, as commands to copy."""
    ca, certificate, key = (shell_word(folder / n) for n in ("ca.crt", "server.crt", "server.key"))
    link = shell_word(connection)
    return f"""
Keep {visible(folder)}/ca.key here. The next commands:

on the SuperLink's machine
  flower-superlink --ssl-ca-certfile {ca} --ssl-certfile {certificate} \\
    --ssl-keyfile {key} --enable-supernode-auth --database superlink.db \\
    --fleet-api-address 0.0.0.0:{FLEET_PORT}
  fedmoe register {shell_word(folder)} {link}

on each node N, with ca.crt and node-N of {visible(folder)} copied there
  flower-supernode --superlink {host}:{FLEET_PORT} --root-certificates ca.crt \\
    --auth-supernode-private-key node-N --node-config 'partition-id=N data-path="/data/train.jsonl"'

then
  flwr run . {link} --stream"""
