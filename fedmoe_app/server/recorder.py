"""The run recorder: a run's result folder, and the callbacks that write to it and tell others."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fedmoe_app.config.errors import ConfigError
from fedmoe_app.config.parse import flatten_run_config
from fedmoe_app.config.paths import results_dir
from fedmoe_app.config.schema import RunConfig
from fedmoe_app.moe.state import ModelState
from fedmoe_app.report.live import LiveReport
from fedmoe_app.results import status
from fedmoe_app.results.callbacks import Callback
from fedmoe_app.results.events import LOG_FILE, EventLog, Resumed, logger, tell
from fedmoe_app.results.folder import MetricsFile, RunFolder, results_of
from fedmoe_app.results.lease import TakenOverError
from fedmoe_app.results.metrics import RoundRecord
from fedmoe_app.results.progress import Progress
from fedmoe_app.results.trackers import Trackers, open_trackers
from fedmoe_app.server.checkpoint import (
    Checkpoint,
    Identity,
    Snapshot,
    prune_checkpoints,
    write_checkpoint,
)
from fedmoe_app.server.resume import check_same_run, find_checkpoint, set_back
from fedmoe_app.server.rounds import RoundLoop, RunFailedError

_PACKAGES = ("fedmoe", "flwr", "torch", "transformers", "peft", "safetensors")


class Checkpoints(Callback):
    """Writes a checkpoint a round, and removes old ones.

    Args:
        folder: the result folder.
        snapshot: returns the server's state after the round.
        identity: what a resumed run must have in common with this one.
        keep: checkpoints that stay.
    """

    def __init__(
        self, folder: RunFolder, snapshot: Callable[[], Snapshot], identity: Identity, keep: int
    ) -> None:
        self._folder, self._snapshot = folder, snapshot
        self._identity, self._keep = identity, keep

    def on_round(self, record: RoundRecord) -> None:
        """Write the checkpoint of a round; it is on the disk when this returns.

        Raises:
            TakenOverError: if another process goes on with this run.
        """
        with self._folder.writing():
            write_checkpoint(
                self._folder.path, self._snapshot(), self._identity, library_versions()
            )
            prune_checkpoints(self._folder.path, self._keep)


def open_recorder(
    config: RunConfig,
    identity: Identity,
    loop: RoundLoop,
    state: ModelState,
    about: Mapping[str, Any] | None = None,
) -> RunRecorder:
    """Begin a run, or go on with the one that ``config.resume`` names.

    Args:
        config: the run config.
        identity: what a resumed run must have in common with the run that it goes on with.
        loop: whose rounds are recorded; it is restored from the checkpoint, if any.
        state: initial values of the model.
        about: what else the status tells: ``flower_run``, Flower's id of the run, by which whoever
            started it knows it; ``simulated``, whether its nodes were.

    Raises:
        ConfigError: if there is no good checkpoint, or it is of another run.
        ResultsError: if the folder is in use, or holds another run.
    """
    if not config.resume:
        return RunRecorder(new_folder(config), config, identity, loop, state, about=about)
    checkpoint = find_checkpoint(Path(config.resume))
    check_same_run(checkpoint, identity, state)
    folder = RunFolder.reopen(results_of(checkpoint.path))
    status.wait_until_free(folder.path)
    loop.restore(checkpoint.snapshot)
    state = checkpoint.snapshot.state
    return RunRecorder(folder, config, identity, loop, state, checkpoint, about)


def new_folder(config: RunConfig) -> RunFolder:
    """Make the result folder of a new run.

    Raises:
        ConfigError: where this process, often a service with a user of its own, may not write.
        ResultsError: if the folder is in use.
    """
    base = Path(config.output_dir) if config.output_dir else results_dir()
    # Microseconds keep two runs of one second apart.
    name = (
        config.run_name or f"{config.scheme.rpartition(':')[2]}-{datetime.now():%Y%m%d-%H%M%S-%f}"
    )
    try:
        return RunFolder(base / name)
    except OSError as error:
        raise ConfigError(
            f'output-dir = "{base}": {error.strerror or error} for the user that the server runs '
            f"as (number {os.getuid()}); name a folder that it can write to with --output, or run "
            "`fedmoe run` as that user, with its FEDMOE_HOME"
        ) from None


class RunRecorder:
    """Records one run; a context manager around its rounds.

    Attributes:
        folder: the result folder.
        state: the global values that the rounds start from.
        callbacks: for :meth:`RoundLoop.run`; there is none before the ``with`` block.
    """

    def __init__(
        self,
        folder: RunFolder,
        config: RunConfig,
        identity: Identity,
        loop: RoundLoop,
        state: ModelState,
        resumed: Checkpoint | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = folder
        self.state = state
        self.callbacks: list[Callback] = []
        self._config, self._identity, self._loop = config, identity, loop
        self._resumed, self._about = resumed, dict(about or {})

    def __enter__(self) -> Self:
        """Take the folder, set it back to the checkpoint; begin the log and the callbacks."""
        try:
            self._begin()
        except Exception as error:  # a full disk, a tracker that cannot be opened
            status.note_failure(self.folder.path, f"{type(error).__name__}: {error}")
            raise
        return self

    def _begin(self) -> None:
        config, path = self._config, self.folder.path
        lease = self.folder.own()
        first_round, earlier = 0, {}
        if self._resumed is not None:
            earlier = status.earlier_parts(path)
            first_round = self._resumed.snapshot.server_round + 1
            with self.folder.writing():
                earlier |= set_back(path, first_round - 1, earlier.get("repeated"))
        # Given to -c, it runs the same again from the start, wherever it went on from.
        here = {"resume": "", "output-dir": str(path.parent), "run-name": path.name}
        kept = here if self._resumed is not None else {}
        self.folder.write_config(flatten_run_config(config) | kept)
        self.callbacks = self._make_callbacks(first_round, earlier)
        self._log = EventLog(
            path / LOG_FILE, {"run": path.name, "scheme": config.scheme}, lease.is_mine
        )
        logger.addHandler(self._log)
        for callback in self.callbacks:
            callback.on_start(config.num_server_rounds)
        if self._resumed is not None:
            tell(Resumed(first_round - 1, str(self._resumed.path), earlier))

    def _make_callbacks(self, first_round: int, earlier: Mapping[str, Any]) -> list[Callback]:
        """Return who is told of the rounds, in this order.

        The line in ``metrics.jsonl`` comes before the checkpoint. A process that dies between the
        two leaves a line too many, which a resume cuts off, for it sets the folder back to the
        checkpoint; the other way round the line would be missing for ever. The status follows, for
        it names rounds that can be gone on after, and page and trackers come last, for they only
        show what is on the disk.
        """
        config, folder = self._config, self.folder
        trackers = open_trackers(config, folder.path, first_round)  # may fail: before the status
        about = {
            **{"run": folder.path.name, "scheme": config.scheme, **self._about, **earlier},
            "run_key": self._loop.strategy.run_key,
            "round": first_round - 1,
            "num_rounds": config.num_server_rounds,
        }
        return [
            Progress(),
            MetricsFile(folder),
            Checkpoints(folder, self._loop.snapshot, self._identity, config.keep_checkpoints),
            status.StatusFile(folder.path, folder.lease, **about),
            LiveReport(folder.path, flatten_run_config(config)),
            Trackers(trackers),
        ]

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Tell the callbacks how the run ended.

        Raises:
            RunFailedError: if the last round failed, even though nothing raised so far.
        """
        try:
            if error is None:
                self._loop.check_end()
        except RunFailedError as fault:
            self._end(fault)
            raise
        self._end(error)

    def _end(self, error: BaseException | None) -> None:
        if self.folder.lease is not None and not self.folder.lease.is_mine():
            error = TakenOverError(f"{self.folder.path}: another process goes on with this run")
            logger.error("%s", error)
        for callback in self.callbacks:
            callback.on_end(error)
        logger.removeHandler(self._log)
        self._log.close()


def library_versions() -> dict[str, str]:
    """Return what the run was computed with; information only, nothing is refused by it."""
    return dict(_versions())


@cache  # asked in every round
def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions
