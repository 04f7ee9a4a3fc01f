"""Picture files of a run: the charts of its page, and the maps of the last round."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from fedmoe_app.report.charts import Chart, Spec
from fedmoe_app.report.cubes import EXPERT, LAYER, ROUND, Axis, Cube, evenly
from fedmoe_app.report.files import (
    MAX_COLUMNS,
    WIDTH,
    beside,
    panels,
    picture_of,
    titled,
    write_pictures,
)
from fedmoe_app.report.heat import Map, equal_use, file_map, matrix, scale_of
from fedmoe_app.report.maps import DIAGNOSTICS, ROUTING, cubes_of
from fedmoe_app.report.paper import Paper
from fedmoe_app.report.run_charts import charts_of, diagnostic_charts
from fedmoe_app.results.folder import ResultsError, read_metrics
from fedmoe_app.results.values import Line

MAX_PANELS = 8
PAIR_LAYERS, PAIR_EXPERTS = 2, 4


class File(NamedTuple):
    """What one picture file shows: charts in a row, and heat maps of the last round."""

    charts: tuple[str, ...] = ()
    maps: tuple[str, ...] = ()


FILES: Mapping[str, File] = MappingProxyType({
    "accuracy": File(("accuracy", "loss")),
    "bytes": File(("bytes",)),
    "routing": File(maps=("routing-clients",)),
    "conflict": File(("conflict-curves", "kappa-curves"), ("conflict", "kappa")),
    "consistency": File(("entropy", "distance"), ("omega",)),
    "similarity": File(("similarity-curves", "agreement-curves"), ("similarity", "agreement")),
    "selection": File(("ratio", "gates"), ("trained",)),
    "weights": File(maps=("expert-weights",)),
})  # fmt: skip


def plot_run(
    folder: Path, kinds: Sequence[str] = ("png",), paper: Paper | None = None
) -> list[Path]:
    """Draw ``accuracy.png``, ``bytes.png``, ``routing.png`` and the scheme's diagnostics.

    They are written into the result folder. A picture for which the run has no numbers (bytes
    and routing before round 1, diagnostics that the scheme does not have) is left out.

    Args:
        folder: of the run.
        kinds: ``png``, ``svg``, ``pdf``: a file of each for each picture.
        paper: the width on paper, which is in the files' names, too; None for that of a screen.

    Returns:
        the paths of the files; none, with a warning in the log, where nothing can be drawn here:
        a run that is over must not fail for its pictures.

    Raises:
        ResultsError: when the folder has no metrics.
    """
    lines = read_metrics(folder)
    if not lines:
        raise ResultsError(f"{folder}: metrics.jsonl is empty; there is nothing to draw yet")
    specs = pictures_of(lines, paper)
    end = f"-{paper.name}" if paper else ""
    files = {folder / f"{name}{end}.{kind}": spec for name, spec in specs.items() for kind in kinds}
    return write_pictures(files, paper.points if paper else None)


def pictures_of(lines: Sequence[Line], paper: Paper | None = None) -> dict[str, Spec]:
    """Return the picture of each of ``FILES`` that the run has numbers for."""
    maps_a_row = paper.maps if paper else MAX_COLUMNS
    metric = next((str(line["metric"]) for line in lines if line.get("metric")), "accuracy")
    charts = charts_of(lines, metric) | diagnostic_charts(lines)
    cubes = cubes_of(lines)
    maps = {name: each for name, each in ({**ROUTING, **DIAGNOSTICS}).items() if each.cube in cubes}
    if not any(_chooses(client) for line in lines for client in line["clients"]):
        maps.pop("trained", None)  # every client trained every expert that its tokens came to
    budgets = {
        str(client["client"]): client["expert_budget"]
        for line in lines for client in line["clients"] if client.get("expert_budget") is not None
    }  # fmt: skip
    found = {}
    for name, file in FILES.items():
        drawn = [charts[chart] for chart in file.charts if chart in charts and charts[chart].spec]
        parts = _rows_of(drawn, paper)
        shown = [maps[each] for each in file.maps if each in maps]
        single = [each for each in shown if each.rows == LAYER]
        if single:
            all_layers = [_panels_of(each, cubes[each.cube], {}, maps_a_row) for each in single]
            parts.append(panels(all_layers, 1 if paper else MAX_COLUMNS))
        parts += [
            _panels_of(
                each, cubes[each.cube], budgets if each.cube == "trained" else {}, maps_a_row
            )
            for each in shown if each not in single and any(_places(each, cubes[each.cube]))
        ]  # fmt: skip
        if parts:
            legend = [entry for chart in drawn for entry in chart.legend]
            pixels = paper.legend if paper else None
            found[name] = picture_of(parts, legend, len(drawn), pixels)
    return found


def _rows_of(charts: Sequence[Chart], paper: Paper | None) -> list[Spec]:
    """Return charts beside each other, on paper as many in a row as have room."""
    if not charts or paper is None:
        return [beside(charts)] if charts else []
    most = min(len(charts), paper.charts)
    width = paper.chart_width(most)
    return [beside(charts[i : i + most], width) for i in range(0, len(charts), most)]


def _chooses(client: Mapping[str, object]) -> bool:
    return any(client.get(key) is not None for key in ("selection_ratio", "expert_budget"))


def _panels_of(each: Map, cube: Cube, budgets: Mapping[str, float], columns: int) -> Spec:
    """Return a map in the last round that is no sum: a panel a layer, or one of all layers.

    Args:
        each: the map.
        cube: its numbers.
        budgets: experts that a client, by its name, may train; shown beside the name.
        columns: panels in a row.
    """
    axes = {axis.name: axis for axis in cube.axes}
    places = list(_places(each, cube))
    shown = [matrix(cube, each.rows, each.columns, **place) for place in places]
    scale = scale_of(each, np.array(shown), 1, 2)
    first_of_last_row = (len(places) - 1) // columns * columns
    drawn = []
    for number, (place, values) in enumerate(zip(places, shown, strict=True)):
        names = [axes[name].said(axes[name].labels[at]) for name, at in place.items()
                 if name != ROUND]  # fmt: skip
        rows, values = _without_empty(_with_budgets(axes[each.rows], budgets), values)
        legend = number == first_of_last_row
        title = ", ".join(names)
        drawn.append(file_map(each, title, rows, axes[each.columns], values, scale, legend))
    grid = panels(drawn, columns)
    about = f"{each.title}, round {axes[ROUND].labels[places[0][ROUND]]}"
    if each.cube == "routing":
        about += f"; equal use: {equal_use(len(axes[EXPERT].labels))}"
    if EXPERT not in places[0] and LAYER in places[0] and len(places) < len(axes[LAYER].labels):
        about += f"; {len(places)} of {len(axes[LAYER].labels)} layers"
    return grid | {
        "title": titled(about, each.about, 2 * WIDTH * columns / MAX_COLUMNS) | {"fontSize": 14}
    }


def _with_budgets(rows: Axis, budgets: Mapping[str, float]) -> Axis:
    if not budgets:
        return rows
    named = (f"{name} ({budgets[name]:g})" if name in budgets else name for name in rows.labels)
    return Axis(f"{rows.name} (expert budget)", tuple(named))


def _without_empty(rows: Axis, values: np.ndarray) -> tuple[Axis, np.ndarray]:
    """Leave out the rows of clients that were not in the round."""
    kept = np.flatnonzero(np.isfinite(values).any(axis=1))
    kept = kept if kept.size else np.arange(len(values))
    return Axis(rows.name, tuple(rows.labels[i] for i in kept)), values[kept]


def _places(each: Map, cube: Cube) -> Iterator[dict[str, int]]:
    """Yield where on the other axes the panels stand: none where no expert has two clients."""
    axes = {axis.name: axis for axis in cube.axes}
    last = max(i for i, label in enumerate(axes[ROUND].labels) if label.isdigit())
    start = {ROUND: last}
    if LAYER in (each.rows, each.columns):
        yield start
        return
    layers = len(axes[LAYER].labels)
    if EXPERT in (each.rows, each.columns):
        for layer in evenly(layers, MAX_PANELS):
            yield start | {LAYER: layer}
        return
    chosen = {layer: most_trained(cube.values[last, :, :, layer], PAIR_EXPERTS)
              for layer in range(layers)}  # fmt: skip
    able = [layer for layer, experts in chosen.items() if experts]
    for layer in (able[index] for index in evenly(len(able), PAIR_LAYERS)):
        for expert in chosen[layer]:
            yield start | {LAYER: layer, EXPERT: expert}


def most_trained(matrices: np.ndarray, most: int) -> list[int]:
    """Return the experts with most clients, in order; those with fewer than two are left out.

    Args:
        matrices: of one layer, ``[N, N, E]``; a client that did not train the expert has nan.
        most: how many experts at most; of equals, those with the lower index.
    """
    count = np.isfinite(np.diagonal(matrices)).sum(axis=1)  # [E]
    order = np.argsort(-count, kind="stable")[:most]
    return sorted(int(expert) for expert in order if count[expert] > 1)
