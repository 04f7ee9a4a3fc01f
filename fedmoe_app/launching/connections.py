"""SuperLink connections: entries of a Flower configuration, ``$FLWR_HOME/config.toml``."""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from fedmoe_app.launching.environment import LOOPBACK


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


def write_connection(home: Path, name: str, address: str) -> Connection:
    """Write a Flower configuration with one insecure connection, the default one."""
    home.mkdir(parents=True, exist_ok=True)
    table = {"superlink": {"default": name, name: {"address": address, "insecure": True}}}
    (home / "config.toml").write_text(tomli_w.dumps(table), encoding="utf-8")
    return Connection(home, name, address)


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
