"""Heat maps: one map, or a panel a layer of clients against experts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import FigureBase
from matplotlib.image import AxesImage
from matplotlib.ticker import FuncFormatter

from fedmoe_app.shown.pictures import picture

SEQUENTIAL = "cividis"
DIVERGING = "PuOr_r"  # violet below the centre, orange above; safe for colour-vision deficiency
MAX_COLUMNS = 4
MAX_PANELS = 8
# Up to so many cells a map, the value is written into each.
MAX_NUMBERS = 80
MANY_CELLS = 500
# A cosine may be above 1 by so much.
ROUNDING = 1e-6
MAX_EXPERT_LABELS, MAX_ROW_LABELS = 16, 25


@dataclass(frozen=True)
class Scale:
    """How values become colours, and what the colour bar says."""

    norm: Normalize
    label: str
    colours: str = SEQUENTIAL
    number: str = "{:z.2f}"  # of a value in its cell; z: no minus before zero
    times: float = 1.0  # factor of the number in a cell: 100 for per cent
    ticks: Callable[[float, int], str] | None = None  # writes a tick of the colour bar
    max_numbers: int = MAX_NUMBERS
    max_row_labels: int = MAX_ROW_LABELS


def evenly(count: int, most: int) -> list[int]:
    """Return at most ``most`` of the indices below ``count``, the first and the last included."""
    if count <= most:
        return list(range(count))
    return sorted({round(index * (count - 1) / (most - 1)) for index in range(most)})


def top_of(values: np.ndarray, least: float) -> float:
    """Return the largest value, or with many cells one that one outlier does not set."""
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return least
    most = np.quantile(finite, 0.995) if finite.size > MANY_CELLS else finite.max()
    return max(float(most), least)


def draw_map(axes: Axes, values: np.ndarray, rows: Sequence[str], scale: Scale) -> AxesImage:
    """Draw values ``[R, C]``; nan shows a hatched background.

    Args:
        axes: where to draw.
        values: one row for each name in ``rows``.
        rows: names of the rows; thinned out where they are many.
        scale: colours.
    """
    image = axes.imshow(
        values, cmap=scale.colours, norm=scale.norm, aspect="auto", interpolation="nearest"
    )
    axes.patch.set(facecolor="#EDEDED", hatch="/////", edgecolor="#A8A8A8", linewidth=0)
    axes.set_xticks(range(0, values.shape[1], thinning(values.shape[1], MAX_EXPERT_LABELS)))
    step = thinning(len(rows), scale.max_row_labels)
    axes.set_yticks(range(0, len(rows), step), list(map(picture, rows[::step])))
    axes.tick_params(length=2, labelsize=8)
    if values.size <= scale.max_numbers:
        _write_numbers(axes, image, values, scale)
    return image


def draw_scale(
    figure: FigureBase, image: AxesImage, panels: Axes | Iterable[Axes], scale: Scale
) -> None:
    """Draw the colour bar of the panels; an arrow where values lie beyond its ends."""
    axes = [panels] if isinstance(panels, Axes) else list(panels)
    extend = _beyond(axes, scale.norm)
    bar = figure.colorbar(image, ax=axes, fraction=0.05, aspect=30, pad=0.02, extend=extend)
    bar.set_label(scale.label, fontsize=9)
    bar.ax.tick_params(labelsize=8)
    if scale.ticks is not None:
        bar.ax.yaxis.set_major_formatter(FuncFormatter(scale.ticks))


def draw_layers(
    figure: FigureBase, values: np.ndarray, rows: Sequence[str], scale: Scale, label: str = "client"
) -> str:
    """Draw values ``[L, N, E]`` as a panel a layer.

    Args:
        figure: an empty figure or part of one.
        values: nan where there is no number.
        rows: names of the N clients.
        scale: colours, the same for all panels.
        label: of the vertical axis.

    Returns:
        A remark for the title on layers left out; empty when all are shown.
    """
    layers = evenly(len(values), MAX_PANELS)
    columns, row_count = grid(len(layers))
    panels = figure.subplots(row_count, columns, squeeze=False)
    for index, axes in enumerate(panels.flat):
        if index >= len(layers):
            axes.set_visible(False)
            continue
        image = draw_map(axes, values[layers[index]], rows, scale)
        axes.set_title(f"MoE layer {layers[index]}", fontsize=10)
        if index % columns == 0:
            axes.set_ylabel(label)
        if index + columns >= len(layers):
            axes.set_xlabel("expert")
    draw_scale(figure, image, panels.flat, scale)
    return "" if len(layers) == len(values) else f"; {len(layers)} of {len(values)} layers shown"


def grid(count: int) -> tuple[int, int]:
    """Return columns and rows for so many panels."""
    columns = max(1, min(count, MAX_COLUMNS))
    return columns, math.ceil(count / columns)


def layers_size(num_layers: int, num_clients: int, num_experts: int) -> tuple[float, float]:
    """Return width and height in inches that ``draw_layers`` needs."""
    columns, rows = grid(min(num_layers, MAX_PANELS))
    width = min(max(2.3, 0.36 * num_experts), 6.5 if columns < 3 else 4.0)
    height = min(max(1.9, 0.3 * num_clients), 6.0 if rows == 1 else 4.5)
    return width * columns + 1.8, (height + 0.65) * rows + 0.6


def percent(value: float, _: int = 0) -> str:
    """Write a share as a percentage of at most three digits."""
    return f"{100 * value:.3g}%"


def thinning(count: int, most: int) -> int:
    """Return the step that leaves at most ``most`` of ``count`` labels (up to 100 times that)."""
    return next((step for step in (1, 2, 4, 5, 10, 20, 50) if count <= step * most), 100)


def _beyond(panels: Iterable[Axes], norm: Normalize) -> str:
    """Return at which ends of the scale values are left out, in matplotlib's words."""
    if norm.vmin is None or norm.vmax is None:
        return "neither"
    images = [image for axes in panels for image in axes.images]
    values = [np.asarray(image.get_array(), dtype=float).ravel() for image in images]
    shown = np.concatenate([*values, [norm.vmin, norm.vmax]])
    below = bool(np.nanmin(shown) < norm.vmin - ROUNDING)
    above = bool(np.nanmax(shown) > norm.vmax + ROUNDING)
    return {(True, False): "min", (False, True): "max", (True, True): "both"}.get(
        (below, above), "neither"
    )


def _write_numbers(axes: Axes, image: AxesImage, values: np.ndarray, scale: Scale) -> None:
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            red, green, blue, _ = image.to_rgba(value)
            light = 0.299 * red + 0.587 * green + 0.114 * blue
            axes.text(column, row, scale.number.format(scale.times * value), ha="center",
                      va="center", color="black" if light > 0.5 else "white",
                      fontsize=7)  # fmt: skip
