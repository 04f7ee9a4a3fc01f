"""With what a run was started that is to go on, where its result folder is on this machine."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from fedmoe_app.config.config_file import Flat, read_config_file
from fedmoe_app.config.errors import ConfigError
from fedmoe_app.results.folder import CONFIG_FILE, ResultsError, list_checkpoints, results_of
from fedmoe_app.results.status import read_status


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
