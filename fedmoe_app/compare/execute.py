"""Run the cells that are not kept yet, several at a time, each in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import typer

from fedmoe_app.compare.alone import train_alone
from fedmoe_app.compare.figures import Figures, losses
from fedmoe_app.compare.folder import LOG_FILE, ComparisonFolder
from fedmoe_app.compare.plan import ALONE, Cell
from fedmoe_app.config.overrides import Flat
from fedmoe_app.launch.environment import default_environment
from fedmoe_app.results.folder import ResultsError
from fedmoe_app.results.table import human_bytes
from fedmoe_app.shown.duration import duration
from fedmoe_app.shown.terminal import say

# Runs a cell in the folder given and returns the result folder, somewhere below it.
Run = Callable[[Cell, Path], Path]
RESULTS = "results"


def run_cell(run: Run, path: Path, cell: Cell) -> None:
    """Run a cell and keep its results in the comparison at ``path``; raises what the run does."""
    folder = ComparisonFolder(path)
    with folder.draft(cell) as draft:
        log = draft / LOG_FILE
        with output_to(log):
            results = run(cell, draft)
        folder.finish(cell, results, log)


def in_process(cell: Cell, draft: Path) -> Path:
    """Run a cell with all its clients in this process, with one torch thread."""
    import torch

    from fedmoe_app.compare.in_process import run_in_process

    torch.set_num_threads(1)
    if cell.kind == ALONE:
        return train_alone(cell, config_in(cell, draft), draft, RESULTS)
    return run_in_process(config_in(cell, draft), cell.clients)


def simulated(app: Path, cell: Cell, draft: Path) -> Path:
    """Run a cell of the app in the folder ``app`` as ``fedmoe run`` does: simulated nodes."""
    from fedmoe_app.launch.runner import run_simulated

    if cell.kind == ALONE:  # clients that never meet need no server between them
        return in_process(cell, draft)
    try:
        run_simulated(app, config_in(cell, draft), cell.clients, 0.0, False)
    except typer.Exit:  # this is how it says that it was interrupted
        raise KeyboardInterrupt from None
    return draft / RESULTS


def config_in(cell: Cell, draft: Path) -> Flat:
    """Return the cell's run config with its results going into ``draft``."""
    return cell.flat | {"output-dir": str(draft), "run-name": RESULTS}


@contextmanager
def output_to(path: Path) -> Iterator[None]:
    """Send both outputs of this process to a file, whoever writes to them, then give them back.

    Done on the file descriptors: log handlers hold on to the stream that they were made with.
    """
    _flush()
    before = [os.dup(number) for number in (1, 2)]
    try:
        with path.open("wb") as log:
            for number in (1, 2):
                os.dup2(log.fileno(), number)
        yield
    finally:
        _flush()
        for number, kept in zip((1, 2), before, strict=True):
            os.dup2(kept, number)
            os.close(kept)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()


_NO_TRACKER_WARNING = "ignore::UserWarning:multiprocessing.resource_tracker"

# Called when a cell has ended, with what it raised.
Ended = Callable[[Cell, BaseException | None], None]


@dataclass
class Outcomes:
    """The figures of the finished cells and the reasons of the failed ones, by key.

    A run without a final accuracy has both.
    """

    figures: dict[str, Figures] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def add(self, cell: Cell, figures: Figures) -> None:
        """Note the figures of a run that came to its end."""
        self.figures[cell.key] = figures
        if figures.failure:
            self.failures[cell.key] = figures.failure


def run_cells(
    cells: Sequence[Cell],
    folder: ComparisonFolder,
    workers: int,
    run: Run = in_process,
    here: bool = False,
) -> Outcomes:
    """Run every cell that the folder does not keep; say a line for each.

    Args:
        cells: what to run; cells of one key are run once.
        folder: where finished cells are kept; must be entered.
        workers: cells at a time.
        run: how one cell is run; a function of a module, or a ``partial`` of one.
        here: run them in this process, one after the other: for a ``run`` that starts
            processes itself.

    Raises:
        KeyboardInterrupt: when interrupted; the finished cells stay.
    """
    outcomes = Outcomes()
    todo = _not_kept(cells, folder, outcomes)
    kept = f", {len(outcomes.figures)} of them kept" if outcomes.figures else ""
    count = len({cell.key for cell in cells})
    say(f"{count} run{'s' * (count != 1)}{kept}; {len(todo)} to do")
    progress = _Progress(len(todo), folder, outcomes, 1 if here else workers)
    one = partial(run_cell, run, folder.path)
    if here:
        _run_here(todo, one, progress.ended)
    else:
        with _environment():
            _run_in_processes(todo, one, min(workers, len(todo)), progress.ended)
    return outcomes


def _not_kept(
    cells: Sequence[Cell], folder: ComparisonFolder, outcomes: Outcomes
) -> dict[str, Cell]:
    todo = {}
    for cell in cells:
        try:
            figures = folder.kept(cell)
        except ResultsError as error:
            say(f"{cell.label}: kept, but cannot be read, so it is run again: {error}")
            folder.drop(cell)
            figures = None
        if figures and figures.failure:
            say(f"{cell.label}: kept, but it failed, so it is run again: {figures.failure}")
            folder.drop(cell)
            figures = None
        if figures:
            outcomes.add(cell, figures)
        else:
            todo[cell.key] = cell
    return todo


class _Progress:
    """Collects how cells end, and says it."""

    def __init__(
        self, count: int, folder: ComparisonFolder, outcomes: Outcomes, workers: int
    ) -> None:
        self._count, self._folder, self._outcomes = count, folder, outcomes
        self._workers = workers
        self._done = 0
        self._started = time.monotonic()

    def ended(self, cell: Cell, error: BaseException | None) -> None:
        self._done += 1
        try:
            if error:
                raise error
            figures = self._folder.kept(cell)
            if figures is None:
                raise ResultsError("the run left nothing behind")
            self._outcomes.add(cell, figures)
            if figures.failure:
                self._failed(cell, figures.failure, self._folder.cell_path(cell) / LOG_FILE)
            else:
                self._line(cell, describe(figures))
        except Exception as reason:  # whatever ended the cell: the others go on
            self._outcomes.failures[cell.key] = _one_line(reason)
            self._failed(cell, _one_line(reason), self._folder.failed_log(cell))

    def _failed(self, cell: Cell, reason: str, log: Path) -> None:
        where = f" (output: {log})" if log.is_file() else ""
        self._line(cell, f"FAILED: {reason}{where}")

    def _line(self, cell: Cell, text: str) -> None:
        waiting = self._count - self._done
        elapsed = time.monotonic() - self._started
        left = time_left(elapsed, self._done, waiting, self._workers)
        rest = f"; about {duration(left)} left" if waiting else ""
        say(f"[{self._done}/{self._count}] {cell.label}: {text}{rest}")


def time_left(elapsed: float, done: int, waiting: int, workers: int) -> float:
    """Return about how many seconds ``waiting`` runs take, some of which are going on already.

    The others of the ``workers`` that work at a time are taken to be half done.
    """
    half = min(workers - 1, waiting) / 2
    return elapsed / (done + half) * (waiting - half)


def describe(figures: Figures) -> str:
    """Return the figures of a run in one line."""
    numbers = (
        (figures.metric, figures.accuracy),
        ("loss", figures.loss),
        ("local accuracy", figures.local_accuracy),
    )
    shown = [f"{name} {value:.3f}" for name, value in numbers if value is not None]
    shown.append(f"{human_bytes(figures.bytes_up)} up a round")
    lost = losses(figures.failed_rounds, figures.missing_replies)
    return ", ".join([*shown, duration(figures.seconds), *lost])


def _run_here(todo: dict[str, Cell], one: Callable[[Cell], None], ended: Ended) -> None:
    for cell in todo.values():
        try:
            one(cell)
        except Exception as error:
            ended(cell, error)
        else:
            ended(cell, None)


def _run_in_processes(
    todo: dict[str, Cell], one: Callable[[Cell], None], workers: int, ended: Ended
) -> None:
    """Run the cells with one pool a worker, so that a process that dies takes one cell along."""
    waiting = iter(todo.values())
    running: dict[Future[None], tuple[Cell, ProcessPoolExecutor]] = {}
    before = set(multiprocessing.active_children())
    pools: list[ProcessPoolExecutor] = []

    def another() -> ProcessPoolExecutor:
        pools.append(_new_pool())
        return pools[-1]

    def start(pool: ProcessPoolExecutor) -> None:
        if cell := next(waiting, None):
            running[pool.submit(one, cell)] = cell, pool
        else:
            pool.shutdown(wait=False)

    try:
        for _ in range(workers):
            start(another())
        while running:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                cell, pool = running.pop(future)
                error = future.exception()
                if isinstance(error, BrokenProcessPool):
                    pool.shutdown()
                    pool = another()
                    error = RuntimeError("its process died; the memory may have been too small")
                ended(cell, error)
                start(pool)
    except BaseException:
        # A pool would wait for its cell to end.
        for process in set(multiprocessing.active_children()) - before:
            process.terminate()
        raise
    finally:
        # All of them: Ctrl-C may come before a started cell is noted as running.
        for pool in pools:
            pool.shutdown()


def _new_pool() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(
        1, mp_context=multiprocessing.get_context("spawn"), initializer=_ignore_interrupt
    )


def _ignore_interrupt() -> None:
    """Leave Ctrl-C in the terminal to the parent, who ends this process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _environment() -> Iterator[None]:
    """Give the processes that are started the environment of a run."""
    # Python's resource tracker would warn of semaphores of processes that Ctrl-C ended; it has
    # removed them by then.
    wanted = default_environment() | {"PYTHONWARNINGS": _NO_TRACKER_WARNING}
    added = wanted.keys() - os.environ.keys()
    os.environ.update({name: wanted[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
