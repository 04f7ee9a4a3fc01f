"""The output folder of a comparison, and the finished cells that it keeps.

    comparison.toml          what was asked for
    cells/KEY/               config.toml, metrics.jsonl, cell.json and run.log of a finished run
    failed/KEY.log           output of a run that failed in the last call
    comparison.csv ...       tables and plots

A cell is run in ``.unfinished/KEY`` and renamed when it is complete.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

from fedmoe_app.compare.figures import Figures, figures_in
from fedmoe_app.compare.plan import Cell, Choice, Plan
from fedmoe_app.config.files import write_atomic
from fedmoe_app.results.folder import (
    CLASSES_FILE,
    CONFIG_FILE,
    METRICS_FILE,
    ResultsError,
    nest,
    read_metrics,
)
from fedmoe_app.shown.logs import toml_text

PLAN_FILE = "comparison.toml"
CELL_FILE = "cell.json"
LOG_FILE = "run.log"
_KEPT = (METRICS_FILE, CLASSES_FILE, CONFIG_FILE, CELL_FILE, LOG_FILE)


class ComparisonFolder:
    """The output folder, held by one process at a time.

    Raises:
        ResultsError: when ``path`` is a file, holds something that is no comparison, or is in
            use.
    """

    def __init__(self, path: Path) -> None:
        """Create the folder if it is not there, and check that it may be written to."""
        self.path = path.expanduser().absolute()
        if self.path.exists() and not self.path.is_dir():
            raise ResultsError(f"--output {self.path}: a file; name a folder")
        if self.path.is_dir() and any(self.path.iterdir()) and not self._is_ours():
            raise ResultsError(
                f"--output {self.path}: holds files that are not those of a comparison; name a "
                "new folder"
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ResultsError(f"--output {self.path}: {error.strerror}; name another") from None

    def __enter__(self) -> Self:
        """Lock the folder, and drop what an interrupted call left unfinished."""
        self._lock = os.open(self.path / ".lock", os.O_CREAT | os.O_RDWR, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise ResultsError(
                f"--output {self.path}: another comparison is writing to it; wait for its end"
            ) from None
        self._drop_unfinished()
        shutil.rmtree(self.path / "failed", ignore_errors=True)
        return self

    def __exit__(self, *error: object) -> None:
        """Drop what is unfinished, and unlock."""
        self._drop_unfinished()
        os.close(self._lock)

    def write_plan(self, plan: Plan, command: str = "") -> None:
        """Note what is compared, and the command line that asked for it, if one did."""
        asked: dict[str, Any] = {
            "fedmoe-version": version("fedmoe"),
            **({"command": command} if command else {}),
            "rows": list(plan.schemes),
            "partitions": list(plan.partitions),
            "seeds": list(plan.seeds),
            "clients": plan.clients,
        }
        if plan.choices:  # the folder has the runs of the other points, too
            asked["cells"] = [cell.key for cell in plan.cells]
            asked["chosen"] = [_choice(choice) for choice in plan.choices]
        write_atomic(self.path / PLAN_FILE, toml_text(asked))

    def kept(self, cell: Cell) -> Figures | None:
        """Return the figures of a finished cell; None when there is none.

        Raises:
            ResultsError: when there is one that cannot be read.
        """
        folder = self.cell_path(cell)
        if not folder.is_dir():
            return None
        try:
            return figures_in(folder, read_metrics(folder), cell.rounds)
        except (OSError, UnicodeDecodeError) as error:
            raise ResultsError(f"{folder}: {error}") from None

    def drop(self, cell: Cell) -> None:
        """Delete a finished cell."""
        shutil.rmtree(self.cell_path(cell))

    def cell_path(self, cell: Cell) -> Path:
        """Return where the cell is kept once it is finished."""
        return self.path / "cells" / cell.key

    def failed_log(self, cell: Cell) -> Path:
        """Return where the output of a failed cell is kept."""
        return self.path / "failed" / f"{cell.key}.log"

    @contextmanager
    def draft(self, cell: Cell) -> Iterator[Path]:
        """Give a folder to run the cell in; when the block fails, its log is kept."""
        folder = self.path / ".unfinished" / cell.key
        folder.mkdir(parents=True)
        try:
            yield folder
        except Exception:
            self._keep_failed_log(cell, folder)
            raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def finish(self, cell: Cell, results: Path, log: Path) -> None:
        """Keep the results of a run: without model and plots, under the cell's own name."""
        os.replace(log, results / LOG_FILE)
        # Where it was run is gone: the config names no place.
        write_atomic(results / CONFIG_FILE, toml_text(nest(cell.flat)))
        about = {
            "scheme": cell.scheme,
            "partition": cell.partition,
            "seed": cell.seed,
            "clients": cell.clients,
        }
        write_atomic(results / CELL_FILE, json.dumps(about))
        for path in results.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name not in _KEPT:
                path.unlink()
        target = self.cell_path(cell)
        target.parent.mkdir(exist_ok=True)
        os.rename(results, target)

    def _keep_failed_log(self, cell: Cell, folder: Path) -> None:
        log = folder / LOG_FILE
        if log.is_file():
            self.failed_log(cell).parent.mkdir(exist_ok=True)
            os.replace(log, self.failed_log(cell))

    def _is_ours(self) -> bool:
        return (self.path / PLAN_FILE).is_file() or all(
            path.name == ".lock" for path in self.path.iterdir()
        )

    def _drop_unfinished(self) -> None:
        shutil.rmtree(self.path / ".unfinished", ignore_errors=True)


def _choice(choice: Choice) -> dict[str, Any]:
    """Return a choice as TOML, which has no null: a point that failed has no score."""
    tried = [
        {"point": point} | ({} if score is None else {"score": score})
        for point, score in choice.scores.items()
    ]
    named = {"scheme": choice.scheme, "partition": choice.partition}
    return {**named, "point": choice.point, "by": choice.by, "tried": tried}


def read_choice(table: Mapping[str, Any]) -> Choice:
    """Undo :func:`_choice`."""
    scores = {each["point"]: each.get("score") for each in table["tried"]}
    return Choice(table["scheme"], table["partition"], table["point"], table["by"], scores)
