"""Experiment trackers: TensorBoard, Weights & Biases and MLflow, through their own packages.

All write into the result folder and need no network, unless their own environment variables
(``WANDB_MODE``, ``MLFLOW_TRACKING_URI``) say otherwise. A tracker takes the numbers of a round
(:func:`fedmoe_app.results.trackers.scalars`); to add one, write a class, and name it in ``KINDS``
and in :data:`fedmoe_app.config.schema.TRACKERS`.

The numbers of a round under standard names, for TensorBoard, Weights & Biases and MLflow.

Slashes group the names in all three: ``global/accuracy``, ``bytes/up``, ``client/3/accuracy``.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from fedmoe_app.config.errors import ConfigError
from fedmoe_app.config.parse import flatten_run_config
from fedmoe_app.config.schema import RunConfig, split_names
from fedmoe_app.results.callbacks import Callback
from fedmoe_app.results.events import logger
from fedmoe_app.results.lease import TakenOverError
from fedmoe_app.results.table import num_failed
from fedmoe_app.results.values import to_array
from fedmoe_app.shown.tags import setting, tag, title
from fedmoe_app.wire.metrics import METRICS

if TYPE_CHECKING:
    from fedmoe_app.results.metrics import RoundRecord

# Name: key of the metrics line (fedmoe_app/results/metrics.py).
OF_THE_ROUND = {
    "global/accuracy": "accuracy",
    "global/loss": "loss",
    "train/loss": "train_loss",
    "bytes/up": "bytes_up",
    "bytes/down": "bytes_down",
    "clients/replied": "num_clients",
}
# Keys of a client's entry, which are the names below client/N/.
OF_A_CLIENT = (*(metric.column for metric in METRICS if metric.tracked), "bytes_up", "experts_sent")


def scalars(line: Mapping[str, Any]) -> dict[str, float]:
    """Return the finite numbers of a metrics line by standard name.

    ``client/N/accuracy`` is that of the received global model on the client's own test data,
    ``client/N/local_accuracy`` that after its local training. ``scheme/conflict`` and others are
    means over all experts of diagnostics ``[L, E]``.
    """
    found = dict(_all(line))
    return {tag(name): float(value) for name, value in found.items() if _is_number(value)}


def _all(line: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    trained = line["round"] != 0
    for name, key in OF_THE_ROUND.items():
        if trained or name.startswith("global/"):
            yield name, line.get(key)
    if trained:
        yield "clients/failed", num_failed(line)
    yield "privacy/epsilon", (line.get("privacy") or {}).get("epsilon")
    promised = line.get("example_privacy") or {}
    yield "privacy/epsilon_of_examples_at_most", promised.get("epsilon")
    for name, seconds in (line.get("seconds") or {}).items():
        yield f"seconds/{name}", seconds
    for client in line.get("clients") or ():
        for key in OF_A_CLIENT:
            yield f"client/{client['client']}/{key}", client.get(key)
    for key in ("conflict", "kappa", "similarity_mean", "agreement_mean"):
        values = to_array((line.get("diagnostics") or {}).get(key))
        if values.ndim and np.isfinite(values).any():
            yield f"scheme/{key}", float(np.nanmean(values))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


PROJECT = "fedmoe"  # of Weights & Biases; the experiment of MLflow


class Tracker(Protocol):
    """What a run tells a tracker."""

    def log(self, server_round: int, values: Mapping[str, float]) -> None:
        """Take the numbers of a round."""

    def close(self, failed: bool) -> None:
        """Take the end of the run."""


class TensorBoardTracker:
    """TensorBoard: event files in ``tensorboard/`` of the result folder.

    What an earlier part of a resumed run wrote of ``first_round`` and later rounds is hidden.
    """

    def __init__(self, folder: Path, flat: Mapping[str, Any], first_round: int) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        # Typed in neither torch nor here: the package is optional.
        self._writer: Any = SummaryWriter(str(folder / "tensorboard"), purge_step=first_round)

    def log(self, server_round: int, values: Mapping[str, float]) -> None:
        """Write the numbers with the round as step."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, server_round)
        self._writer.flush()

    def close(self, failed: bool) -> None:
        """Close the files."""
        self._writer.close()


class WandbTracker:
    """Weights & Biases: offline, in ``wandb/`` of the result folder; upload with ``wandb sync``."""

    def __init__(self, folder: Path, flat: Mapping[str, Any], first_round: int) -> None:
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=title(folder.name),
            dir=str(folder),
            config=dict(flat),
            mode=os.environ.get("WANDB_MODE", "offline"),
        )

    def log(self, server_round: int, values: Mapping[str, float]) -> None:
        """Log the numbers with the round as step."""
        self._run.log(dict(values), step=server_round)

    def close(self, failed: bool) -> None:
        """Finish the run with an exit code."""
        self._run.finish(exit_code=int(failed))


class MlflowTracker:
    """MLflow: a file store in ``mlruns/`` of the result folder, for ``mlflow ui``."""

    def __init__(self, folder: Path, flat: Mapping[str, Any], first_round: int) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        # MLflow prefers a database, which its small package cannot write; it asks for this word.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        store = (folder / "mlruns").as_uri()
        self._client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or store)
        found = self._client.get_experiment_by_name(PROJECT)
        experiment = found.experiment_id if found else self._client.create_experiment(PROJECT)
        self._run_id = self._client.create_run(experiment, run_name=title(folder.name)).info.run_id
        params = [Param(key, setting(value)) for key, value in flat.items() if value != ""]
        self._client.log_batch(self._run_id, params=params)

    def log(self, server_round: int, values: Mapping[str, float]) -> None:
        """Log the numbers with the round as step, at most a thousand a call, MLflow's limit."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [Metric(name, value, now, server_round) for name, value in values.items()]
        for start in range(0, len(metrics), 1000):
            self._client.log_batch(self._run_id, metrics=metrics[start : start + 1000])

    def close(self, failed: bool) -> None:
        """Set the run's status."""
        self._client.set_terminated(self._run_id, "FAILED" if failed else "FINISHED")


class Kind(NamedTuple):
    """A tracker: the package it needs, and how it is opened: folder, flat config, first round."""

    package: str
    install: str
    open: Callable[[Path, Mapping[str, Any], int], Tracker]


KINDS: Mapping[str, Kind] = {
    "tensorboard": Kind("tensorboard", "tensorboard", TensorBoardTracker),
    "wandb": Kind("wandb", "wandb", WandbTracker),
    "mlflow": Kind("mlflow", "mlflow-skinny", MlflowTracker),
}


def require_trackers(track: str) -> None:
    """Check, before anything is started, that the trackers of a run can be used here.

    Args:
        track: their names, of the run config.

    Raises:
        ConfigError: for a package that is not installed.
    """
    for name in split_names(track):
        kind = KINDS[name]
        if find_spec(kind.package) is None:
            raise ConfigError(
                f'run config: track = "{track}": the package {kind.package} is not '
                f"installed where the server runs; pip install {kind.install}, or leave "
                f"{name} out"
            )


def open_trackers(config: RunConfig, folder: Path, first_round: int = 0) -> dict[str, Tracker]:
    """Open the trackers of a run; :func:`require_trackers` has been called before.

    Args:
        config: of the run.
        folder: its result folder.
        first_round: of this part of the run; above 0 after a resume.
    """
    flat = flatten_run_config(config)
    return {name: KINDS[name].open(folder, flat, first_round) for name in split_names(config.track)}


class Trackers(Callback):
    """Tells the trackers of a run of each round, and how the run ended.

    A tracker that fails is left out from then on, with a warning: it must not cost the run.

    Args:
        trackers: by name, as :func:`open_trackers` returns them.
    """

    def __init__(self, trackers: Mapping[str, Tracker]) -> None:
        self._trackers = dict(trackers)

    def on_round(self, record: RoundRecord) -> None:
        """Pass the numbers of a round on."""
        if self._trackers:
            values = scalars(record.line)
            if (macro_f1 := (record.evaluation or {}).get("macro-f1")) is not None:
                values[tag("global/macro_f1")] = float(macro_f1)
            self._tell(lambda tracker: tracker.log(record.server_round, values))

    def on_end(self, error: BaseException | None) -> None:
        """Close the trackers, unless another process goes on with the run."""
        if not isinstance(error, TakenOverError):
            self._tell(lambda tracker: tracker.close(failed=error is not None))

    def _tell(self, what: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                what(tracker)
            except Exception as fault:  # another's package, a network, a disk
                del self._trackers[name]
                logger.warning("%s: %s: %s", name, type(fault).__name__, fault)
