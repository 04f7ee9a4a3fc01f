"""The client list: which node's key may speak for which client, as the server's owner says.

::

    [clients]
    0 = "SHA256:3sXWYqGmJ3..."
    1 = "SHA256:o0mFv1hQkT..."

The fingerprint is what ``ssh-keygen -lf node-0.pub`` prints. ``fedmoe register --client`` writes
the list, a run reads it (``client-list``). It proves something only where the SuperLink
authenticates nodes: it then knows each node by its key.
"""

from __future__ import annotations

import base64
import hashlib
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from fedmoe_app.config.errors import ConfigError
from fedmoe_app.config.names import MAX_GIVEN

KEY = "client-list"  # of the run config
_TABLE = "clients"
_PREFIX = "SHA256:"
_HEADER = (
    "# Which node's key may speak for which client. `fedmoe register --client N` adds to it;\n"
    "# a run with client-list = FILE takes nobody else.\n"
)


@dataclass(frozen=True)
class ClientList:
    """The list: client's number by the fingerprint of its node's key."""

    by_key: Mapping[str, int]

    def clients(self, nodes: Iterable[Any]) -> dict[int, int]:
        """Return the clients of those nodes that are listed, by node id.

        Args:
            nodes: Flower's ``NodeInfo``: node id, and public key in PEM; those of a simulation
                have no key.
        """
        found = {}
        for node in nodes:
            client = self.by_key.get(_fingerprint_of_pem(bytes(node.public_key)))
            if client is not None:
                found[int(node.node_id)] = client
        return found


def read_client_list(path: Path) -> ClientList:
    """Read a list.

    Raises:
        ConfigError: no such file, not TOML, no table ``clients``, an entry that is no client's
            number or no fingerprint, or a key with two numbers.
    """
    entries = _read(path)
    if not entries:
        raise ConfigError(f"{KEY} = {str(path)!r}: lists nobody; see fedmoe register --client")
    return ClientList({key: client for client, key in entries.items()})


def add_to_client_list(path: Path, clients: Mapping[int, Path]) -> None:
    """Enter nodes into a list, which is made if there is none.

    Args:
        path: of the list.
        clients: client's number -> file of its node's public key, in OpenSSH's form.

    Raises:
        ConfigError: if a number is another node's already, or a key another number's.
    """
    entries = _read(path) if path.exists() else {}
    for client, public_key in clients.items():
        key = fingerprint(public_key)
        other = next((number for number, known in entries.items() if known == key), client)
        if other != client or entries.get(client, key) != key:
            taken = f"the key is client {other}'s" if other != client else "another key has it"
            raise ConfigError(
                f"{path}: client {client} for {public_key.name}: {taken}; take that line out first"
            )
        entries[client] = key
    _write(path, entries)


def fingerprint(public_key: Path) -> str:
    """Return the fingerprint of a public key in OpenSSH's form, as ``ssh-keygen -lf`` prints it.

    Raises:
        ConfigError: if the file is no such key.
    """
    try:
        text = public_key.read_bytes()
        blob = base64.b64decode(text.split()[1], validate=True)
    except (OSError, ValueError, IndexError) as error:
        raise ConfigError(f"{public_key}: not a public key of OpenSSH ({error})") from None
    return _fingerprint(blob)


def check_number(client: int, what: str) -> int:
    """Return a number that a client can be given.

    Raises:
        ConfigError: naming the range.
    """
    if not 0 <= client < MAX_GIVEN:
        raise ConfigError(f"{what} {client}: must be 0 to {MAX_GIVEN - 1}")
    return client


@lru_cache(maxsize=1 << 14)  # buffered rounds look several times a second
def _fingerprint_of_pem(pem: bytes) -> str:
    """Return the fingerprint of a key as Flower hands it over, "" if that is none."""
    from cryptography.hazmat.primitives import serialization

    try:
        key = serialization.load_pem_public_key(pem)
        openssh = key.public_bytes(
            serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        )
    except ValueError:
        return ""
    return _fingerprint(base64.b64decode(openssh.split()[1]))


def _fingerprint(blob: bytes) -> str:
    digest = hashlib.sha256(blob).digest()
    return _PREFIX + base64.b64encode(digest).decode().rstrip("=")


def _read(path: Path) -> dict[int, str]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8")).get(_TABLE)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{KEY} = {str(path)!r}: {error}") from None
    if not isinstance(table, dict):
        raise ConfigError(f"{KEY} = {str(path)!r}: no table [{_TABLE}]")
    entries = {_number(name, path): _key(name, value, path) for name, value in table.items()}
    if len(set(entries.values())) < len(entries):
        raise ConfigError(f"{KEY} = {str(path)!r}: the same key stands behind two numbers")
    return entries


def _number(name: str, path: Path) -> int:
    if not (name.isascii() and name.isdecimal() and int(name) < MAX_GIVEN):
        raise ConfigError(
            f"{KEY} = {str(path)!r}: {name[:40]!r} is no client's number, 0 to {MAX_GIVEN - 1}"
        )
    return int(name)


def _key(name: str, value: Any, path: Path) -> str:
    if not isinstance(value, str) or not value.startswith(_PREFIX):
        raise ConfigError(
            f"{KEY} = {str(path)!r}: client {name}: give the fingerprint of its key, "
            f'"{_PREFIX}...", as ssh-keygen -lf prints it'
        )
    return value.rstrip("=")


def _write(path: Path, entries: Mapping[int, str]) -> None:
    from fedmoe_app.config.files import write_atomic

    lines = [f'{client} = "{key}"\n' for client, key in sorted(entries.items())]
    write_atomic(path, f"{_HEADER}\n[{_TABLE}]\n{''.join(lines)}")
