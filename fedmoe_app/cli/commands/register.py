"""``fedmoe register``: let nodes join a deployment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from fedmoe_app.cli.app import command
from fedmoe_app.config.errors import ConfigError
from fedmoe_app.launch.connections import find_connection
from fedmoe_app.shown.terminal import say, shell_word

FILE_NAME = "clients.toml"  # the client list


@command("fedmoe register ~/keys lab --client 0 --client 1 --client 2")
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
