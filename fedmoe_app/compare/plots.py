"""The charts of a comparison, for its page and its picture files.

Lines and marks are means over the seeds with their 95 % Student-t intervals; colour, dash and mark
tell the schemes apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedmoe_app.compare.figures import Curve
from fedmoe_app.compare.plan import ALONE, CENTRALISED, Plan
from fedmoe_app.compare.reading import Lines
from fedmoe_app.compare.summary import Estimate, Result, estimate
from fedmoe_app.report.charts import (
    BLACK,
    BLUE,
    COLOURS,
    DASHES,
    GREY,
    MANY_LINES,
    ORANGE,
    SHAPES,
    SOLID,
    Axis,
    Chart,
    Dots,
    Point,
    Series,
    Spec,
    dots,
    ends_of,
    legend_of,
    lines,
    three,
)
from fedmoe_app.report.files import beside, panels, picture_of, sized, write_pictures
from fedmoe_app.report.paper import AXIS, Paper
from fedmoe_app.results.table import human_bytes
from fedmoe_app.shown.pictures import picture, picture_names

MAX_NAME = 40  # characters of a scheme or partition
MAX_COLUMNS = 3
PANEL, NARROW = 120, 72  # pixels of the height of a small multiple; in a column
Groups = Mapping[str, Sequence[Result]]


def plot_comparison(
    folder: Path,
    plan: Plan,
    results: Sequence[Result],
    metric: str,
    kinds: Sequence[str] = ("png",),
    paper: Paper | None = None,
) -> list[Path]:
    """Draw ``accuracy`` and ``final`` into the folder; return the paths.

    Of more schemes than a chart has colours for, ``accuracy`` has a panel each beside the first.

    Args:
        folder: of the comparison.
        plan: names and order of the schemes.
        results: of all runs.
        metric: what accuracy means.
        kinds: ``png``, ``svg``, ``pdf``: a file of each for each picture.
        paper: the width on paper, which is in the files' names, too; without titles, which a
            caption has. None for the size on a screen.
    """
    names = [name for name in plan.schemes if name != CENTRALISED]
    found: dict[str, Spec] = {}
    if len(names) > MANY_LINES:
        parts, legend = multiples_of(plan, results, metric, paper)
        if parts:
            found["accuracy"] = picture_of(parts, legend, pixels=paper.legend if paper else 900)
    charts = [charts_of(plan, results, name, metric) for name in plan.partitions]
    for name in ("accuracy", "final"):
        if name not in found and (spec := _in_rows(plan, [each[name] for each in charts], paper)):
            found[name] = spec
    end = f"-{paper.name}" if paper else ""
    files = {folder / f"{name}{end}.{kind}": spec for name, spec in found.items() for kind in kinds}
    return write_pictures(files, paper.points if paper else None)


def _in_rows(plan: Plan, charts: Sequence[Chart], paper: Paper | None) -> Spec | None:
    """Return the charts of the partitions as one picture; None where nothing was measured."""
    many = len(plan.partitions) > 1
    named = zip(charts, plan.partitions, strict=True)
    drawn = [_titled(chart, partition if many else "", paper) for chart, partition in named
             if chart.spec]  # fmt: skip
    if not drawn:
        return None
    columns = min(len(drawn), paper.charts if paper else MAX_COLUMNS)
    width = paper.chart_width(columns) if paper else 430 if many else 620
    rows = [drawn[i : i + columns] for i in range(0, len(drawn), columns)]
    legend = [entry for chart in drawn for entry in chart.legend]
    pixels = paper.legend if paper else None
    return picture_of([beside(row, width) for row in rows], legend, columns, pixels)


def multiples_of(
    plan: Plan, results: Sequence[Result], metric: str, paper: Paper | None = None
) -> tuple[list[Spec], list[Spec]]:
    """Return small multiples of the accuracy over the rounds, and their legend.

    In each panel are the first scheme, one other with its interval, and the reference: nobody
    tells ten bands apart that lie over each other. All panels have the same axes.
    """
    columns = paper.panels if paper else 4
    width = paper.chart_width(columns) + AXIS // 2 if paper else 190
    parts, legend = [], []
    for partition in plan.partitions:
        curves = _curves(plan, results, partition)
        series = {each.name: each for each in _series(curves)}
        names = shown_names(list(curves))
        first = next(name for name in plan.schemes if name != CENTRALISED)
        context = [series[names[name]]._replace(shape=None) for name in (first, CENTRALISED)
                   if names.get(name) in series]  # fmt: skip
        others = [name for name in plan.schemes if name not in (first, CENTRALISED)]
        shown = [series[names[name]] for name in others if names[name] in series]
        if not shown:
            continue
        low, high = ends_of([*context, *shown], Axis("", three, most=1))
        drawn = []
        for number, each in enumerate(shown):
            axis = Axis("", three, low, high)
            own = each._replace(colour=BLUE, dash=SOLID, shape=None)
            chart = lines(picture(each.name, width // 7), [*context, own], axis)
            if number + columns < len(shown):
                chart.spec["layer"][0]["encoding"]["x"]["title"] = None  # there is one below it
            drawn.append(sized(chart, width, NARROW if paper and paper.charts == 1 else PANEL))
        place = f"{picture(partition, MAX_NAME)}: " if len(plan.partitions) > 1 else ""
        head = {"title": {"text": place + picture(metric), "fontSize": 14, "offset": 10}}
        parts.append(panels(drawn, columns) | {"spacing": 14} | head)
        key = Series("scheme of the panel, with its interval", (), BLUE, shape=None)
        legend += legend_of([*context, key])
    return parts, legend


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
    groups = _groups(plan, results, partition)
    losses = {
        name: [_of_lines((read or {}).get(r.cell.key, ()), "loss") for r in group]
        for name, group in groups.items()
    }
    curves = _curves(plan, results, partition)
    what = f"{metric} of the global model"
    return {
        "accuracy": _over_rounds(curves, _first_up(what), Axis(picture(metric), three, most=1)),
        "loss": _over_rounds(losses, "Loss of the global model", Axis("loss (nats)", three)),
        "final": _final(groups, picture(metric)),
        "bytes": _bytes(groups),
    }


def _groups(plan: Plan, results: Sequence[Result], partition: str) -> dict[str, list[Result]]:
    """Return the finished runs of each scheme on a partition, and the reference's last."""
    names = [name for name in plan.schemes if name != CENTRALISED]
    return {
        name: [r for r in results if r.finished and r.cell.scheme == name
               and (name == CENTRALISED or r.cell.partition == partition)]
        for name in (*names, CENTRALISED)
    }  # fmt: skip


def _curves(plan: Plan, results: Sequence[Result], partition: str) -> dict[str, list[Curve]]:
    groups = _groups(plan, results, partition)
    return {name: [r.figures.curve for r in group if r.figures] for name, group in groups.items()}


def shown_names(names: Sequence[str]) -> dict[str, str]:
    """Return schemes as charts call them: of bounded length, and told apart."""
    return dict(zip(names, picture_names(names, MAX_NAME), strict=True))


def _over_rounds(
    runs: Mapping[str, Sequence[Sequence[tuple[int, float]]]], title: str, axis: Axis
) -> Chart:
    """Return a line a scheme: the mean over the seeds with its interval."""
    return lines(title, _series(runs), axis)


def _series(runs: Mapping[str, Sequence[Sequence[tuple[int, float]]]]) -> list[Series]:
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
    return series


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
        Dots("global model: mean over seeds, interval", _means(means), BLUE,
             ends=[point.interval if point else None for point in means]),
        Dots("global model: one seed", [values[name] for name in names], BLUE, small=True),
        Dots("after local training: mean",
             _means([estimate(local[name]) for name in names]), ORANGE, SHAPES[1]),
    ]  # fmt: skip
    axis = Axis(f"{metric} after the last round", three, high=1)
    return dots("After the last round", [shown_names(list(groups))[n] for n in names], series, axis)


def _bytes(groups: Groups) -> Chart:
    found = {
        name: estimate([result.finished.bytes_up for result in group if result.finished])
        for name, group in groups.items()
        if name not in (CENTRALISED, ALONE)  # these send nothing over a network
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


def _titled(chart: Chart, partition: str, paper: Paper | None) -> Chart:
    """Put the partition before a chart's title; on paper in its place: a caption says the rest."""
    place = picture(partition, MAX_NAME)
    if paper:
        return chart._replace(title=place, about="")
    return chart._replace(title=f"{place}: {chart.title}") if place else chart


def _first_up(text: str) -> str:
    return picture(text[:1].upper() + text[1:])
