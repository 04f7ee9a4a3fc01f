"""What each client's update of an expert counted, in relation to equal weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from fedmoe_app.report.diagnostics.maps import DIVERGING, Scale, draw_layers, layers_size, top_of
from fedmoe_app.results.values import Line, client_names, last_diagnostic

# The scale reaches at least so far from 1: rounding must not look like structure.
LEAST_SPREAD = 0.05


def draw_weights(lines: Sequence[Line]) -> Figure | None:
    """Draw the expert weights of the last round that has them; None when there is none.

    A cell is the weight times the number of clients that trained the expert: 1 is an equal share.
    """
    found = last_diagnostic(lines, "expert_weights")  # [L, E, N]
    if found is None:
        return None
    ratios = relative_weights(found.values)  # [L, N, E]
    num_layers, num_clients, num_experts = ratios.shape
    size = layers_size(num_layers, num_clients, num_experts)
    figure = Figure(figsize=(max(size[0], 6.0), size[1]), layout="constrained")
    scale = Scale(
        weight_norm(ratios),
        "weight / equal weight",
        DIVERGING,
        ticks=lambda value, _: f"{value:g}×",
    )
    remark = draw_layers(figure, ratios, client_names(found.line, num_clients), scale)
    if np.isnan(ratios).any():
        remark += "; hatched: not trained"
    figure.suptitle(f"expert weights in round {found.line['round']}{remark}", fontsize=11)
    return figure


def weight_norm(ratios: np.ndarray) -> TwoSlopeNorm:
    """Return a scale around 1 to the farthest ratio, as far below as above, but not below 0."""
    spread = top_of(np.abs(ratios - 1), LEAST_SPREAD)
    return TwoSlopeNorm(vcenter=1, vmin=max(0.0, 1 - spread), vmax=1 + spread)


def relative_weights(weights: np.ndarray) -> np.ndarray:
    """Return weights ``[L, E, N]`` times the clients of their expert, ``[L, N, E]``.

    A client that did not train the expert has nan, and does not count.
    """
    count = np.isfinite(weights).sum(axis=-1, keepdims=True)  # [L, E, 1]
    return (weights * count).transpose(0, 2, 1)
