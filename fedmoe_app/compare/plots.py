"""Pictures of a comparison: accuracy over the rounds, and the final figures.

Colours are the Okabe-Ito set; marker and line style tell the schemes apart, too. Bands and bars
are 95 % Student-t intervals over the seeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from fedmoe_app.compare.plan import CENTRALISED, Plan
from fedmoe_app.compare.summary import Estimate, Result, estimate
from fedmoe_app.shown.pictures import legend_name, picture, picture_names, save

# Okabe-Ito without yellow, which is hard to see on white; the first scheme is black.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
LINES = ("-", "--", "-.", (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1)))
GREY = "#6E6E6E"
MAX_NAME = 30  # characters of a scheme or partition
MAX_COLUMNS = 3


@dataclass(frozen=True)
class _Style:
    name: str  # as the picture shows it
    colour: str
    marker: str
    line: str | tuple[int, tuple[int, ...]]


def plot_comparison(folder: Path, plan: Plan, results: Sequence[Result], metric: str) -> list[Path]:
    """Draw ``accuracy.png`` and ``final.png`` into the folder; return the paths."""
    figures = {
        "accuracy.png": draw_curves(plan, results, metric),
        "final.png": draw_final(plan, results, metric),
    }
    return [save(figure, folder / name) for name, figure in figures.items()]


def draw_curves(plan: Plan, results: Sequence[Result], metric: str) -> Figure:
    """Draw the accuracy of the global model over the rounds: a panel a partition, a line a
    scheme, the mean over the seeds with its interval."""
    columns = min(len(plan.partitions), MAX_COLUMNS)
    rows = math.ceil(len(plan.partitions) / columns)
    width = 8.0 if columns == 1 else 5.2 * columns
    figure = Figure(figsize=(width, 4.4 * rows + 0.5), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True)
    central = _of(results, CENTRALISED, None)
    # Many bands over one another would hide the lines.
    opacity = 0.13 if len(_styles(plan)) <= 4 else 0.06
    for index, axes in enumerate(panels.flat):
        if index >= len(plan.partitions):
            axes.remove()
            continue
        partition = plan.partitions[index]
        _draw_central(axes, central)
        for scheme, style in _styles(plan).items():
            _draw_curve(axes, _of(results, scheme, partition), style, opacity)
        axes.set_title(picture(partition, MAX_NAME), fontsize=11)
        axes.set_xlabel("round")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if index % columns == 0:
            axes.set_ylabel(f"global {picture(metric)}")
        _plain(axes, "y")
    _legend(figure, figure.axes, 2 * columns + 1)
    return figure


def draw_final(plan: Plan, results: Sequence[Result], metric: str) -> Figure:
    """Draw the final accuracy of each scheme with interval and single seeds, and beside it the
    local accuracy; a row of panels a partition."""
    schemes = [style.name for style in _styles(plan).values()]
    rows = len(plan.partitions)
    height = (0.32 * len(schemes) + 0.9) * rows + 0.7
    figure = Figure(figsize=(10.0, max(2.6, height)), layout="constrained")
    panels = figure.subplots(rows, 2, squeeze=False, sharey=True, sharex="col")
    central = _final(_of(results, CENTRALISED, None), local=False)
    for (left, right), partition in zip(panels, plan.partitions, strict=True):
        if (middle := estimate(list(central))) is not None:
            left.axvline(middle.mean, color=GREY, ls=":", lw=1.6, label="centralised, mean")
        for position, (scheme, style) in enumerate(_styles(plan).items()):
            of_scheme = _of(results, scheme, partition)
            _draw_dots(left, position, _final(of_scheme, local=False), style)
            _draw_dots(right, position, _final(of_scheme, local=True), style)
        left.set_yticks(range(len(schemes)), schemes)
        left.set_ylim(len(schemes) - 0.4, -0.6)
        left.set_title(picture(partition, MAX_NAME), fontsize=11, loc="left")
        for axes in (left, right):
            _plain(axes, "x")
            _within_accuracy(axes)
    panels[-1][0].set_xlabel(f"global {picture(metric)} after the last round")
    panels[-1][1].set_xlabel("local accuracy after the last round, mean over clients")
    _explain_final(panels[0][0])
    _legend(figure, [panels[0][0]], 3)
    return figure


def _styles(plan: Plan) -> Mapping[str, _Style]:
    names = [name for name in plan.schemes if name != CENTRALISED]
    shown = picture_names(names, MAX_NAME)
    return {
        name: _Style(
            shown[i], COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)], LINES[i % len(LINES)]
        )
        for i, name in enumerate(names)
    }


def _of(results: Sequence[Result], scheme: str, partition: str | None) -> list[Result]:
    """Return the finished runs of a row, of one column or all."""
    return [
        result
        for result in results
        if result.finished
        and result.cell.scheme == scheme
        and partition in (None, result.cell.partition)
    ]


def _draw_central(axes: Axes, results: Sequence[Result]) -> None:
    points = _mean_curve(results)
    if points:
        axes.plot(
            list(points), [point.mean for point in points.values()],
            ls=":", lw=1.8, color=GREY, label="centralised, mean",
        )  # fmt: skip


def _draw_curve(axes: Axes, results: Sequence[Result], style: _Style, opacity: float) -> None:
    points = _mean_curve(results)
    if not points:
        return
    rounds = list(points)
    axes.plot(
        rounds, [point.mean for point in points.values()], ls=style.line, color=style.colour,
        marker=style.marker, ms=4.5, lw=1.7, label=legend_name(style.name), zorder=3,
    )  # fmt: skip
    ends = [point.interval for point in points.values()]
    if all(end is not None for end in ends):
        # Accuracy lies within 0 and 1, the interval of few seeds need not.
        low, high = ([min(1.0, max(0.0, end[i])) for end in ends if end] for i in (0, 1))
        axes.fill_between(rounds, low, high, color=style.colour, alpha=opacity, lw=0)


def _mean_curve(results: Sequence[Result]) -> dict[int, Estimate]:
    """Return the estimate over the seeds by round."""
    by_round: dict[int, list[float]] = {}
    for result in results:
        for number, accuracy in result.figures.curve if result.figures else ():
            by_round.setdefault(number, []).append(accuracy)
    found = ((number, estimate(values)) for number, values in sorted(by_round.items()))
    return {number: point for number, point in found if point}


def _final(results: Sequence[Result], local: bool) -> list[float]:
    values = [
        result.figures.local_accuracy if local else result.figures.accuracy
        for result in results
        if result.figures
    ]
    return [value for value in values if value is not None]


def _draw_dots(axes: Axes, position: int, values: Sequence[float], style: _Style) -> None:
    middle = estimate(values)
    if middle is None:
        return
    axes.errorbar(
        middle.mean, position, xerr=middle.half_width, color=style.colour, marker=style.marker,
        ms=7, lw=1.8, capsize=3, zorder=3,
    )  # fmt: skip
    axes.plot(
        values, [position + 0.22] * len(values), ".", color=style.colour, ms=5, alpha=0.6, zorder=2
    )


def _within_accuracy(axes: Axes) -> None:
    """Cut the axis at 0 and 1, which the interval of few seeds may pass."""
    low, high = axes.get_xlim()
    axes.set_xlim(max(low, -0.02), min(high, 1.02))


def _explain_final(axes: Axes) -> None:
    """Put what the marks mean into the legend, in grey: the colours stand for schemes."""
    axes.errorbar([], [], xerr=[], color=GREY, marker="o", ms=7, lw=1.8, capsize=3,
                  label="mean over the seeds, 95% interval")  # fmt: skip
    axes.plot([], [], ".", color=GREY, ms=5, alpha=0.7, label="one seed")


def _plain(axes: Axes, grid: str) -> None:
    axes.grid(axis="x" if grid == "x" else "y", color="#DDDDDD", lw=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _legend(figure: Figure, panels: Sequence[Axes], columns: int) -> None:
    """Explain each line of the panels once, under them, and the bands last."""
    found = [
        pair for axes in panels for pair in zip(*axes.get_legend_handles_labels(), strict=True)
    ]
    by_label: dict[str, Artist] = {label: handle for handle, label in found}
    if any(isinstance(band, PolyCollection) for axes in panels for band in axes.collections):
        by_label["95% interval"] = Patch(color=GREY, alpha=0.2, lw=0)
    if by_label:
        figure.legend(
            list(by_label.values()), list(by_label), loc="outside lower center", ncols=columns,
            frameon=False, handlelength=3.2,
        )  # fmt: skip
