"""The matrices S and D of a few experts: pairs of clients in one round."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from fedmoe_app.report.diagnostics.maps import (
    DIVERGING,
    Scale,
    draw_map,
    draw_scale,
    evenly,
    thinning,
)
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import SubFigure
from matplotlib.image import AxesImage

from fedmoe_app.results.values import Line, client_names, diagnostic
from fedmoe_app.shown.pictures import picture

MATRICES = {"S": "similarity", "D": "agreement"}
MAX_LAYERS, MAX_EXPERTS = 2, 4
MAX_NUMBERS, MAX_LABELS = 36, 10
MAP_SIZE = 2.65
# The scale reaches at least so far from 0; from the second on it shows all cosines.
LEAST_SPREAD, WIDE = 0.05, 0.5


class Pairs(NamedTuple):
    """The matrices of one round that are drawn."""

    line: Line
    matrices: dict[str, np.ndarray]  # S and D, those there are, [L, E, N, N]
    layers: list[int]
    experts: list[list[int]]  # for each layer drawn


def most_trained(matrices: np.ndarray, most: int) -> list[int]:
    """Return the experts with most clients, in order; those with fewer than two are left out.

    Args:
        matrices: of one layer, ``[E, N, N]``; a client that did not train the expert has nan.
        most: how many experts at most; of equals, those with the lower index.
    """
    count = np.isfinite(np.diagonal(matrices, axis1=1, axis2=2)).sum(axis=1)  # [E]
    order = np.argsort(-count, kind="stable")[:most]
    return sorted(int(expert) for expert in order if count[expert] > 1)


def last_pairs(lines: Sequence[Line]) -> Pairs | None:
    """Choose matrices of the last round in which an expert has two clients: the first and the
    last layer, and there the experts that most clients trained; None when no round has any."""
    for line in reversed(lines):
        found = {name: diagnostic(line, key) for name, key in MATRICES.items()}
        matrices = {name: values for name, values in found.items() if values is not None}
        if not matrices:
            continue
        first = next(iter(matrices.values()))
        chosen = {layer: most_trained(first[layer], MAX_EXPERTS) for layer in range(len(first))}
        able = [layer for layer, experts in chosen.items() if experts]
        layers = [able[index] for index in evenly(len(able), MAX_LAYERS)]
        if layers:
            return Pairs(line, matrices, layers, [chosen[layer] for layer in layers])
    return None


def pairs_height(pairs: Pairs) -> float:
    """Return the height in inches that :func:`draw_pairs` needs."""
    return MAP_SIZE * len(pairs.matrices) * len(pairs.layers) + 0.6


def draw_pairs(part: SubFigure, pairs: Pairs) -> None:
    """Draw the matrices, a row for S and one for D of each layer, a panel an expert."""
    scales = {name: pair_scale(name, _drawn(pairs, name)) for name in pairs.matrices}
    rows = [
        (name, layer, experts)
        for layer, experts in zip(pairs.layers, pairs.experts, strict=True)
        for name in pairs.matrices
    ]
    panels = part.subplots(len(rows), max(map(len, pairs.experts)), squeeze=False)
    for axes_row, (name, layer, experts) in zip(panels, rows, strict=True):
        for axes in axes_row[len(experts) :]:
            axes.set_visible(False)
        for axes, expert in zip(axes_row, experts, strict=False):
            matrix = pairs.matrices[name][layer, expert]
            image = _draw_matrix(axes, matrix, pairs.line, scales[name])
            axes.set_title(f"{name}, layer {layer}, expert {expert}", fontsize=9)
            axes.set_xlabel("client")
        axes_row[0].set_ylabel("client")
        draw_scale(part, image, axes_row, scales[name])
    gaps = any(np.isnan(_drawn(pairs, name)).any() for name in pairs.matrices)
    title = f"pairs of clients in round {pairs.line['round']}, experts that most clients trained"
    part.suptitle(title + ("; hatched: not trained" if gaps else ""), fontsize=11)


def pair_scale(name: str, matrices: np.ndarray) -> Scale:
    """Return a scale around 0 that the pairs i ≠ j of ``[..., N, N]`` set; i = j is always 1.

    D is often near 0 for every pair, where a scale to 1 would show the diagonal alone.
    """
    different = ~np.eye(matrices.shape[-1], dtype=bool)
    top = float(np.nanmax(np.abs(matrices[..., different]), initial=LEAST_SPREAD))
    top = 1.0 if top >= WIDE else top
    return Scale(
        Normalize(-top, top),
        f"{name}, cosine (i = j: 1)",
        DIVERGING,
        number="{:z.2f}" if top == 1 else "{:z.3f}",
        max_numbers=MAX_NUMBERS,
        max_row_labels=MAX_LABELS,
    )


def _drawn(pairs: Pairs, name: str) -> np.ndarray:
    """Return the matrices of S or D that are drawn, ``[K, N, N]``."""
    shown = zip(pairs.layers, pairs.experts, strict=True)
    return np.concatenate([pairs.matrices[name][layer, experts] for layer, experts in shown])


def _draw_matrix(axes: Axes, matrix: np.ndarray, line: Line, scale: Scale) -> AxesImage:
    names = client_names(line, len(matrix))
    image = draw_map(axes, matrix, names, scale)
    step = thinning(len(names), MAX_LABELS)
    axes.set_xticks(range(0, len(names), step), list(map(picture, names[::step])))
    axes.set_aspect("equal")
    return image
