"""What a run writes into its result folder while it runs, and how it ends there.

After every round: a line in ``metrics.jsonl``, a checkpoint, the status; all the time: the log.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import platform
from collections.abc import Callable, Mapping
from datetime import datetime
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
from fedmoe_app.results.events import LOG_FILE, EventLog, described
from fedmoe_app.results.folder import METRICS_FILE, RunFolder, results_of
from fedmoe_app.results.metrics import RoundReport, metrics_line
from fedmoe_app.results.status import how_to_resume
from fedmoe_app.results.trackers import open_trackers, scalars
from fedmoe_app.server.checkpoint import Checkpoint, Identity, prune_checkpoints, write_checkpoint
from fedmoe_app.server.resume import check_same_run, find_checkpoint, set_back
from fedmoe_app.server.rounds import RunFailedError
from fedmoe_app.server.strategy import MoEStrategy


class Watchers:
    """Tells page and trackers of each round, and how the run ended.

    A tracker that fails is left out from then on, with a warning: it must not cost the run.

    Args:
        config: of the run.
        folder: where its results go.
        first_round: of this part of the run.
    """

    def __init__(self, config: RunConfig, folder: Path, first_round: int = 0) -> None:
        self._folder = folder
        self._page = LiveReport(folder, flatten_run_config(config))
        self._trackers = open_trackers(config, folder, first_round)

    def round_done(self, line: Mapping[str, Any]) -> None:
        """Tell of a round whose line is in ``metrics.jsonl``."""
        self._page.refresh(line["round"])
        values = scalars(line)
        self._tell(lambda tracker: tracker.log(line["round"], values))

    def close(self, error: BaseException | None) -> None:
        """Tell how the run ended."""
        if (self._folder / METRICS_FILE).is_file():
            self._page.close(error)
        self._tell(lambda tracker: tracker.close(failed=error is not None))

    def _tell(self, what: Callable[[Any], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                what(tracker)
            except Exception as fault:  # another's package, a network, a disk
                del self._trackers[name]
                logger.warning("%s: %s: %s", name, type(fault).__name__, fault)


logger = logging.getLogger("fedmoe")

_PACKAGES = ("fedmoe", "flwr", "torch", "transformers", "peft", "safetensors")


def open_journal(
    config: RunConfig,
    identity: Identity,
    strategy: MoEStrategy,
    state: ModelState,
    metric: str,
    about: Mapping[str, Any] | None = None,
) -> Journal:
    """Begin a run, or go on with the one that ``config.resume`` names.

    Args:
        config: the run config.
        identity: what a resumed run must have in common with the run that it goes on with.
        strategy: whose rounds are written down; it is restored from the checkpoint, if any.
        state: initial values of the model.
        metric: what ``accuracy`` means.
        about: what else the status tells: ``flower_run``, Flower's id of the run, by which whoever
            started it knows it; ``simulated``, whether its nodes were.

    Raises:
        ConfigError: if there is no good checkpoint, or it is of another run.
        ResultsError: if the folder is in use, or holds another run.
    """
    if not config.resume:
        folder = new_folder(config)
        return Journal(folder, config, identity, strategy, state, metric, about=about)
    checkpoint = find_checkpoint(Path(config.resume))
    check_same_run(checkpoint, identity, state)
    folder = RunFolder.reopen(results_of(checkpoint.path))
    status.wait_until_free(folder.path)
    strategy.restore(checkpoint.snapshot)
    state = checkpoint.snapshot.state
    return Journal(folder, config, identity, strategy, state, metric, checkpoint, about)


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


class Journal:
    """The records of one run; a context manager around its rounds.

    Attributes:
        folder: the result folder.
        state: the global values that the rounds start from.
    """

    def __init__(
        self,
        folder: RunFolder,
        config: RunConfig,
        identity: Identity,
        strategy: MoEStrategy,
        state: ModelState,
        metric: str,
        resumed: Checkpoint | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = folder
        self.state = state
        self._config = config
        self._identity = identity
        self._strategy = strategy
        self._metric = metric
        self._resumed = resumed
        self._about = dict(about or {})

    def __enter__(self) -> Self:
        """Take the folder, set it back to the checkpoint; begin log and status."""
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
        # First of all: a tracker that cannot be opened stops the run, which has no status yet.
        self._watchers = Watchers(config, path, first_round)
        run = {"run": path.name, "scheme": config.scheme}
        self._events = EventLog(path / LOG_FILE, run, lease.is_mine)
        logger.addHandler(self._events)
        self._status = status.StatusFile(
            path,
            lease,
            **run,
            **self._about,
            **earlier,
            run_key=self._strategy.run_key,
            round=first_round - 1,
            num_rounds=config.num_server_rounds,
        )
        if self._resumed is not None:
            extra = described("resumed", round=first_round - 1, **earlier)
            logger.info("going on from %s", self._resumed.path, extra=extra)

    def on_round(self, report: RoundReport) -> None:
        """Write a round down; it is on the disk when this returns.

        Raises:
            TakenOverError: if another process goes on with this run.
        """
        line = metrics_line(report, self._metric)
        with self.folder.writing():
            self.folder.append(line)
            write_checkpoint(
                self.folder.path, self._strategy.snapshot(), self._identity, library_versions()
            )
            prune_checkpoints(self.folder.path, self._config.keep_checkpoints)
        self._status.update(round=report.server_round, **_num_partitions(report))
        self._watchers.round_done(line)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Write how the run ended, and say how to go on with it if it did not complete.

        Raises:
            RunFailedError: if the last round failed, even though nothing raised so far.
        """
        try:
            if error is None:
                self._strategy.check_end()
        except RunFailedError as fault:
            self._end(fault)
            raise
        self._end(error)

    def _end(self, error: BaseException | None) -> None:
        if self._is_taken_over():
            self._status.abandon()
            logger.error("%s: another process goes on with this run", self.folder.path)
        else:
            self._write_end(error)
        logger.removeHandler(self._events)
        self._events.close()

    def _write_end(self, error: BaseException | None) -> None:
        if error is None:
            self._status.end(status.COMPLETED)
        else:
            self._say_how_to_go_on(error)
        self._watchers.close(error)

    def _is_taken_over(self) -> bool:
        return self.folder.lease is not None and not self.folder.lease.is_mine()

    def _say_how_to_go_on(self, error: BaseException) -> None:
        is_fault = isinstance(error, Exception)  # not Ctrl-C or the end of the process
        state = status.FAILED if is_fault else status.INTERRUPTED
        self._status.end(state, error=str(error) or type(error).__name__)
        done, rounds = self._strategy.rounds_done, self._config.num_server_rounds
        logger.error(
            "%s after round %d of %d%s",
            state,
            max(done, 0),
            rounds,
            f": {error}" if is_fault else "",
            extra=described(state, round=max(done, 0)),
        )
        if done >= 0:
            logger.info("to go on: %s", how_to_resume(self.folder.path))


def _num_partitions(report: RoundReport) -> dict[str, int]:
    """Return into how many partitions the clients split the data, once it is known."""
    known = max((update.num_partitions for update in report.updates), default=0)
    return {"num_partitions": known} if known else {}


def library_versions() -> dict[str, str]:
    """Return what the run was computed with; information only, nothing is refused by it."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions
