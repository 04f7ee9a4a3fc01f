"""A comparison read back: from its own folder, or put together out of single runs.

Both give what the running command has, a plan and the outcomes of its cells, so that tables and
pages are made in one way.
"""

from __future__ import annotations

import csv
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedmoe_app.compare.execute import Outcomes
from fedmoe_app.compare.figures import figures_in
from fedmoe_app.compare.folder import CELL_FILE, PLAN_FILE, ComparisonFolder, read_choice
from fedmoe_app.compare.plan import FEDERATED, NO_PARTITION, Cell, Plan, partition_name
from fedmoe_app.config.parse import flatten_table
from fedmoe_app.results.folder import (
    CONFIG_FILE,
    METRICS_FILE,
    ResultsError,
    read_metrics,
    read_rounds,
)
from fedmoe_app.shown.tables import csv_cell, text_of_csv

Lines = list[dict[str, Any]]
# What may differ between runs of one row: the place, the seed, and what makes the column.
_NOT_OF_A_ROW = ("seed", "output-dir", "run-name", "data.partition", "data.alpha", "track")


@dataclass(frozen=True)
class KeptCell(Cell):
    """A cell of a finished run, under the name of its folder."""

    folder: str = ""

    @property
    def key(self) -> str:
        """The name of the folder: the config may be that of another version."""
        return self.folder


@dataclass(frozen=True)
class Comparison:
    """A plan, what became of its cells, and the metrics lines of the finished ones by key.

    ``command`` is the line that asked for it, where it was typed.
    """

    plan: Plan
    outcomes: Outcomes
    lines: Mapping[str, Lines]
    command: str = ""


def running(folder: ComparisonFolder, plan: Plan, outcomes: Outcomes) -> Comparison:
    """Return the comparison that the running command has just brought to its end."""
    kept = {cell.key: folder.cell_path(cell) for cell in plan.cells if cell.key in outcomes.figures}
    return Comparison(plan, outcomes, {key: read_metrics(path) for key, path in kept.items()})


def is_comparison(folder: Path) -> bool:
    """Tell whether a folder is that of ``fedmoe compare``."""
    return (folder / PLAN_FILE).is_file()


def read_comparison(folder: Path) -> Comparison:
    """Read the folder of ``fedmoe compare``; runs that failed are those of ``comparison.csv``.

    Raises:
        ResultsError: when it holds no finished run, or a file is missing or broken.
    """
    asked = _toml(folder / PLAN_FILE)
    cells, lines = _finished_cells(folder, asked)
    if not cells:
        raise ResultsError(f"{folder}: no finished run in cells/; let `fedmoe compare` run first")
    outcomes = Outcomes()
    for cell in cells:
        outcomes.add(cell, figures_in(Path(cell.key), lines[cell.key], cell.rounds))
    written = {csv_cell(name): name for name in (*asked["rows"], *asked["partitions"])}
    for row in _failed_rows(folder, {Path(cell.key).name for cell in cells}):
        scheme, partition = (written.get(row[key], row[key]) for key in ("scheme", "partition"))
        named = (scheme, partition, int(row["seed"]), int(asked["clients"]))
        cell = KeptCell(*named, cells[0].flat, FEDERATED, folder=row["cell"])
        outcomes.failures[cell.key] = text_of_csv(row["failure"])
        cells.append(cell)
    rows, partitions, seeds = (tuple(asked[key]) for key in ("rows", "partitions", "seeds"))
    choices = tuple(map(read_choice, asked.get("chosen", ())))
    plan = Plan(rows, partitions, seeds, int(asked["clients"]), tuple(cells), choices)
    return Comparison(plan, outcomes, lines, str(asked.get("command", "")))


def _finished_cells(folder: Path, asked: dict[str, Any]) -> tuple[list[Cell], dict[str, Lines]]:
    """Return the kept cells that the last call asked for, and their lines."""
    cells: list[Cell] = []
    lines = {}
    for path in sorted((folder / "cells").glob("*")):
        about = _json(path / CELL_FILE)
        wanted = (
            about["scheme"] in asked["rows"]
            and about["partition"] in (NO_PARTITION, *asked["partitions"])
            and about["seed"] in asked["seeds"]
            and path.name in asked.get("cells", [path.name])
        )
        if wanted:
            cell = _cell(path, about["scheme"], about["partition"], about["clients"])
            lines[cell.key] = read_metrics(path)
            cells.append(cell)
    return cells, lines


def collect_runs(folders: Sequence[Path]) -> Comparison:
    """Compare single runs: a row for each scheme and its settings, a column a partition.

    Runs that differ in nothing but the seed are one row; the first run's row is what the others
    are held against. A row is called by its scheme; where several rows share one, by the name of
    its first folder, too.

    Raises:
        ResultsError: when a run is not complete or cannot be read, or two are the same.
    """
    flats = {path: _flat(path) for path in folders}
    names = _row_names(flats)
    cells: list[Cell] = []
    outcomes, lines = Outcomes(), {}
    for path, flat in flats.items():
        found = read_rounds(path)
        rounds = int(flat["num-server-rounds"])
        try:
            figures = figures_in(path, found, rounds)
        except ResultsError as error:
            raise ResultsError(f"{path}: {error}; leave it out, or wait for its end") from None
        cell = _cell(path, names[path], partition_name(flat), _num_clients(found))
        if any(_place(cell) == _place(other) for other in cells):
            raise ResultsError(f"{path}: the same scheme, settings and seed as another run named")
        lines[cell.key] = found
        outcomes.add(cell, figures)
        cells.append(cell)
    plan = Plan(
        tuple(dict.fromkeys(names.values())),
        tuple(dict.fromkeys(cell.partition for cell in cells)),
        tuple(sorted({cell.seed for cell in cells})),
        max(cell.clients for cell in cells),
        tuple(cells),
    )
    return Comparison(plan, outcomes, lines)


def _row_names(flats: Mapping[Path, Mapping[str, Any]]) -> dict[Path, str]:
    rows: dict[str, Path] = {}  # settings of a row -> its first folder
    firsts: dict[Path, Path] = {}
    for path, flat in flats.items():
        own = {key: value for key, value in flat.items() if key not in _NOT_OF_A_ROW}
        firsts[path] = rows.setdefault(json.dumps(own, sort_keys=True), path)
    schemes = [str(flats[first]["scheme"]) for first in rows.values()]
    return {
        path: scheme if schemes.count(scheme) == 1 else f"{scheme} ({first.name})"
        for path, first in firsts.items()
        if (scheme := str(flats[first]["scheme"]))
    }


def _cell(path: Path, scheme: str, partition: str, clients: int) -> Cell:
    flat = _flat(path)
    name = str(path.absolute())
    return KeptCell(scheme, partition, int(flat["seed"]), clients, flat, FEDERATED, folder=name)


def _place(cell: Cell) -> tuple[str, str, int]:
    return cell.scheme, cell.partition, cell.seed


def _num_clients(lines: Lines) -> int:
    return len({client["client"] for line in lines for client in line["clients"]})


def _failed_rows(folder: Path, finished: set[str]) -> Iterator[dict[str, str]]:
    """Yield the rows of ``comparison.csv`` whose run left nothing behind."""
    file = folder / "comparison.csv"
    if not file.is_file():
        return
    with file.open(encoding="utf-8", newline="") as text:
        for row in csv.DictReader(text):
            if row["status"] == "failed" and row["cell"] not in finished:
                yield row


def _flat(path: Path) -> dict[str, Any]:
    if not (path / METRICS_FILE).is_file():
        raise ResultsError(f"{path}: no {METRICS_FILE}; name the folder of a run or a comparison")
    return dict(flatten_table(_toml(path / CONFIG_FILE)))


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ResultsError(f"{path}: {error}") from None


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise ResultsError(f"{path}: {error}") from None
