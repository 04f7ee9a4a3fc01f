"""A run's result folder put to use: its saved model with the names that the run knew."""

from __future__ import annotations

from pathlib import Path

from fedmoe_app.config.config_file import read_config_file
from fedmoe_app.config.parse import parse_run_config
from fedmoe_app.results.folder import CONFIG_FILE, ResultsError, list_checkpoints
from fedmoe_app.server.checkpoint import read_identity
from fedmoe_app.tasks.trained import Trained, load_trained


def model_folder(run: Path) -> Path:
    """Return the folder of a run's saved model.

    Raises:
        ResultsError: the run has not come to its end.
    """
    folder = run / "model"
    if not (folder / "config.json").is_file():
        raise ResultsError(
            f"{folder}: no model there yet; `fedmoe export` makes one of a stopped run"
        )
    return folder


def open_trained(run: Path, on: str = "auto") -> Trained:
    """Load the model of a run; raises as :func:`model_folder`.

    Args:
        run: result folder.
        on: ``auto``, the first GPU if there is one, or ``cpu``.
    """
    folder = model_folder(run)
    config = parse_run_config(read_config_file(run / CONFIG_FILE))
    names: tuple[str, ...] = ()
    if config.data.kind.classifies:
        checkpoints = list_checkpoints(run)
        names = read_identity(checkpoints[0])[1].label_names if checkpoints else config.data.labels
        if not names:
            raise ResultsError(f"{run}: no checkpoint there that would name the classes")
    return load_trained(folder, config, names, on)
