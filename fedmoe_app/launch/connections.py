"""SuperLink connections: entries of a Flower configuration, ``$FLWR_HOME/config.toml``."""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from fedmoe_app.config.files import write_atomic
from fedmoe_app.config.names import LOOPBACK


class LaunchError(RuntimeError):
    """Flower could not be started or did not accept the run; the message says why."""


@dataclass(frozen=True)
class Connection:
    """A SuperLink connection of a Flower configuration: its folder, name and address."""

    flwr_home: Path
    name: str
    address: str = ""

    @property
    def is_local(self) -> bool:
        """Whether the SuperLink runs on this machine, so that its files can be read."""
        host = self.address.rpartition(":")[0]
        return host in (LOOPBACK, "localhost", "[::1]") or self.address.startswith(":local")


def write_connection(
    home: Path, name: str, address: str, root_certificates: Path | None = None
) -> Connection:
    """Write a Flower configuration with one connection, the default one; insecure without a CA."""
    home.mkdir(parents=True, exist_ok=True)
    table = {"superlink": {"default": name, name: _entry(address, root_certificates)}}
    (home / "config.toml").write_text(tomli_w.dumps(table), encoding="utf-8")
    return Connection(home, name, address)


def add_connection(home: Path, name: str, address: str, root_certificates: Path) -> Path:
    """Add a connection to the Flower configuration in ``home``; return the file.

    What stands there stays as it is, comments included.

    Raises:
        LaunchError: when there is a connection of that name, or the file is not TOML.
    """
    refuse_known(home, name)
    file = home / "config.toml"
    entry = {"superlink": {name: _entry(address, root_certificates)}}
    if file.is_file():
        text = file.read_text(encoding="utf-8").rstrip("\n") + "\n\n"
    else:
        text = tomli_w.dumps({"superlink": {"default": name}}) + "\n"
        home.mkdir(parents=True, exist_ok=True)
    return write_atomic(file, text + tomli_w.dumps(entry))


def refuse_known(home: Path, name: str) -> None:
    """Raise a LaunchError when the configuration in ``home`` has a connection of that name."""
    if name in _connections(home):
        raise LaunchError(
            f"connection {name!r}: {home / 'config.toml'} has one already; choose another name"
        )


def free_name(home: Path, name: str) -> str:
    """Return ``name``, or ``name-2`` and so on where the configuration in ``home`` has it."""
    known, number = _connections(home), 1
    found = name
    while found in known:
        number += 1
        found = f"{name}-{number}"
    return found


def _entry(address: str, root_certificates: Path | None) -> dict[str, str | bool]:
    if root_certificates is None:
        return {"address": address, "insecure": True}
    return {"address": address, "root-certificates": str(root_certificates.absolute())}


def find_connection(name: str) -> Connection:
    """Find a connection by name in ``$FLWR_HOME/config.toml``, then in ``~/.flwr``.

    Raises:
        LaunchError: when no file has it; the message lists the names that there are.
    """
    homes = [Path(home) for home in (os.environ.get("FLWR_HOME"), Path.home() / ".flwr") if home]
    known: list[str] = []
    for home in homes:
        for other, table in _connections(home).items():
            if other == name:
                return Connection(home, name, str(table.get("address", "")))
            known.append(other)
    files = " or ".join(str(home / "config.toml") for home in homes)
    choices = ", ".join(known) or "none"
    raise LaunchError(f"connection {name!r}: not in {files}; connections there: {choices}")


def _connections(home: Path) -> dict[str, dict[str, Any]]:
    file = home / "config.toml"
    if not file.is_file():
        return {}
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8")).get("superlink", {})
    except (tomllib.TOMLDecodeError, OSError) as error:
        raise LaunchError(f"{file}: {error}") from None
    return {name: value for name, value in table.items() if isinstance(value, dict)}
