"""The run config of a command line: files and ``key=value`` pairs over the app's defaults."""

from __future__ import annotations

import os
import re
import shlex
import tomllib
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from fedmoe_app.config.config_file import Flat, read_config_file, without_lists
from fedmoe_app.config.errors import ConfigError, DataError
from fedmoe_app.config.items import read_item
from fedmoe_app.config.lists import as_list, file_names, is_path, join_files
from fedmoe_app.config.names import PRESET_NAMES, SMOLLM2_MOE
from fedmoe_app.config.parse import default_run_config, parse_run_config
from fedmoe_app.config.paths import results_dir
from fedmoe_app.config.schema import EMBEDDED, NODES, RunConfig, keys_that_hold

_FILES, _PATHS = keys_that_hold("files"), keys_that_hold("path")
_TEMPLATE = "data.chat-template"


def app_defaults(app: Path) -> Flat:
    """Read the default run config of the app in the folder ``app``.

    Raises:
        ConfigError: when there is no ``pyproject.toml``, it is not a Flower app's, or lacks a key.
    """
    pyproject = app / "pyproject.toml"
    if not pyproject.is_file():
        raise ConfigError(
            f"{app.absolute()}: no pyproject.toml there; run in the folder of the app, or name it"
        )
    try:
        flat = default_run_config(pyproject)
    except KeyError as error:
        raise ConfigError(f"{pyproject}: no table [tool.flwr.app.config] ({error})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{pyproject}: not TOML in UTF-8 without a mark ({error})") from None
    for key, value in flat.items():
        if isinstance(value, list):
            raise ConfigError(
                f"{pyproject}: {key} = {value}: Flower takes no list there; write it as text: "
                f"'{as_list(map(str, value))}'"
            )
    if missing := [key for key in default_run_config() if key not in flat]:
        # Flower lets --run-config set only keys that stand there.
        raise ConfigError(
            f"{pyproject}: missing from the run config: {', '.join(missing)}; write it anew: "
            f"fedmoe config --write --app {shlex.quote(str(app))}"
        )
    return flat


def read_overrides(items: Sequence[str], beside: Sequence[str] = ()) -> Flat:
    """Merge the values of ``--run-config`` in the order given: a later value wins.

    Args:
        items: each is a TOML file's name or one or more pairs: ``'data.alpha=0.1 seed=1'``.
        beside: words that stand alone on the command line, which may be a forgotten value.

    Raises:
        ConfigError: naming the item that cannot be read, why, and what to type in its place.
    """
    flat: Flat = {}
    for item in items:
        if is_config_file(item):
            flat |= read_config_file(Path(item))
        else:
            flat |= without_lists(read_item(item, beside), "--run-config")
    return flat


def is_config_file(item: str) -> bool:
    """Tell whether an item names a TOML file, and not a pair with one in its value.

    Raises:
        ConfigError: it names a file of another kind.
    """
    if item.lower().endswith(".toml"):
        return "=" not in item or is_path(item)
    if "=" not in item and (is_path(item) or item.lower().endswith((".json", ".yaml", ".yml"))):
        raise ConfigError(f"--run-config {item}: run config files are TOML and end in .toml")
    return False


def with_absolute_paths(flat: Mapping[str, Any], folder: Path) -> Flat:
    """Make the paths that exist relative to ``folder`` absolute: the server runs elsewhere.

    ``~`` is the home folder of whoever types. The words of ``data.source`` and the names of presets
    are no paths, even where a file is called the same.
    """
    kind = str(flat.get("data.source-kind", "auto"))
    files = {
        key: _all_absolute(key, str(flat[key]), folder, kind) for key in _FILES if flat.get(key)
    }
    paths = {key: _absolute(key, str(flat[key]), folder) for key in _PATHS if flat.get(key)}
    return with_template(dict(flat) | files | paths, folder)


def with_template(flat: Mapping[str, Any], folder: Path) -> Flat:
    """Put a chat template's text in the place of its file's name: the nodes need no such file.

    Raises:
        ConfigError: it is named like a file, and cannot be read.
    """
    value = str(flat.get(_TEMPLATE, ""))
    if "{" in value or not value.endswith(".jinja"):
        return dict(flat)
    path = folder / os.path.expanduser(value)
    try:
        return dict(flat) | {_TEMPLATE: path.read_text(encoding="utf-8-sig")}
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigError(f'{_TEMPLATE} = "{value}": {path} cannot be read ({reason})') from None


def _all_absolute(key: str, value: str, folder: Path, kind: str) -> str:
    names = file_names(value, folder, key, patterns=kind == "glob")
    # There is no file called like a pattern.
    always = kind != "auto"
    absolute = tuple(_absolute(key, name, folder, always) for name in names)
    if absolute == names:
        return value
    # A list stays one; a path with commas, or one whose folder has them, stays whole.
    was_list = names != (value,) and value.lstrip().startswith("[")
    return join_files(absolute, was_list)


def _absolute(key: str, name: str, folder: Path, always: bool = False) -> str:
    if _is_word(key, name) or not (always or is_path(name, folder)):
        return name
    # Path.expanduser would fail for a user that there is not.
    return str((folder / os.path.expanduser(name)).absolute())


def _is_word(key: str, value: str) -> bool:
    if key in _FILES:
        return value in (EMBEDDED, NODES)
    if key != "model.name":
        return False
    return value in (*PRESET_NAMES, SMOLLM2_MOE)


def with_run_name(flat: Mapping[str, Any], now: datetime) -> Flat:
    """Fill ``run-name`` in: the scheme and the time."""
    scheme = re.sub(r"[^A-Za-z0-9_.-]+", "-", str(flat["scheme"]))
    return dict(flat) | {"run-name": flat["run-name"] or f"{scheme}-{now:%Y%m%d-%H%M%S}"}


def with_output_dir(flat: Mapping[str, Any]) -> Flat:
    """Fill ``output-dir`` in, as an absolute path: the server does not run in this folder."""
    folder = Path(str(flat["output-dir"] or results_dir())).expanduser()
    return dict(flat) | {"output-dir": str(folder.absolute())}


def check(flat: Mapping[str, Any], num_clients: int | None) -> RunConfig:
    """Check a whole run config; with the number of simulated clients, check that, too."""
    config = parse_run_config(flat)
    if not config.data.label_names_file:  # which may lie on another machine
        try:
            _ = config.data.labels
        except DataError as error:
            raise ConfigError(f"run config: {error}") from None
    if num_clients is not None and num_clients < config.min_clients:
        raise ConfigError(
            f"--clients {num_clients}: the run config asks for min-clients = "
            f"{config.min_clients}; give at least as many, or lower min-clients"
        )
    return config
