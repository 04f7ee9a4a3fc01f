"""The run config of a command line: files and ``key=value`` pairs over the app's defaults."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from fedmoe_app.config.config_file import Flat, read_config_file, without_lists
from fedmoe_app.config.errors import DataError
from fedmoe_app.config.items import read_item
from fedmoe_app.config.lists import as_list, file_names, is_path, join_files
from fedmoe_app.config.parse import (
    EMBEDDED,
    NODES,
    ConfigError,
    RunConfig,
    default_run_config,
    parse_run_config,
)
from fedmoe_app.config.paths import results_dir
from fedmoe_app.results.folder import CONFIG_FILE, ResultsError, list_checkpoints, results_of
from fedmoe_app.results.status import read_status

# Keys that may name files, and those that may name one file or folder.
_FILES, _PATHS = (
    ("data.source", "data.test-source"),
    (
        "data.label-names-file",
        "model.name",
        "client-list",
    ),
)
_TEMPLATE = "data.chat-template"


def app_defaults(app: Path) -> Flat:
    """Read the default run config of the app in the folder ``app``.

    Raises:
        ConfigError: when there is no ``pyproject.toml``, or it is not a Flower app's.
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


def check_resumable(path: Path) -> None:
    """Refuse to go on from a folder of this machine that holds nothing to go on from.

    Raises:
        ConfigError: no such folder, or no checkpoint in it.
    """
    found = path.expanduser().absolute()
    if not found.exists():
        raise ConfigError(f"--resume {path}: no such folder; name the result folder of a run")
    if not list_checkpoints(results_of(found)):
        raise ConfigError(
            f"--resume {path}: no checkpoint there; name the result folder of a run of which at "
            "least one round is done, or one of the folders in its checkpoints/"
        )


def config_to_resume(path: Path) -> Flat:
    """Return the run config of the run that is to go on; only the path if it lies elsewhere.

    Args:
        path: the run's result folder, or one of its checkpoints.
    """
    path = Path(os.path.abspath(path.expanduser()))
    config = results_of(path) / CONFIG_FILE
    flat = read_config_file(config) if config.is_file() else {}
    return flat | {"resume": str(path)}


def clients_to_resume(path: Path, given: int | None) -> int | None:
    """Return how many simulated clients a run has that is to go on; None if that is unknown.

    Raises:
        ConfigError: if another number is given: the data would be split anew.
    """
    with suppress(ResultsError):
        found = read_status(results_of(Path(os.path.abspath(path.expanduser())))).get(
            "num_partitions"
        )
        if found and given and given != found:
            raise ConfigError(f"--clients {given}: the run that is to go on has {found}")
        return found or given
    return given


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
    names = file_names(value, folder, key)
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
    # Imported late: it takes seconds, and only a name that is also a path here gets this far.
    from fedmoe_app.moe.loading import PRESETS

    return value in PRESETS


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
