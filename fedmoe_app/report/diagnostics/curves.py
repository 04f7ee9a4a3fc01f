"""Curves over rounds: a line for each layer or client, or a band where they are many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation

from fedmoe_app.results.values import Line, Points
from fedmoe_app.shown.pictures import legend_name, picture

# Okabe-Ito without its yellow, which is too light for a line on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
WIDTH, PERIOD = 1.8, 14.0  # of a line and of its dashes, in points
LEAST_DRAWN = 0.5  # of a period
MARKER, LARGER = 3.2, 3.6  # of the last curve, and what the first may have more, in points
# Up to so many curves get a line each.
MAX_LINES = 12
LIGHT, RED = "#BBBBBB", "#CC3311"
FAILED = "failed round"
POINTS_PER_INCH = 72


def draw_curves(
    axes: Axes, curves: Mapping[str, Points], what: str, names: Sequence[str] | None = None
) -> None:
    """Draw a line for each curve, or with more than ``MAX_LINES`` their median and range.

    Args:
        axes: where to draw.
        curves: points (round, value) by name.
        what: what the curves are, in the plural ("layers"), for the legend of the band.
        names: the curves of all panels that share colours; None means those drawn here.
    """
    names = list(curves) if names is None else names
    if len(names) > MAX_LINES:
        _draw_band(axes, curves, what)
        return
    for name, points in curves.items():
        style = line_style(names.index(name), len(names))
        label = legend_name(picture(name))
        axes.plot(*zip(*points, strict=True), **style, label=label, clip_on=False, zorder=3)


def line_style(index: int, count: int) -> dict[str, Any]:
    """Return colour, dashes and marker of a curve, so that equal curves do not hide each other.

    A later curve is drawn over the earlier ones. A shorter part of each period of its dashes is
    drawn, so that equal curves show all their colours in turn, and its markers are smaller. No
    curve is dotted: dots are for lines drawn beside the curves.
    """
    place = index / max(count - 1, 1)  # 0: first, 1: last
    drawn = PERIOD * (1 - (1 - LEAST_DRAWN) * place)
    dashes = (drawn / WIDTH, (PERIOD - drawn) / WIDTH)  # in line widths
    # A few curves take steps of a half; many share what there is.
    step = (count - 1 - index) * min(0.5, 1 / max(count - 1, 1))
    return {
        "color": COLOURS[index % len(COLOURS)],
        "linestyle": "solid" if index == 0 else (0, dashes),
        "linewidth": WIDTH,
        "marker": "o",
        "markersize": MARKER + step * LARGER,
    }


def _draw_band(axes: Axes, curves: Mapping[str, Points], what: str) -> None:
    low, middle, high = (np.array(quantiles(curves, share)) for share in (0.0, 0.5, 1.0))
    rounds = middle[:, 0]
    # A filled area of a single round has no width; the lines show its range.
    axes.vlines(rounds, low[:, 1], high[:, 1], color=COLOURS[0], alpha=0.35, lw=1)
    axes.fill_between(rounds, low[:, 1], high[:, 1], color=COLOURS[0], alpha=0.2, lw=0,
                      label=f"lowest to highest of {len(curves)} {what}")  # fmt: skip
    axes.plot(rounds, middle[:, 1], "-", color=COLOURS[0], lw=1.8, marker="o", ms=3.5,
              label="median", clip_on=False, zorder=3)  # fmt: skip


def quantiles(curves: Mapping[str, Points], share: float) -> Points:
    """Return per round the quantile ``share`` (0 to 1) of the curves that have a point there."""
    by_round: dict[int, list[float]] = {}
    for points in curves.values():
        for number, value in points:
            by_round.setdefault(number, []).append(value)
    return [(number, float(np.quantile(by_round[number], share))) for number in sorted(by_round)]


def finish_curves(axes: Axes, lines: Sequence[Line], title: str, label: str) -> None:
    """Set the title and the labels, mark failed rounds and explain the lines under the axes."""
    _mark_failed(axes, lines)
    axes.set_title(title, fontsize=10)
    axes.set_xlim(lines[0]["round"] - 0.6, lines[-1]["round"] + 0.6)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12, min_n_ticks=1))
    axes.set_xlabel("round")
    axes.set_ylabel(label)
    axes.tick_params(labelsize=8)
    axes.grid(axis="y", color="#DDDDDD", lw=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    _explain(axes)


def start_at_zero(axes: Axes, top: float | None = None) -> None:
    """Let the vertical axis start at 0 and end a little above ``top`` or the highest point."""
    highest = axes.dataLim.y1 if top is None else top
    axes.set_ylim(0, 1.06 * highest if highest > 0 else 1)


def follow_data(axes: Axes, least: float) -> None:
    """Let the vertical axis follow the curves, and span at least ``least`` of their middle.

    Rounding would look like structure on a tighter axis. All values are at least 0.
    """
    low, high = axes.dataLim.y0, axes.dataLim.y1
    middle = (low + high) / 2
    half = max(0.55 * (high - low), least * middle) or 1.0
    axes.set_ylim(max(0.0, middle - half), middle + half)


def _mark_failed(axes: Axes, lines: Sequence[Line]) -> None:
    failed = [line["round"] for line in lines if line.get("status", "ok") != "ok"]
    for position, number in enumerate(failed):
        name = FAILED if position == 0 else None
        axes.axvspan(number - 0.5, number + 0.5, color=RED, alpha=0.13, lw=0, label=name)


def _explain(axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if not handles:
        return
    columns = min(len(labels), 2 if max(map(len, labels)) > 16 else 4)
    figure = axes.get_figure(root=True)
    assert figure is not None
    # Under the x label, at a distance that does not depend on the height of the axes.
    below = ScaledTranslation(0, -36 / POINTS_PER_INCH, figure.dpi_scale_trans)
    axes.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=columns,
                bbox_transform=axes.transAxes + below, borderaxespad=0, frameon=False,
                handlelength=3.2, fontsize=8)  # fmt: skip
