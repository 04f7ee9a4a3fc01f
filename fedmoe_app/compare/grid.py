"""A grid of settings: which point of it each row of a comparison runs with.

A comparison of schemes that all run with the settings that one of them likes says little. So every
row and partition is run at every point of the grid with tuning seeds of their own; the point with
the best mean score on validation rows is chosen, and only that one is run with the seeds of the
comparison. Test rows choose nothing.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

from fedmoe_app.compare.plan import Cell, Choice, Plan, is_shared
from fedmoe_app.config.errors import ConfigError
from fedmoe_app.config.overrides import Flat
from fedmoe_app.config.pairs import Unreadable, read_value, write_value
from fedmoe_app.config.parse import default_run_config
from fedmoe_app.results.best import kept_line
from fedmoe_app.results.folder import ResultsError

Point = Flat
Lines = Sequence[Mapping[str, Any]]
MAX_POINTS = 100


@dataclass(frozen=True)
class Grid:
    """Points, and the seeds that they are tried with; without a point there is nothing to tune."""

    points: tuple[Point, ...] = ()
    seeds: tuple[int, ...] = ()


def read_grid(items: Sequence[str], tuning_seeds: Sequence[int], seeds: Sequence[int]) -> Grid:
    """Read ``["train.learning-rate=1e-4,3e-4", "train.num-train-epochs=1,2"]``: all combinations.

    Args:
        items: a key with its values each.
        tuning_seeds: of the tuning runs.
        seeds: of the comparison; none of them may be a tuning seed.

    Raises:
        ConfigError: naming item, key or value, and the choices.
    """
    axes: dict[str, list[Any]] = {}
    for item in items:
        key, values = _read_axis(item)
        if key in axes:
            raise ConfigError(f"--grid {key}: stands there more than once; give its values in one")
        axes[key] = values
    return grid_of(axes, tuning_seeds, seeds)


def grid_of(
    axes: Mapping[str, Sequence[Any]], tuning_seeds: Sequence[int], seeds: Sequence[int]
) -> Grid:
    """Return the grid of values by key; raises as :func:`read_grid`."""
    if not axes:
        return Grid()
    for key, values in axes.items():
        _check_axis(key, values)
    if both := sorted({*tuning_seeds} & {*seeds}):
        raise ConfigError(
            f"--tuning-seeds {', '.join(map(str, both))}: also among --seeds; a setting chosen on "
            "a seed must not be measured on it, give others"
        )
    count = math.prod(len(values) for values in axes.values())
    if count > MAX_POINTS:
        raise ConfigError(f"--grid: {count} points, at most {MAX_POINTS}; give fewer values")
    points = (dict(zip(axes, each, strict=True)) for each in itertools.product(*axes.values()))
    return Grid(tuple(points), tuple(tuning_seeds))


def _read_axis(item: str) -> tuple[str, list[Any]]:
    key, equals, text = item.partition("=")
    values = [value.strip() for value in text.split(",")]
    if not equals or not all(values):
        raise ConfigError(f"--grid {item!r}: write a key and its values: KEY=VALUE,VALUE")
    return key.strip(), [_read(key, value) for value in values]


def _read(key: str, text: str) -> Any:
    try:
        return read_value(key, text)
    except Unreadable:
        return text  # a word: --grid combine.loss=fedprox,none


def _check_axis(key: str, values: Sequence[Any]) -> None:
    known = default_run_config()
    if key not in known:
        near = get_close_matches(key, known, 3, 0.5)
        choices = f"did you mean {', '.join(near)}?" if near else "`fedmoe config` lists them"
        raise ConfigError(f"--grid {key}: no key of the run config; {choices}")
    if is_shared(key) or key in ("seed", "scheme"):
        raise ConfigError(
            f"--grid {key}: all runs of a comparison share data, model and rounds, and schemes and "
            "seeds have options of their own; give a key such as train.learning-rate"
        )
    if len({repr(value) for value in values}) != len(values):
        raise ConfigError(f"--grid {key}: a value stands there more than once")


def said(point: Point) -> str:
    """Return a point as it is written on a command line."""
    return ", ".join(f"{key} = {write_value(value)}" for key, value in point.items())


def tuning_cells(plans: Sequence[Plan], points: Sequence[Point]) -> list[list[Cell]]:
    """Return the cells of each point's plan, named by the point."""
    return [
        [replace(cell, note=said(point)) for cell in plan.cells]
        for plan, point in zip(plans, points, strict=True)
    ]


def choose(
    tried: Sequence[Sequence[Cell]],
    points: Sequence[Point],
    by: str,
    keeps_best: bool,
    read: Callable[[Cell], Lines | None],
) -> list[Choice]:
    """Choose the point of each row and partition.

    Args:
        tried: cells by point; the same rows, partitions and seeds in each.
        points: of the grid.
        by: ``accuracy`` or ``loss``, on validation rows.
        keeps_best: whether the runs of the comparison keep their best round, or the last one.
        read: returns the metrics lines of a cell; None where it failed.

    Raises:
        ResultsError: no point of a row could be scored with all seeds.
    """
    places = dict.fromkeys((cell.scheme, cell.partition) for cell in tried[0])
    choices = []
    for place in places:
        scores = [_mean(place, cells, by, keeps_best, read) for cells in tried]
        known = [score for score in scores if score is not None]
        if not known:
            raise ResultsError(
                f"{place[0]}, {place[1]}: no point of the grid came to its end with a score on "
                "validation rows; see the failed runs above"
            )
        best = max(known) if by == "accuracy" else min(known)
        chosen = points[scores.index(best)]
        table = {said(point): score for point, score in zip(points, scores, strict=True)}
        choices.append(Choice(*place, said(chosen), by, table))
    return choices


def _mean(
    place: tuple[str, str],
    cells: Sequence[Cell],
    by: str,
    keeps_best: bool,
    read: Callable[[Cell], Lines | None],
) -> float | None:
    """Return the mean over the seeds; None where one of them has no score."""
    scores = []
    for cell in cells:
        if (cell.scheme, cell.partition) == place:
            lines = read(cell)
            if not lines:
                return None
            line = kept_line(lines) if keeps_best else lines[-1]
            score = (line.get("validation") or {}).get(by)
            if score is None or not math.isfinite(score):
                return None
            scores.append(float(score))
    return statistics.fmean(scores)


def tuned(plans: Sequence[Plan], points: Sequence[Point], choices: Sequence[Choice]) -> Plan:
    """Put the plan together in which every row and partition has its chosen point.

    Args:
        plans: one a point; alike but for the point.
        points: of the grid.
        choices: of :func:`choose`.
    """
    number = {said(point): index for index, point in enumerate(points)}
    chosen = {(each.scheme, each.partition): number[each.point] for each in choices}
    cells = tuple(
        plans[chosen[cell.scheme, cell.partition]].cells[place]
        for place, cell in enumerate(plans[0].cells)
    )
    return replace(plans[0], cells=cells, choices=tuple(choices))
