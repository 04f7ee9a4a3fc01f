"""Numbers with named axes, for heat maps that the reader can turn and move through.

A run of many rounds, clients or experts has more numbers than a page should carry: rounds are
thinned first, then clients are left out, and the cube says so.

Shapes: R rounds, N clients of the run, L MoE layers, E experts a layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from fedmoe_app.results.values import Line, client_names, to_array

# Numbers of one cube: well below a megabyte of the page.
MAX_NUMBERS = 120_000
LEAST_ROUNDS = 8
ROUND, CLIENT, OTHER = "round", "client", "other client"
LAYER, EXPERT = "MoE layer", "expert"
ALL_CLIENTS, ALL_ROUNDS = "all clients", "all rounds"


class Axis(NamedTuple):
    """One direction of a cube: what it counts, and the name of each place."""

    name: str
    labels: tuple[str, ...]

    def said(self, label: str) -> str:
        """Return a label as it is called alone: ``client 3``, but ``all clients``."""
        return f"{self.name} {label}" if label.isdigit() else label


@dataclass(frozen=True)
class Cube:
    """Values with an axis a dimension; nan where there is none.

    ``remark`` says what was left out to keep the page small.
    """

    axes: tuple[Axis, ...]
    values: np.ndarray
    remark: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return axes and flat values in C order; null for nan, four significant digits."""
        return {
            "axes": [{"name": axis.name, "labels": list(axis.labels)} for axis in self.axes],
            "values": [short(value) for value in self.values.ravel().tolist()],
            "remark": self.remark,
        }


class Frame(NamedTuple):
    """The values of one round; its first axes go over the clients named."""

    round: str
    clients: Sequence[str]
    values: np.ndarray


def routing_cube(lines: Sequence[Line], most: int = MAX_NUMBERS) -> Cube | None:
    """Return the share of routed tokens ``[R, 1 + N, L, E]``, all clients together first."""
    frames = []
    for line, clients, counts in _by_client(lines, "count"):  # [N, L, E]
        together = np.concatenate([counts.sum(axis=0, keepdims=True), counts])
        shares = routing_shares(together)
        frames.append(Frame(str(line["round"]), [ALL_CLIENTS, *clients], shares))
    return lay_out(frames, 1, most)


def routing_shares(count: np.ndarray) -> np.ndarray:
    """Return counts ``[N, L, E]`` as shares of their sum over E; no tokens give nan."""
    total = count.sum(axis=-1, keepdims=True)  # [N, L, 1]
    return np.divide(count, total, out=np.full(count.shape, np.nan), where=total > 0)


def trained_cube(lines: Sequence[Line], most: int = MAX_NUMBERS) -> Cube | None:
    """Return the share of its optimiser steps in which a client changed an expert.

    ``[R + 1, N, L, E]``, that of all rounds together last; nan for a client without steps.
    """
    trained: dict[str, np.ndarray] = {}
    taken: dict[str, float] = {}
    frames = []
    for line, clients, counts in _by_client(lines, "trained"):
        steps = [float(client.get("num_steps") or 0) for client in line["clients"]]
        if len(steps) != len(clients) or not any(steps):
            continue
        frames.append(Frame(str(line["round"]), clients, _of_steps(counts, steps)))
        for name, own, number in zip(clients, counts, steps, strict=True):
            trained[name] = trained.get(name, 0) + own
            taken[name] = taken.get(name, 0.0) + number
    if not frames:
        return None
    together = _of_steps(np.stack(list(trained.values())), list(taken.values()))
    frames.append(Frame(ALL_ROUNDS, list(trained), together))
    return lay_out(frames, 1, most)


def _of_steps(trained: np.ndarray, steps: Sequence[float]) -> np.ndarray:
    """Return steps ``[N, L, E]`` over all steps ``[N]`` of their client."""
    taken = np.where(np.array(steps) > 0, steps, np.nan)
    return trained / taken[:, None, None]


def expert_cube(lines: Sequence[Line], key: str, most: int = MAX_NUMBERS) -> Cube | None:
    """Return a diagnostic ``[L, E]`` of every round that has it, as ``[R, L, E]``."""
    rounds, found = _found(lines, key, 2, most)
    frames = [Frame(str(line["round"]), (), values) for line, values in found]
    return lay_out(frames, 0, most, rounds)


def weight_cube(lines: Sequence[Line], most: int = MAX_NUMBERS) -> Cube | None:
    """Return ``expert_weights`` times the clients of their expert, ``[R, N, L, E]``.

    1 is an equal weight; a client that did not train the expert has nan, and does not count.
    """
    rounds, found = _found(lines, "expert_weights", 3, most)  # [L, E, N]
    ratios = [
        (line, weights * np.isfinite(weights).sum(axis=-1, keepdims=True))
        for line, weights in found
    ]
    frames = [_frame(line, np.moveaxis(values, 2, 0)) for line, values in ratios]
    return lay_out(frames, 1, most, rounds)


def client_cube(
    lines: Sequence[Line], key: str, client_axis: int, most: int = MAX_NUMBERS
) -> Cube | None:
    """Return a diagnostic of layers, experts and clients, in any order, as ``[R, N, L, E]``."""
    rounds, found = _found(lines, key, 3, most)
    frames = [_frame(line, np.moveaxis(values, client_axis, 0)) for line, values in found]
    return lay_out(frames, 1, most, rounds)


def pair_cube(lines: Sequence[Line], key: str, most: int = MAX_NUMBERS) -> Cube | None:
    """Return a diagnostic of pairs ``[L, E, N, N]`` as ``[R, N, N, L, E]``."""
    rounds, found = _found(lines, key, 4, most)
    frames = [_frame(line, values.transpose(2, 3, 0, 1)) for line, values in found]
    return lay_out(frames, 2, most, rounds)


def lay_out(
    frames: Sequence[Frame], client_axes: int, most: int, rounds: int | None = None
) -> Cube | None:
    """Stack the frames of a run; a client that was not in a round has nan there.

    Args:
        frames: the rounds, each with the clients that were in it; all have the same layers and
            experts, the last two axes.
        client_axes: how many of the first axes go over clients: 0, 1 or 2.
        most: numbers at most; what does not fit is left out before anything is allocated.
        rounds: how many there were, where ``frames`` are fewer.
    """
    if not frames:
        return None
    names = _in_order({name for frame in frames for name in frame.clients})
    *_, layers, experts = frames[0].values.shape
    one_round = len(names) ** client_axes * layers * experts
    kept = evenly(len(frames), max(LEAST_ROUNDS, most // one_round))
    if client_axes:
        room = (most / (len(kept) * layers * experts)) ** (1 / client_axes)
        names_kept = names[: max(1, math.floor(room + 1e-9))]
    else:
        names_kept = names
    values = np.full((len(kept), *[len(names_kept)] * client_axes, layers, experts), np.nan)
    for target, index in zip(values, kept, strict=True):
        _fill(target, frames[index], names_kept, client_axes)
    clients = [Axis(name, tuple(names_kept)) for name in (CLIENT, OTHER)[:client_axes]]
    axes = (
        Axis(ROUND, tuple(frames[index].round for index in kept)),
        *clients,
        Axis(LAYER, tuple(map(str, range(layers)))),
        Axis(EXPERT, tuple(map(str, range(experts)))),
    )
    return Cube(axes, values, _remark(rounds or len(frames), axes[0].labels, names, names_kept))


def evenly(count: int, wanted: int) -> list[int]:
    """Return at most ``wanted`` (2 or more) of 0 … count - 1, evenly spaced, with both ends."""
    if wanted >= count:
        return list(range(count))
    return sorted({round(i * (count - 1) / (wanted - 1)) for i in range(wanted)})


def short(value: float) -> float | int | None:
    """Return a number with four significant digits, as JSON writes it best; None for nan."""
    if not math.isfinite(value):
        return None
    rounded = float(f"{value:.4g}")
    return int(rounded) if rounded.is_integer() else rounded


def _by_client(lines: Sequence[Line], key: str) -> list[tuple[Line, list[str], np.ndarray]]:
    """Return the routing counts ``[N, L, E]`` of the rounds that have some."""
    found = []
    for line in lines:
        if counts := (line.get("routing") or {}).get(key):
            found.append((line, client_names(line, len(counts)), np.asarray(counts, dtype=float)))
    return found


def _found(
    lines: Iterable[Line], key: str, dimensions: int, most: int
) -> tuple[int, list[tuple[Line, np.ndarray]]]:
    """Return in how many rounds a diagnostic is there, and its values in as many as fit.

    Matrices of pairs are long lists: those that would be left out are not even converted.
    """
    there = [line for line in lines if (line.get("diagnostics") or {}).get(key)]
    if not there:
        return 0, []
    size = max(1, to_array(there[-1]["diagnostics"][key]).size)
    kept = [there[index] for index in evenly(len(there), max(LEAST_ROUNDS, most // size))]
    arrays = [(line, to_array(line["diagnostics"][key])) for line in kept]
    found = [(line, a) for line, a in arrays if a.ndim == dimensions and np.isfinite(a).any()]
    return len(there) if len(kept) < len(there) else len(found), found


def _frame(line: Line, values: np.ndarray) -> Frame:
    return Frame(str(line["round"]), client_names(line, len(values)), values)


def _in_order(names: Iterable[str]) -> list[str]:
    """Return client names in order of their numbers, after that of all clients together."""
    return sorted(names, key=lambda name: (name != ALL_CLIENTS, len(name), name))


def _fill(target: np.ndarray, frame: Frame, names: Sequence[str], client_axes: int) -> None:
    if not client_axes:
        target[...] = frame.values
        return
    place = {name: index for index, name in enumerate(names)}
    pairs = [(place[name], i) for i, name in enumerate(frame.clients) if name in place]
    to, come_from = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    target[np.ix_(*[to] * client_axes)] = frame.values[np.ix_(*[come_from] * client_axes)]


def _remark(
    frames: int, kept: Sequence[str], clients: Sequence[str], clients_kept: Sequence[str]
) -> str:
    """Say what was left out; the sums over all rounds and all clients do not count."""
    sums = sum(name == ALL_ROUNDS for name in kept)
    together = sum(name == ALL_CLIENTS for name in clients)
    parts = []
    if len(kept) < frames:
        parts.append(f"{len(kept) - sums} of {frames - sums} rounds, evenly spaced")
    if len(clients_kept) < len(clients):
        some, every = len(clients_kept) - together, len(clients) - together
        parts.append(f"the first {some} of {every} clients")
    return f"Shown to keep this page small: {', '.join(parts)}." if parts else ""
