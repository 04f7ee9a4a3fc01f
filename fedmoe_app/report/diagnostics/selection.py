"""Experts that clients chose to train: HFedMoE's budget per batch, FedMoE's sub-models."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import FuncFormatter, PercentFormatter

from fedmoe_app.report.diagnostics.curves import (
    draw_curves,
    finish_curves,
    follow_data,
    start_at_zero,
)
from fedmoe_app.report.diagnostics.maps import Scale, draw_layers, layers_size, percent
from fedmoe_app.results.values import (
    Found,
    Line,
    Points,
    add_point,
    by_number,
    client_curves,
    client_names,
    to_array,
)

CURVES_HEIGHT = 3.9
CURVES_WIDTH, BOTH_WIDTH = 7.5, 10.5
# The axis of α spans at least so much above and below their middle.
LEAST_SPREAD = 0.05

_Panel = tuple[Callable[[Axes, Sequence[Line]], None], dict[str, Points]]


def draw_selection(lines: Sequence[Line]) -> Figure | None:
    """Draw how often each client trained each expert, r(c) and α per round, where there are such.

    Above: the share of the client's optimiser steps in the last round in which the expert was
    trained, a panel a layer; left out when no client had a budget or a choice. Below: r(c), the
    share of the batch's expert importance that the chosen experts hold, and α, the weight of the
    client's gate. None when there is nothing of all this.
    """
    rounds = [line for line in lines if line["round"] != 0]
    chosen = any(_chooses(client) for line in rounds for client in line["clients"])
    trained = _last_trained(rounds) if chosen else None
    panels: list[_Panel] = [
        (_finish_ratio, ratio_curves(rounds)),
        (_finish_gates, client_curves(rounds, "gate_weights")),
    ]
    panels = [panel for panel in panels if panel[1]]
    if trained is None and not panels:
        return None
    least = BOTH_WIDTH if len(panels) > 1 else CURVES_WIDTH
    width, height = (least, 0.0) if trained is None else _size(trained.values)
    heights = ([height] if trained else []) + ([CURVES_HEIGHT] if panels else [])
    figure = Figure(figsize=(max(width, least), sum(heights)), layout="constrained")
    parts = list(figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights).flat)
    if trained is not None:
        _draw_trained(parts[0], trained)
    if panels:
        _draw_rounds(parts[-1], rounds, panels)
    return figure


def trained_shares(line: Line) -> np.ndarray | None:
    """Return trained steps over all steps ``[L, N, E]``; nan for a client without steps.

    None when the round does not say which experts were trained, or how many steps there were.
    """
    trained = to_array((line.get("routing") or {}).get("trained"))  # [N, L, E]
    clients = line.get("clients") or []
    if trained.ndim != 3 or len(trained) != len(clients):
        return None
    steps = np.array([client.get("num_steps") or 0 for client in clients], dtype=float)
    steps = np.where(steps > 0, steps, np.nan)[:, None, None]  # [N, 1, 1]
    shares = (trained / steps).transpose(1, 0, 2)  # [L, N, E]
    return shares if np.isfinite(shares).any() else None


def ratio_curves(lines: Iterable[Line]) -> dict[str, Points]:
    """Return r(c) per round, a curve a client."""
    curves: dict[str, Points] = {}
    for line in lines:
        for client in line["clients"]:
            ratio = client.get("selection_ratio")
            add_point(curves, f"client {client['client']}", line["round"], ratio)
    return by_number(curves)


def _chooses(client: dict[str, object]) -> bool:
    return any(client.get(key) is not None for key in ("selection_ratio", "expert_budget"))


def _last_trained(lines: Sequence[Line]) -> Found | None:
    for line in reversed(lines):
        shares = trained_shares(line)
        if shares is not None:
            return Found(line, shares)
    return None


def _size(shares: np.ndarray) -> tuple[float, float]:
    num_layers, num_clients, num_experts = shares.shape
    return layers_size(num_layers, num_clients, num_experts)


def _draw_trained(part: SubFigure, found: Found) -> None:
    names = client_names(found.line, found.values.shape[1])
    budgets = [client.get("expert_budget") for client in found.line["clients"]]
    known = any(budget is not None for budget in budgets)
    rows = [
        name if budget is None else f"{name} ({budget:g})"
        for name, budget in zip(names, budgets, strict=True)
    ]
    label = "share of the client's optimiser steps"
    scale = Scale(Normalize(0, 1), label, number="{:.0f}", times=100, ticks=percent)
    axis = "client (expert budget)" if known else "client"
    remark = draw_layers(part, found.values, rows, scale, axis)
    if np.isnan(found.values).any():
        remark += "; hatched: no optimiser step"
    part.suptitle(f"experts trained in round {found.line['round']}{remark}", fontsize=11)


def _draw_rounds(part: SubFigure, lines: Sequence[Line], panels: Sequence[_Panel]) -> None:
    # A client has one colour in both panels.
    names = list(
        by_number({name: points for _, curves in panels for name, points in curves.items()})
    )
    drawn = part.subplots(1, len(panels), squeeze=False)
    for axes, (finish, curves) in zip(drawn.flat, panels, strict=True):
        draw_curves(axes, curves, "clients", names)
        finish(axes, lines)


def _finish_ratio(axes: Axes, lines: Sequence[Line]) -> None:
    start_at_zero(axes, 1.0)
    axes.yaxis.set_major_formatter(FuncFormatter(percent))
    title = "r(c), importance held by the chosen experts"
    finish_curves(axes, lines, title, "r(c), share of importance")


def _finish_gates(axes: Axes, lines: Sequence[Line]) -> None:
    follow_data(axes, LEAST_SPREAD)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    finish_curves(axes, lines, "α, weight of each client's gate", "α, mean over layers")
