"""Pictures of a run: accuracy and loss, bytes, and where the clients route their tokens.

Figures are drawn without pyplot, whose state is global. Colours are the Okabe-Ito set and
cividis, which readers with a colour-vision deficiency can tell apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from fedmoe_app.report.diagnostics import DIAGNOSTIC_DRAWINGS
from fedmoe_app.report.heatmap import draw_routing
from fedmoe_app.results.folder import ResultsError, read_metrics
from fedmoe_app.results.table import human_bytes
from fedmoe_app.shown.pictures import picture, save

Line = dict[str, Any]

BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
GREY, RED = "#7F7F7F", "#CC3311"
# Up to so many clients get a line each, more of them a band.
MAX_LINES = 12
FAILED = "failed round"


def plot_run(folder: Path) -> list[Path]:
    """Draw ``accuracy.png``, ``bytes.png``, ``routing.png`` and the scheme's diagnostics.

    They are written into the result folder. A picture for which the run has no numbers (bytes
    and routing before round 1, diagnostics that the scheme does not have) is left out. Returns
    the paths of those that were drawn.

    Raises:
        ResultsError: when the folder has no metrics.
    """
    lines = read_metrics(folder)
    if not lines:
        raise ResultsError(f"{folder}: metrics.jsonl is empty; there is nothing to draw yet")
    drawings: dict[str, Callable[[Sequence[Line]], Figure | None]] = {
        "accuracy.png": draw_accuracy,
        "bytes.png": draw_bytes,
        "routing.png": draw_routing,
        **DIAGNOSTIC_DRAWINGS,
    }
    figures = {name: draw(lines) for name, draw in drawings.items()}
    return [save(figure, folder / name) for name, figure in figures.items() if figure]


def draw_accuracy(lines: Sequence[Line]) -> Figure:
    """Draw accuracy (left) and loss (right) per round, of the server and of the clients."""
    figure = Figure(figsize=(10.5, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    metric = next((line["metric"] for line in lines if line.get("metric")), "accuracy")
    _draw_clients(left, lines, "accuracy")
    _draw_line(left, lines, "accuracy", "global model, server's test set", BLUE)
    _draw_local(left, lines, "local_accuracy")
    left.set_ylim(-0.02, 1.02)
    _finish(left, lines, picture(metric))
    _draw_clients(right, lines, "loss")
    _draw_line(right, lines, "loss", "global model, server's test set", BLUE)
    _draw_line(right, lines, "train_loss", "local training loss, mean over examples", GREEN, ":")
    right.set_ylim(bottom=0)
    _finish(right, lines, "loss (nats)")
    _legend(figure, left, right)
    return figure


def draw_bytes(lines: Sequence[Line]) -> Figure | None:
    """Draw the bytes that all clients together sent and received, per round."""
    rounds = [line for line in lines if line["round"] != 0]
    if not rounds:
        return None
    figure = Figure(figsize=(7.5, 4.0), layout="constrained")
    axes = figure.subplots()
    for key, shift, colour, name in (
        ("bytes_up", -0.2, BLUE, "up: clients to server"),
        ("bytes_down", 0.2, ORANGE, "down: server to clients"),
    ):
        counts = [line.get(key) or 0 for line in rounds]
        label = f"{name}, {human_bytes(sum(counts))} in all"
        axes.bar([line["round"] + shift for line in rounds], counts, 0.4, color=colour, label=label)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: human_bytes(value)))
    axes.set_ylim(bottom=0)
    _finish(axes, rounds, "bytes a round, all clients")
    _legend(figure, axes)
    return figure


def _draw_line(
    axes: Axes, lines: Iterable[Line], key: str, label: str, colour: str, style: str = "-"
) -> None:
    points = [(line["round"], line[key]) for line in lines if line.get(key) is not None]
    if points:
        axes.plot(*zip(*points, strict=True), style, color=colour, lw=2.2, marker="o", ms=4.5,
                  label=label, zorder=3)  # fmt: skip


def _draw_local(axes: Axes, lines: Iterable[Line], key: str) -> None:
    """Draw the clients' mean after local training."""
    means = []
    for line in lines:
        values = [value for client in line["clients"] if (value := client.get(key)) is not None]
        means.append({"round": line["round"], key: sum(values) / len(values) if values else None})
    label = "after local training, own test data, mean over clients"
    _draw_line(axes, means, key, label, ORANGE, "--")


def _draw_clients(axes: Axes, lines: Iterable[Line], key: str) -> None:
    """Draw the received global model on each client's own test data: lines, or a band.

    What a client received in round r is the model after round r - 1, and stands there.
    """
    by_client: dict[int, list[tuple[int, float]]] = {}
    for line in lines:
        for client in line["clients"]:
            if client.get(key) is not None:
                by_client.setdefault(client["client"], []).append((line["round"] - 1, client[key]))
    label = "global model, each client's own test data"
    if len(by_client) > MAX_LINES:
        _draw_band(axes, by_client, label)
        return
    for number, points in enumerate(by_client.values()):
        axes.plot(*zip(*points, strict=True), "-", color=GREY, lw=0.9, marker=".", ms=4,
                  alpha=0.65, label=label if number == 0 else None)  # fmt: skip


def _draw_band(axes: Axes, by_client: dict[int, list[tuple[int, float]]], label: str) -> None:
    by_round: dict[int, list[float]] = {}
    for points in by_client.values():
        for number, value in points:
            by_round.setdefault(number, []).append(value)
    rounds = sorted(by_round)
    lows, highs = ([pick(by_round[number]) for number in rounds] for pick in (min, max))
    middle = [sorted(by_round[number])[len(by_round[number]) // 2] for number in rounds]
    axes.fill_between(rounds, lows, highs, color=GREY, alpha=0.22, lw=0)
    axes.plot(rounds, middle, "-", color=GREY, lw=1.2, marker=".", ms=4,
              label=f"{label}: median, lowest to highest")  # fmt: skip


def _finish(axes: Axes, lines: Sequence[Line], label: str) -> None:
    failed = [line["round"] for line in lines if line.get("status", "ok") != "ok"]
    for position, number in enumerate(failed):
        name = FAILED if position == 0 else None
        axes.axvspan(number - 0.5, number + 0.5, color=RED, alpha=0.13, lw=0, label=name)
    first, last = lines[0]["round"], lines[-1]["round"]
    axes.set_xlim(first - 0.6, last + 0.6)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12, min_n_ticks=1))
    axes.set_xlabel("round")
    axes.set_ylabel(label)
    axes.grid(axis="y", color="#DDDDDD", lw=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _legend(figure: Figure, *panels: Axes) -> None:
    """Explain each line of the panels once, under them; failed rounds last."""
    found = [
        pair for axes in panels for pair in zip(*axes.get_legend_handles_labels(), strict=True)
    ]
    by_label = {label: handle for handle, label in found}
    labels = sorted(by_label, key=lambda label: label == FAILED)
    handles = [by_label[label] for label in labels]
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
