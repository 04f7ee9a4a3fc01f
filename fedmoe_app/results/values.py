"""Numbers of the metrics lines as arrays; null becomes nan.

Shapes: N clients of the round, in the order of ``line["clients"]``; L MoE layers; E experts a
layer. N and the clients behind it may differ from round to round.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

Line = dict[str, Any]
Points = list[tuple[int, float]]  # (round, value)


def to_array(nested: Any) -> np.ndarray:
    """Return nested lists of numbers as float64; null, also in place of a list, becomes nan."""
    result = np.full(_shape(nested), np.nan)
    _fill(result, nested)
    return result


def _shape(nested: Any) -> tuple[int, ...]:
    if not isinstance(nested, list):
        return ()
    inner = max((_shape(item) for item in nested), key=len, default=())
    return (len(nested), *inner)


def _fill(target: np.ndarray, nested: Any) -> None:
    if nested is None:
        return
    if target.ndim == 0:
        target[...] = nested
    elif target.ndim == 1:
        target[:] = [np.nan if item is None else item for item in nested]
    else:
        for part, item in zip(target, nested, strict=True):
            _fill(part, item)


def diagnostic(line: Line, key: str) -> np.ndarray | None:
    """Return the diagnostic ``key`` of a round; None when it has no number."""
    values = to_array((line.get("diagnostics") or {}).get(key))
    return values if np.isfinite(values).any() else None


def mean(values: np.ndarray, axis: int | tuple[int, ...]) -> np.ndarray:
    """Return the mean over the finite values; nan where there is none."""
    finite = np.isfinite(values)
    total = np.where(finite, values, 0).sum(axis=axis)
    count = finite.sum(axis=axis)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def layer_curves(rounds: Iterable[tuple[int, np.ndarray]]) -> dict[str, Points]:
    """Turn per-round values ``[L, E]`` into a curve a layer, the mean over its experts."""
    curves: dict[str, Points] = {}
    for number, values in rounds:
        for layer, value in enumerate(mean(values, axis=1)):
            add_point(curves, f"layer {layer}", number, value)
    return curves


def diagnostic_curves(lines: Iterable[Line], key: str) -> dict[str, Points]:
    """Return the mean over experts of a diagnostic ``[L, E]`` per round, a curve a layer."""
    found = ((line["round"], diagnostic(line, key)) for line in lines)
    return layer_curves((number, values) for number, values in found if values is not None)


def client_curves(lines: Iterable[Line], key: str) -> dict[str, Points]:
    """Return the mean over layers of a diagnostic ``[L, N]`` per round, a curve a client."""
    curves: dict[str, Points] = {}
    for line in lines:
        values = diagnostic(line, key)  # [L, N]
        if values is None:
            continue
        names = client_names(line, values.shape[1])
        for name, value in zip(names, mean(values, axis=0), strict=True):
            add_point(curves, f"client {name}", line["round"], value)
    return by_number(curves)


def add_point(curves: dict[str, Points], name: str, number: int, value: float | None) -> None:
    """Add a point to the curve ``name``; a value that is None or nan adds none."""
    if value is not None and np.isfinite(value):
        curves.setdefault(name, []).append((number, float(value)))


def client_names(line: Mapping[str, Any], count: int) -> list[str]:
    """Return the numbers of a round's clients, or 0, 1, ... where the line does not say them."""
    names = [str(client["client"]) for client in line.get("clients") or []]
    return names if len(names) == count else [str(index) for index in range(count)]


def by_number(curves: dict[str, Points]) -> dict[str, Points]:
    """Sort curves whose names end in a number by that number."""
    return dict(sorted(curves.items(), key=lambda item: int(item[0].rpartition(" ")[2])))
