"""The commands of a deployment: ``fedmoe certificates``, ``register`` and ``health``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import grpc
import typer
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fedmoe_app.config.errors import ConfigError
from fedmoe_app.launch.connections import add_connection, find_connection, free_name, refuse_known
from fedmoe_app.launch.environment import LOOPBACK, flwr_home
from fedmoe_app.shown.terminal import say, say_lines, shell_word


def is_serving(address: str, timeout: float = 5.0) -> bool:
    """Tell whether the health server at ``HOST:PORT`` answers SERVING within ``timeout`` seconds.

    Flower starts one where it is given ``--health-server-address``, without TLS: bind it to the
    loopback address.
    """
    # A proxy of the environment is not asked about a service on this machine.
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=timeout
            )
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


DAYS = 365
FILE_NAME = "clients.toml"  # the client list
_CONNECTION = "lab"

Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of certificates and keys.")]


def add_to(app: typer.Typer) -> None:
    """Add the commands to ``fedmoe``."""
    example = "Example: fedmoe "
    app.command(
        epilog=f"{example}certificates ~/keys --host lab1.example.org --nodes 3 --connection lab"
    )(certificates)
    app.command(epilog=f"{example}register ~/keys lab --client 0 --client 1 --client 2")(register)
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
    from fedmoe_app.deploy.certificates import CA_CERTIFICATE, create, extend
    from fedmoe_app.deploy.next_steps import CONTROL_PORT, Deployment, next_commands

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


def register(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR|KEY.pub", help="Folder of certificates and keys, or one node's public key."
        ),
    ],
    connection: Annotated[
        str, typer.Argument(help="SuperLink connection of your Flower configuration.")
    ],
    client: Annotated[
        list[int] | None,
        typer.Option(
            metavar="N",
            help="Number (partition-id) that the node's key may speak for, into the client list; "
            "with several nodes give one each, in the order of the nodes.",
        ),
    ] = None,
    client_list: Annotated[
        Path | None,
        typer.Option(help="The client list.", show_default="clients.toml beside the keys"),
    ] = None,
    debug: Debug = False,
) -> None:
    """Let the nodes whose public keys lie in DIR join; those that were let in stay so."""
    from fedmoe_app.launch.flower import register_node

    found = find_connection(connection)
    keys = _public_keys(folder)
    numbers = _numbers(keys, client or [])
    if client_list and not numbers:
        raise ConfigError(f"--client-list {client_list}: give --client, too, for what it is to say")
    path_of_list = (client_list or keys[0].parent / FILE_NAME).expanduser().absolute()
    if numbers:  # first of all: it says what is wrong with the numbers
        from fedmoe_app.server.client_list import add_to_client_list

        add_to_client_list(path_of_list, numbers)
    for path in keys:
        is_new = register_node(found, path, path.stem)
        say(f"{path.stem}: {'registered' if is_new else 'was registered before'}")
    if numbers:
        _tell_of_list(path_of_list, numbers)


def _public_keys(folder: Path) -> list[Path]:
    """Return the public keys of a folder, in the order of their numbers, or the one that is named.

    Raises:
        ConfigError: there is none.
    """
    from fedmoe_app.deploy.certificates import node_names

    if folder.suffix == ".pub":
        if not folder.is_file():
            raise ConfigError(f"{folder}: no such file")
        return [folder]
    names = node_names(folder)
    if not names:
        raise ConfigError(f"{folder}: holds no public key node-N.pub")
    return [folder / f"{name}.pub" for name in names]


def _numbers(keys: Sequence[Path], clients: Sequence[int]) -> dict[int, Path]:
    """Return whose key each number goes to, before anything is registered.

    Raises:
        ConfigError: not a number for each key, one given twice, or out of range.
    """
    from fedmoe_app.server.client_list import check_number, fingerprint

    if clients and len(clients) != len(keys):
        raise ConfigError(
            f"--client: {len(clients)} numbers for {len(keys)} keys "
            f"({', '.join(key.stem for key in keys)}); give one each, or name one key: "
            f"fedmoe register {keys[0]} ... --client {clients[0]}"
        )
    if len(set(clients)) < len(clients):
        raise ConfigError(f"--client: {max(clients, key=clients.count)} is given twice")
    for key in keys if clients else ():
        fingerprint(key)
    return {check_number(n, "--client"): key for n, key in zip(clients, keys, strict=False)}


def _tell_of_list(path: Path, numbers: Mapping[int, Path]) -> None:
    """Say whose key now speaks for which client, and how a run is given the list."""
    from fedmoe_app.server.client_list import KEY, read_client_list

    for client, key in numbers.items():
        say(f"client {client} = {key.stem}")
    count = len(read_client_list(path).by_key)
    item = shell_word(f'{KEY}="{path}"')
    say(f"{path}: {count} clients; a run takes nobody else with -c {item}")


def health(
    address: Annotated[
        str, typer.Argument(metavar="HOST:PORT", help="Its --health-server-address.")
    ],
    debug: Debug = False,
) -> None:
    """Ask a SuperLink, SuperNode or SuperExec whether it is up; exit code 0 if so."""

    if not is_serving(address):
        say(f"{address}: not serving")
        raise typer.Exit(1)
    say(f"{address}: serving")
