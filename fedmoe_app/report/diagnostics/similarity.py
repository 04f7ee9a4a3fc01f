"""Pair similarities of FedAlign-MoE: S between regions, D between updates of an expert."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, SubFigure
from matplotlib.image import AxesImage

from fedmoe_app.report.diagnostics.curves import draw_curves, finish_curves
from fedmoe_app.report.diagnostics.maps import (
    DIVERGING,
    Scale,
    draw_map,
    draw_scale,
    evenly,
    thinning,
)
from fedmoe_app.report.diagnostics.values import (
    Line,
    Points,
    client_names,
    diagnostic,
    diagnostic_curves,
    mean,
)

MAX_LAYERS, MAX_EXPERTS = 2, 4
MAX_NUMBERS, MAX_LABELS = 36, 10
CURVES_HEIGHT, MAP_SIZE = 3.7, 2.65
WIDTH = 10.5
MATRICES = {"S": "similarity", "D": "agreement"}
TITLES = {"S": "S, similarity of the regions", "D": "D, agreement of the updates"}


class Pairs(NamedTuple):
    """The matrices of one round that are drawn."""

    line: Line
    matrices: dict[str, np.ndarray]  # S and D, those there are, [L, E, N, N]
    layers: list[int]
    experts: list[list[int]]  # for each layer drawn


def draw_similarity(lines: Sequence[Line]) -> Figure | None:
    """Draw S and D per round, and the matrices of a few experts in the last round that has them.

    Above: the mean over pairs of different clients and over experts, a line a layer, with the
    threshold τ of S. Below: of the first and the last layer, the experts that most clients
    trained. None when no round has a pair.
    """
    rounds = [line for line in lines if line["round"] != 0]
    curves = {name: diagnostic_curves(rounds, f"{key}_mean") for name, key in MATRICES.items()}
    curves = {name: found for name, found in curves.items() if found}
    pairs = _last_pairs(rounds)
    if not curves and pairs is None:
        return None
    heights = [CURVES_HEIGHT] if curves else []
    if pairs is not None:
        heights.append(MAP_SIZE * len(pairs.matrices) * len(pairs.layers) + 0.6)
    figure = Figure(figsize=(WIDTH, sum(heights)), layout="constrained")
    parts = list(figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights).flat)
    if curves:
        _draw_rounds(parts[0], rounds, curves)
    if pairs is not None:
        _draw_pairs(parts[-1], pairs)
    return figure


def most_trained(matrices: np.ndarray, most: int) -> list[int]:
    """Return the experts with most clients, in order; those with fewer than two are left out.

    Args:
        matrices: of one layer, ``[E, N, N]``; a client that did not train the expert has nan.
        most: how many experts at most; of equals, those with the lower index.
    """
    count = np.isfinite(np.diagonal(matrices, axis1=1, axis2=2)).sum(axis=1)  # [E]
    order = np.argsort(-count, kind="stable")[:most]
    return sorted(int(expert) for expert in order if count[expert] > 1)


def _last_pairs(lines: Sequence[Line]) -> Pairs | None:
    for line in reversed(lines):
        found = {name: diagnostic(line, key) for name, key in MATRICES.items()}
        matrices = {name: values for name, values in found.items() if values is not None}
        if not matrices:
            continue
        first = next(iter(matrices.values()))
        chosen = {layer: most_trained(first[layer], MAX_EXPERTS) for layer in range(len(first))}
        able = [layer for layer, experts in chosen.items() if experts]
        layers = [able[index] for index in evenly(len(able), MAX_LAYERS)]
        if layers:
            return Pairs(line, matrices, layers, [chosen[layer] for layer in layers])
    return None


def _draw_rounds(
    part: SubFigure, lines: Sequence[Line], curves: dict[str, dict[str, Points]]
) -> None:
    panels = part.subplots(1, len(curves), squeeze=False)
    for axes, (name, found) in zip(panels.flat, curves.items(), strict=True):
        draw_curves(axes, found, "layers")
        if name == "S":
            _draw_threshold(axes, lines)
        axes.axhline(0, color="#555555", lw=0.8)
        label = f"{name}, mean over pairs and experts"
        finish_curves(axes, lines, TITLES[name], label)


def _draw_threshold(axes: Axes, lines: Sequence[Line]) -> None:
    found = ((line["round"], diagnostic(line, "threshold")) for line in lines)
    points = [(number, float(mean(each, (0, 1)))) for number, each in found if each is not None]
    if points:
        axes.plot(*zip(*points, strict=True), ":", color="#555555", lw=1.8, marker="s", ms=3,
                  label="threshold τ")  # fmt: skip


def _draw_pairs(part: SubFigure, pairs: Pairs) -> None:
    scale = Scale(
        Normalize(-1, 1), "cosine", DIVERGING, max_numbers=MAX_NUMBERS, max_row_labels=MAX_LABELS
    )
    rows = [
        (name, layer, experts)
        for layer, experts in zip(pairs.layers, pairs.experts, strict=True)
        for name in pairs.matrices
    ]
    panels = part.subplots(len(rows), max(map(len, pairs.experts)), squeeze=False)
    for axes_row, (name, layer, experts) in zip(panels, rows, strict=True):
        for axes in axes_row[len(experts) :]:
            axes.set_visible(False)
        for axes, expert in zip(axes_row, experts, strict=False):
            image = _draw_matrix(axes, pairs.matrices[name][layer, expert], pairs.line, scale)
            axes.set_title(f"{name}, layer {layer}, expert {expert}", fontsize=9)
            axes.set_xlabel("client")
        axes_row[0].set_ylabel("client")
    draw_scale(part, image, panels.flat, scale)
    title = f"pairs of clients in round {pairs.line['round']}, experts that most clients trained"
    part.suptitle(title + ("; hatched: not trained" if _has_gaps(pairs) else ""), fontsize=11)


def _has_gaps(pairs: Pairs) -> bool:
    shown = zip(pairs.layers, pairs.experts, strict=True)
    drawn = [
        values[layer][experts] for layer, experts in shown for values in pairs.matrices.values()
    ]
    return any(bool(np.isnan(values).any()) for values in drawn)


def _draw_matrix(axes: Axes, matrix: np.ndarray, line: Line, scale: Scale) -> AxesImage:
    names = client_names(line, len(matrix))
    image = draw_map(axes, matrix, names, scale)
    step = thinning(len(names), MAX_LABELS)
    axes.set_xticks(range(0, len(names), step), names[::step])
    axes.set_aspect("equal")
    return image
