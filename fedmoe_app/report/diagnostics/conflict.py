"""Conflicting updates, and what the projection of FC-MoE does about them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import FuncFormatter

from fedmoe_app.report.diagnostics.curves import draw_curves, finish_curves, start_at_zero
from fedmoe_app.report.diagnostics.maps import Scale, draw_map, draw_scale, percent, top_of
from fedmoe_app.results.values import Found, Line, diagnostic_curves, last_diagnostic

CONFLICT = "conflicting updates"
MEANING = (
    "share of members whose change has a negative dot product\n"
    "with the combined change, which contains their own"
)
KAPPA = "κ (gain in step length)"
CURVES_HEIGHT = 3.6


def draw_conflict(lines: Sequence[Line]) -> Figure | None:
    """Draw the share of conflicting updates, and κ where the scheme has it; None without.

    A member is a client that trained the expert. Its change conflicts when the dot product with
    the combined change is negative; the combined change contains the member's own.
    Above: the mean over experts per round, a line a layer. Below: the last round that has
    numbers, layers against experts.
    """
    conflict, kappa = (last_diagnostic(lines, key) for key in ("conflict", "kappa"))
    if conflict is None:
        return None
    num_layers, num_experts = conflict.values.shape
    columns = 1 if kappa is None else 2
    height = min(max(1.7, 0.32 * num_layers), 5.5) + 1.2
    width = min(max(5.2, 0.2 * num_experts), 7.5)
    figure = Figure(figsize=(width * columns, CURVES_HEIGHT + height), layout="constrained")
    parts = figure.subfigures(2, columns, squeeze=False, height_ratios=(CURVES_HEIGHT, height))
    _draw_column(parts[:, 0].flat, lines, conflict, "conflict", _conflict_scale(conflict))
    if kappa is not None:
        _draw_column(parts[:, 1].flat, lines, kappa, "kappa", _kappa_scale(kappa))
    return figure


def _conflict_scale(found: Found) -> Scale:
    top = top_of(found.values, 0.1)
    return Scale(Normalize(0, top), CONFLICT, number="{:.0f}", times=100, ticks=percent)


def _kappa_scale(found: Found) -> Scale:
    # κ is often below 1 %: decimals where they say something.
    top = top_of(found.values, 0.001)
    number = "{:z.2f}" if top < 0.1 else "{:z.0f}"
    return Scale(Normalize(0, top), KAPPA, number=number, times=100, ticks=percent)


def _draw_column(
    parts: Iterable[SubFigure], lines: Sequence[Line], found: Found, key: str, scale: Scale
) -> None:
    above, below = parts
    axes = above.subplots()
    rounds = [line for line in lines if line["round"] != 0]
    draw_curves(axes, diagnostic_curves(rounds, key), "layers")
    start_at_zero(axes)
    axes.yaxis.set_major_formatter(FuncFormatter(percent))
    meaning = f"\n{MEANING}" if key == "conflict" else ""
    finish_curves(axes, rounds, f"{scale.label}, mean over experts{meaning}", scale.label)
    _draw_last(below, found, scale)


def _draw_last(part: SubFigure, found: Found, scale: Scale) -> None:
    axes = part.subplots()
    rows = [str(layer) for layer in range(len(found.values))]
    image = draw_map(axes, found.values, rows, scale)
    title = f"{scale.label} in round {found.line['round']}"
    missing = bool(np.isnan(found.values).any())
    axes.set_title(title + ("; hatched: nobody trained it" if missing else ""), fontsize=10)
    axes.set_xlabel("expert")
    axes.set_ylabel("MoE layer")
    draw_scale(part, image, axes, scale)
