"""The routing heat map: clients against experts, a panel a layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import FuncFormatter, PercentFormatter

from fedmoe_app.shown.pictures import picture

MAX_COLUMNS = 4
# Up to so many cells a panel, the percentage is written into each.
MAX_NUMBERS = 80
MANY_CELLS = 500
COLOURS = "cividis"


def draw_routing(lines: Sequence[dict[str, Any]]) -> Figure | None:
    """Draw the last round that has a routing histogram; None when there is none.

    A cell is the share of a client's routed tokens that an expert got, so a row sums to 100 %
    and equal use is 1/E.
    """
    routed = [line for line in lines if (line.get("routing") or {}).get("count")]
    if not routed:
        return None
    line = routed[-1]
    shares = routing_shares(np.asarray(line["routing"]["count"]))  # [N, L, E]
    names = [str(client["client"]) for client in line["clients"]]
    if len(names) != len(shares):
        names = [str(index) for index in range(len(shares))]
    return _draw(shares, names, f"routing in round {line['round']}")


def routing_shares(count: np.ndarray) -> np.ndarray:
    """Return counts ``[N, L, E]`` as shares of their sum over E; no tokens give nan."""
    total = count.sum(axis=-1, keepdims=True)  # [N, L, 1]
    return np.divide(count, total, out=np.full(count.shape, np.nan), where=total > 0)


def _draw(shares: np.ndarray, names: list[str], title: str) -> Figure:
    num_clients, num_layers, num_experts = shares.shape
    columns = min(num_layers, MAX_COLUMNS)
    rows = math.ceil(num_layers / columns)
    width = min(max(2.3, 0.36 * num_experts), 6.5 if columns < 3 else 4.0)
    height = min(max(1.9, 0.3 * num_clients), 7.0)
    size = (width * columns + 1.8, (height + 0.65) * rows + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    top = _top_of_scale(shares)
    for index, axes in enumerate(panels.flat):
        if index >= num_layers:
            axes.set_visible(False)
            continue
        image = _draw_layer(axes, shares[:, index], names, top)
        axes.set_title(f"MoE layer {index}", fontsize=10)
        if index % columns == 0:
            axes.set_ylabel("client")
        if index + columns >= num_layers:
            axes.set_xlabel("expert")
    extend = "max" if np.nanmax(shares, initial=0.0) > top else "neither"
    scale = figure.colorbar(image, ax=panels, fraction=0.04, aspect=25, pad=0.02, extend=extend)
    _mark_scale(scale, num_experts)
    figure.suptitle(title, fontsize=11)
    return figure


def _top_of_scale(shares: np.ndarray) -> float:
    """Return the largest share, or with many cells one that one outlier does not set."""
    finite = shares[np.isfinite(shares)]
    if finite.size == 0:
        return 1.0
    most = float(np.quantile(finite, 0.995) if finite.size > MANY_CELLS else finite.max())
    return max(most, 2 / shares.shape[-1])


def _draw_layer(axes: Axes, shares: np.ndarray, names: list[str], top: float) -> AxesImage:
    num_clients, num_experts = shares.shape
    image = axes.imshow(shares, cmap=COLOURS, vmin=0, vmax=top, aspect="auto")
    # A client without tokens in this layer shows this background.
    axes.set_facecolor("#E6E6E6")
    _set_ticks(axes, num_experts, names)
    axes.tick_params(length=2, labelsize=8)
    if num_clients * num_experts <= MAX_NUMBERS:
        _write_numbers(axes, shares, top)
    return image


def _set_ticks(axes: Axes, num_experts: int, names: list[str]) -> None:
    """Label every expert and client, or every second, fifth, ... where they are many."""
    step = _step(num_experts, 16)
    axes.set_xticks(range(0, num_experts, step))
    step = _step(len(names), 25)
    axes.set_yticks(range(0, len(names), step), list(map(picture, names[::step])))


def _step(count: int, most: int) -> int:
    return next((step for step in (1, 2, 4, 5, 10, 20, 50) if count <= step * most), 100)


def _write_numbers(axes: Axes, shares: np.ndarray, top: float) -> None:
    for (client, expert), share in np.ndenumerate(shares):
        if np.isfinite(share):
            colour = "black" if share > 0.55 * top else "white"
            text = f"{100 * share:.0f}"
            axes.text(expert, client, text, ha="center", va="center", color=colour, fontsize=7)


def _mark_scale(scale: Colorbar, num_experts: int) -> None:
    """Write percentages on the colour scale, and mark equal use, 1/E."""
    uniform = 1 / num_experts
    scale.ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    scale.set_label("share of the client's routed tokens")
    scale.ax.axhline(uniform, color="white", lw=3)
    scale.ax.axhline(uniform, color="#D55E00", lw=1.6)
    mark = scale.ax.secondary_yaxis("left")
    mark.set_yticks([uniform])
    mark.yaxis.set_major_formatter(FuncFormatter(lambda *_: f"1/{num_experts}"))
    mark.tick_params(labelsize=8, colors="#D55E00", length=2)
