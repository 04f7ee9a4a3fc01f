"""Pair similarities of FedAlign-MoE: S between regions, D between updates of an expert."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from fedmoe_app.report.diagnostics.curves import (
    MAX_LINES,
    draw_curves,
    finish_curves,
    line_style,
    quantiles,
)
from fedmoe_app.report.diagnostics.pairs import MATRICES, draw_pairs, last_pairs, pairs_height
from fedmoe_app.results.values import Line, Points, diagnostic, diagnostic_curves, layer_curves

CURVES_HEIGHT = 3.9
WIDTH = 10.5
TITLES = {
    "S": "S, similarity of the regions, mean over experts",
    "D": "D, agreement of the updates, mean over experts",
}
NOTE = "S leaves out i = j; the mean and the deviation in τ include it"
GREY = "#555555"
DOTTED: Mapping[str, Any] = MappingProxyType(
    {
        "linestyle": ":",
        "linewidth": 1.6,
        "marker": "s",
        "markersize": 3.5,
        "markerfacecolor": "white",
    }
)


def draw_similarity(lines: Sequence[Line]) -> Figure | None:
    """Draw S and D per round, and the matrices of a few experts in the last round that has them.

    Above: the mean over pairs of different clients and over experts, a line a layer, with the
    threshold τ of S, dotted. Below: of the first and the last layer, the experts that most
    clients trained. None when no round has a pair.
    """
    rounds = [line for line in lines if line["round"] != 0]
    curves = {name: diagnostic_curves(rounds, f"{key}_mean") for name, key in MATRICES.items()}
    curves = {name: found for name, found in curves.items() if found}
    pairs = last_pairs(rounds)
    if not curves and pairs is None:
        return None
    heights = [CURVES_HEIGHT] if curves else []
    if pairs is not None:
        heights.append(pairs_height(pairs))
    figure = Figure(figsize=(WIDTH, sum(heights)), layout="constrained")
    parts = list(figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights).flat)
    if curves:
        _draw_rounds(parts[0], rounds, curves)
    if pairs is not None:
        draw_pairs(parts[-1], pairs)
    return figure


def threshold_curves(lines: Iterable[Line]) -> dict[str, Points]:
    """Return τ per round, mean over the experts that the mean of S counts, a curve a layer.

    An expert of one client has a τ, but no pair.
    """
    rounds = []
    for line in lines:
        threshold, similarity = (diagnostic(line, key) for key in ("threshold", "similarity_mean"))
        if threshold is not None and similarity is not None:
            rounds.append((line["round"], np.where(np.isfinite(similarity), threshold, np.nan)))
    return layer_curves(rounds)


def fixed_threshold(lines: Iterable[Line]) -> float | None:
    """Return τ where it is the same for all experts of all rounds, and so was given."""
    found = [values for line in lines if (values := diagnostic(line, "threshold")) is not None]
    given = [float(value) for each in found for value in each[np.isfinite(each)]]
    return given[0] if len(given) > 1 and len(set(given)) == 1 else None


def _draw_rounds(
    part: SubFigure, lines: Sequence[Line], curves: dict[str, dict[str, Points]]
) -> None:
    panels = part.subplots(1, len(curves), squeeze=False)
    for axes, (name, found) in zip(panels.flat, curves.items(), strict=True):
        draw_curves(axes, found, "layers")
        note = _draw_threshold(axes, lines, list(found)) if name == "S" else ""
        axes.axhline(0, color=GREY, lw=0.8)
        label = f"{name}, mean over pairs i ≠ j"
        finish_curves(axes, lines, TITLES[name] + note, label)


def _draw_threshold(axes: Axes, lines: Sequence[Line], names: Sequence[str]) -> str:
    """Draw τ beside the curves ``names`` of S; return a line for the title."""
    curves = threshold_curves(lines)
    fixed = fixed_threshold(lines)
    if fixed is not None:
        axes.axhline(fixed, linestyle=":", color=GREY, lw=1.8, label="threshold τ, fixed")
        return ""
    if not curves:
        return ""
    if len(names) > MAX_LINES:
        points = quantiles(curves, 0.5)
        axes.plot(*zip(*points, strict=True), ":", color=GREY, lw=1.8, label="threshold τ, median")
    else:
        _draw_layer_thresholds(axes, curves, names)
    return f"\n{NOTE}"


def _draw_layer_thresholds(axes: Axes, curves: Mapping[str, Points], names: Sequence[str]) -> None:
    for name, points in curves.items():
        colour = line_style(names.index(name), len(names))["color"]
        axes.plot(*zip(*points, strict=True), **DOTTED, color=colour)
    axes.plot([], [], **DOTTED, color=GREY, label="threshold τ of the layer")
