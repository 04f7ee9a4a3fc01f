"""The charts of a comparison, for its page and its picture files.

Lines and marks are means over the seeds with their 95 % Student-t intervals; colour, dash and mark
tell the schemes apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedmoe_app.compare.plan import CENTRALISED, Plan
from fedmoe_app.compare.reading import Lines
from fedmoe_app.compare.summary import Estimate, Result, estimate
from fedmoe_app.report.charts import (
    BLACK,
    BLUE,
    COLOURS,
    DASHES,
    GREY,
    ORANGE,
    SHAPES,
    Axis,
    Chart,
    Dots,
    Point,
    Series,
    dots,
    lines,
    three,
)
from fedmoe_app.report.files import beside, picture_of, write_pictures
from fedmoe_app.results.table import human_bytes
from fedmoe_app.shown.pictures import picture, picture_names

MAX_NAME = 40  # characters of a scheme or partition
MAX_COLUMNS = 3
Groups = Mapping[str, Sequence[Result]]


def plot_comparison(folder: Path, plan: Plan, results: Sequence[Result], metric: str) -> list[Path]:
    """Draw ``accuracy.png`` and ``final.png`` into the folder; return the paths."""
    charts = [charts_of(plan, results, name, metric) for name in plan.partitions]
    found = {}
    for name in ("accuracy", "final"):
        drawn = [chart for each in charts if (chart := each[name]).spec]
        if many := len(plan.partitions) > 1:
            drawn = [_titled(each[name], partition) for each, partition in
                     zip(charts, plan.partitions, strict=True) if each[name].spec]  # fmt: skip
        if not drawn:
            continue
        rows = [drawn[i : i + MAX_COLUMNS] for i in range(0, len(drawn), MAX_COLUMNS)]
        legend = [entry for chart in drawn for entry in chart.legend]
        width = 620 if not many else 430
        found[folder / f"{name}.png"] = picture_of(
            [beside(row, width) for row in rows], legend, max(map(len, rows))
        )
    return write_pictures(found)


def charts_of(
    plan: Plan, results: Sequence[Result], partition: str, metric: str,
    read: Mapping[str, Lines] | None = None,
) -> dict[str, Chart]:  # fmt: skip
    """Return the charts of one partition; the centralised reference stands in each.

    Args:
        plan: names and order of the schemes.
        results: of all runs; those that failed are in no chart.
        partition: whose runs.
        metric: what accuracy means.
        read: metrics lines by the key of the cell, for the loss.
    """
    names = [name for name in plan.schemes if name != CENTRALISED]
    groups = {
        name: [r for r in results if r.finished and r.cell.scheme == name
               and (name == CENTRALISED or r.cell.partition == partition)]
        for name in (*names, CENTRALISED)
    }  # fmt: skip
    losses = {
        name: [_of_lines((read or {}).get(r.cell.key, ()), "loss") for r in group]
        for name, group in groups.items()
    }
    curves = {name: [r.figures.curve for r in group if r.figures] for name, group in groups.items()}
    what = f"{metric} of the global model"
    return {
        "accuracy": _over_rounds(curves, _first_up(what), Axis(picture(metric), three, most=1)),
        "loss": _over_rounds(losses, "Loss of the global model", Axis("loss (nats)", three)),
        "final": _final(groups, picture(metric)),
        "bytes": _bytes(groups),
    }


def shown_names(names: Sequence[str]) -> dict[str, str]:
    """Return schemes as charts call them: of bounded length, and told apart."""
    return dict(zip(names, picture_names(names, MAX_NAME), strict=True))


def _over_rounds(
    runs: Mapping[str, Sequence[Sequence[tuple[int, float]]]], title: str, axis: Axis
) -> Chart:
    """Return a line a scheme: the mean over the seeds with its interval."""
    names = shown_names(list(runs))
    series = []
    for number, (name, curves) in enumerate(runs.items()):
        by_round: dict[int, list[float]] = {}
        for curve in curves:
            for server_round, value in curve:
                by_round.setdefault(server_round, []).append(value)
        points = [
            Point(server_round, found.mean, *_ends(found), found.n)
            for server_round in sorted(by_round)
            if (found := estimate(by_round[server_round]))
        ]
        if points:
            series.append(Series(names[name], points, **_style(number, name)))
    return lines(title, series, axis)


def _ends(found: Estimate) -> tuple[float | None, float | None]:
    return found.interval or (None, None)


def _of_lines(read: Sequence[Mapping[str, Any]], key: str) -> list[tuple[int, float]]:
    return [(line["round"], line[key]) for line in read if line.get(key) is not None]


def _final(groups: Groups, metric: str) -> Chart:
    """Return global and local accuracy after the last round, with the seeds of the global one."""
    values, local = (
        {name: [v for r in group if r.finished and (v := getattr(r.finished, key)) is not None]
         for name, group in groups.items()}
        for key in ("accuracy", "local_accuracy")
    )  # fmt: skip
    names = [name for name, found in values.items() if found]
    means = [estimate(values[name]) for name in names]
    series = [
        Dots("global model, mean over the seeds, 95 % interval", _means(means), BLUE,
             ends=[point.interval if point else None for point in means]),
        Dots("global model, one seed", [values[name] for name in names], BLUE, small=True),
        Dots("after local training, mean over clients and seeds",
             _means([estimate(local[name]) for name in names]), ORANGE, SHAPES[1]),
    ]  # fmt: skip
    axis = Axis(f"{metric} after the last round", three, high=1)
    return dots("After the last round", [shown_names(list(groups))[n] for n in names], series, axis)


def _bytes(groups: Groups) -> Chart:
    found = {
        name: estimate([result.finished.bytes_up for result in group if result.finished])
        for name, group in groups.items()
        if name != CENTRALISED  # it sends nothing over a network
    }
    names = [name for name, point in found.items() if point]
    series = [Dots("mean over rounds and seeds", _means([found[name] for name in names]))]
    axis = Axis("bytes up a round, all clients", human_bytes)
    return dots("Bytes up a round", [shown_names(list(groups))[n] for n in names], series, axis)


def _means(found: Sequence[Estimate | None]) -> list[list[float]]:
    return [[point.mean] if point else [] for point in found]


def _style(number: int, name: str) -> dict[str, Any]:
    """Return how a scheme is drawn; the first is black, grey is left to the reference."""
    if name == CENTRALISED:
        return {"colour": GREY, "dash": (2, 4), "shape": None}
    colours = (BLACK, *COLOURS)
    return {
        "colour": colours[number % len(colours)],
        "dash": DASHES[number % len(DASHES)],
        "shape": SHAPES[number % len(SHAPES)],
    }


def _titled(chart: Chart, partition: str) -> Chart:
    return chart._replace(title=f"{picture(partition, MAX_NAME)}: {chart.title}")


def _first_up(text: str) -> str:
    return picture(text[:1].upper() + text[1:])
