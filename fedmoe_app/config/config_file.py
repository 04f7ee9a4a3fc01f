"""A TOML file of run config, as a flat dict of what Flower's run config can carry."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedmoe_app.config.errors import ConfigError
from fedmoe_app.config.items import check_paths, list_fault
from fedmoe_app.config.lists import as_list
from fedmoe_app.config.meant import EQUALS, fits, understand
from fedmoe_app.config.pairs import write_value
from fedmoe_app.config.parse import flatten_table
from fedmoe_app.config.text_file import EncodingError, read_text

Flat = dict[str, bool | float | int | str]

_LINE = re.compile(r"line (\d+)")


def read_config_file(path: Path, option: str = "--run-config") -> Flat:
    """Read a file of the form of ``experiments/*.toml``; UTF-8, or with a byte-order mark.

    Args:
        path: of the file; ``~`` is the home folder.
        option: of the command line that named it, for messages.

    Raises:
        ConfigError: no such file, one that is no TOML, a list where one value stands, or a path
            in which an escape became a tab or a line break.
    """
    where = f"{option} {path}"
    try:
        text = read_text(path.expanduser())
        flat = flatten_table(tomllib.loads(text))
    except FileNotFoundError:
        raise ConfigError(f"{where}: no such file") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where}: {error}{_line_meant(text, str(error))}") from None
    except (EncodingError, OSError, RuntimeError) as error:
        raise ConfigError(f"{where}: {error}") from None
    check_paths(flat, where)
    return without_lists(flat, where)


def without_lists(pairs: Mapping[str, Any], where: str) -> Flat:
    """Turn lists into the text that :func:`fedmoe_app.config.lists.name_list` reads.

    Raises:
        ConfigError: a list for a key that takes none, or of anything but text.
    """
    for key, value in pairs.items():
        if isinstance(value, list) and not fits(key, value):
            raise ConfigError(f"{where}: {key} = {value}: {list_fault(key)}")
    return {key: as_list(v) if isinstance(v, list) else v for key, v in pairs.items()}


def _line_meant(text: str, error: str) -> str:
    """Return what stands in the line that is not TOML and, where it is clear, what was meant."""
    found = _LINE.search(error)
    lines = text.splitlines()[: int(found[1])] if found else []
    if not lines:
        return ""
    line = re.sub(r"\s+#.*", "", lines[-1]).strip()
    meant = understand(f"{_table(lines)}{line}")
    if len(meant) != 1:
        return f": {line}"
    key, value = meant[0].key.rpartition(".")[2], meant[0].value
    parts = [f": {line}", *(rule for rule in meant[0].rules if rule != EQUALS)]
    return "; ".join(parts if value is None else [*parts, f"write {key} = {write_value(value)}"])


def _table(lines: list[str]) -> str:
    """Return the name of the table that the last line is in, with a dot."""
    headers = [found[1] for line in lines if (found := re.match(r"\s*\[([\w.-]+)\]", line))]
    return f"{headers[-1]}." if headers else ""
