"""Consistency weights and routing reference of FedAlign-MoE (arXiv:2603.21276)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, SubFigure

from fedmoe_app.report.diagnostics.curves import draw_curves, finish_curves, start_at_zero
from fedmoe_app.report.diagnostics.maps import Scale, draw_layers, layers_size, percent, top_of
from fedmoe_app.results.values import (
    Found,
    Line,
    Points,
    client_curves,
    client_names,
    diagnostic,
    last_diagnostic,
    layer_curves,
)

CURVES_HEIGHT = 3.9
MIN_WIDTH = 10.5


def draw_consistency(lines: Sequence[Line]) -> Figure | None:
    """Draw ω of the last round that has it, its entropy and the distances to the reference.

    Above: ω, clients against experts, a panel a layer; a column sums to 1. Below: the entropy of
    ω over log N per round, a line a layer, and the total variation between each client's mean
    routing and p_g, a line a client. None when no round has ω.
    """
    omega = last_diagnostic(lines, "omega")
    if omega is None:
        return None
    num_layers, num_clients, num_experts = omega.values.shape
    width, height = layers_size(num_layers, num_clients, num_experts)
    size = (max(width, MIN_WIDTH), height + CURVES_HEIGHT)
    figure = Figure(figsize=size, layout="constrained")
    parts = figure.subfigures(2, 1, squeeze=False, height_ratios=(height, CURVES_HEIGHT))
    above, below = parts.flat
    _draw_omega(above, omega)
    _draw_rounds(below, [line for line in lines if line["round"] != 0])
    return figure


def relative_entropy_curves(lines: Iterable[Line]) -> dict[str, Points]:
    """Return the entropy of ω over log N per round, mean over experts, a curve a layer.

    1 is equal weights. A round of one client has no point, since log 1 is 0. An expert to which
    no client gives any probability (its column of ω is 0) does not count.
    """
    rounds = []
    for line in lines:
        entropy, omega = (diagnostic(line, key) for key in ("omega_entropy", "omega"))
        if entropy is None or omega is None or omega.shape[1] < 2:
            continue
        used = omega.sum(axis=1) > 0  # [L, E]
        relative = entropy / math.log(omega.shape[1])
        rounds.append((line["round"], np.where(used, relative, np.nan)))
    return layer_curves(rounds)


def _draw_omega(part: SubFigure, omega: Found) -> None:
    num_clients = omega.values.shape[1]
    top = top_of(omega.values, min(1.0, 2 / num_clients))
    scale = Scale(Normalize(0, top), "ω, client's share", number="{:.0f}", times=100, ticks=percent)
    remark = draw_layers(part, omega.values, client_names(omega.line, num_clients), scale)
    title = f"consistency weights ω in round {omega.line['round']}"
    equal = f"; equal weights: 1/{num_clients} = {percent(1 / num_clients)}"
    part.suptitle(title + equal + remark, fontsize=11)


def _draw_rounds(part: SubFigure, lines: Sequence[Line]) -> None:
    drawn = [
        ("entropy of ω, mean over experts", "entropy / log N  (1: equal weights)", "layers",
         relative_entropy_curves(lines)),
        ("distance of each client's routing to the reference",
         "total variation, mean over layers", "clients",
         client_curves(lines, "reference_distance")),
    ]  # fmt: skip
    present = [each for each in drawn if each[-1]]
    if not present:
        return
    panels = part.subplots(1, len(present), squeeze=False)
    for axes, (title, label, what, curves) in zip(panels.flat, present, strict=True):
        draw_curves(axes, curves, what)
        start_at_zero(axes, 1.0 if what == "layers" else None)
        finish_curves(axes, lines, title, label)
