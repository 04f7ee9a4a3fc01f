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

from fedmoe_app.config import (
    EMBEDDED,
    NODES,
    ConfigError,
    RunConfig,
    default_run_config,
    flatten_table,
    parse_run_config,
)
from fedmoe_app.paths import results_dir
from fedmoe_app.report.log import CONFIG_FILE, ResultsError, list_checkpoints, results_of
from fedmoe_app.report.status import read_status

Flat = dict[str, bool | float | int | str]

# The form that `flwr run --run-config` takes: key=value, strings in single or double quotes.
_PAIR = re.compile(r"""([^\s=]+)=('[^']*'|"[^"]*"|\S+)""")
# Keys that may name a folder or file, those of data also several files, separated by commas.
_PATHS = ("data.source", "data.test-source", "model.name", "client-list")
_ONE_PATH = ("model.name", "client-list")


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
        return default_run_config(pyproject)
    except KeyError as error:
        raise ConfigError(f"{pyproject}: no table [tool.flwr.app.config] ({error})") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{pyproject}: not TOML ({error})") from None


def read_overrides(items: Sequence[str]) -> Flat:
    """Merge the values of ``--run-config`` in the order given: a later value wins.

    Each item is a TOML file's name or one or more pairs: ``'data.alpha=0.1 scheme="fedmoe"'``.

    Raises:
        ConfigError: naming the item that cannot be read.
    """
    flat: Flat = {}
    for item in items:
        flat |= _read_file(Path(item)) if item.endswith(".toml") else _read_pairs(item)
    return flat


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
    flat = _read_file(config) if config.is_file() else {}
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
    absolute = {key: _absolute(key, str(flat[key]), folder) for key in _PATHS if flat.get(key)}
    return dict(flat) | absolute


def _absolute(key: str, value: str, folder: Path) -> str:
    parts = [value] if key in _ONE_PATH else [part.strip() for part in value.split(",")]
    # Path.expanduser would fail for a user that there is not.
    paths = [(part, folder / os.path.expanduser(part)) for part in parts]
    return ",".join(
        str(path.absolute()) if part and path.exists() and not _is_word(key, part) else part
        for part, path in paths
    )


def _is_word(key: str, value: str) -> bool:
    if key != "model.name":
        return value in (EMBEDDED, NODES)
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
    if num_clients is not None and num_clients < config.min_clients:
        raise ConfigError(
            f"--clients {num_clients}: the run config asks for min-clients = "
            f"{config.min_clients}; give at least as many, or lower min-clients"
        )
    return config


def _read_file(path: Path) -> Flat:
    try:
        return flatten_table(tomllib.loads(path.expanduser().read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ConfigError(f"--run-config {path}: no such file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"--run-config {path}: {error}") from None


def _read_pairs(text: str) -> Flat:
    rest = _PAIR.sub("", text).strip()
    if rest:
        raise ConfigError(
            f"--run-config {text!r}: cannot read {rest!r}; give a .toml file or key=value pairs "
            "such as 'data.alpha=0.1 scheme=\"fedmoe\"'"
        )
    return {key: _read_value(key, value) for key, value in _PAIR.findall(text)}


def _read_value(key: str, text: str) -> bool | float | int | str:
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        raise ConfigError(
            f"--run-config {key}={text}: not a number, a boolean (true, false) or a string; "
            f"strings stand in quotes: '{key}=\"{text}\"'"
        ) from None
    if not isinstance(value, bool | int | float | str):
        raise ConfigError(f"--run-config {key}={text}: give a number, a boolean or a string")
    return value
