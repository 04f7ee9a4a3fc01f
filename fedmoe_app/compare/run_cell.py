"""Run one cell: in this process, or through ``flwr run``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from fedmoe_app.compare.folder import LOG_FILE, ComparisonFolder
from fedmoe_app.compare.plan import Cell
from fedmoe_app.config.overrides import Flat

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
    return run_in_process(config_in(cell, draft), cell.clients)


def simulated(app: Path, cell: Cell, draft: Path) -> Path:
    """Run a cell of the app in the folder ``app`` as ``fedmoe run`` does: simulated nodes."""
    from fedmoe_app.launch.runner import run_simulated

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
