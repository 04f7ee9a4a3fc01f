"""Medians over clients: each client counts once, however much it has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

MAJORITY = 3  # replies, or clients, that have a median


def typical_norms(clients: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, float]:
    """Return the median norm by kind; without the kinds, or rounds, that have none.

    In a median each client weighs 1, shared out over its norms that are not 0. A kind that fewer
    than half of the clients have has no median, nor have fewer than three clients.

    Args:
        clients: norms by kind, of each.
    """
    found: dict[str, float] = {}
    if len(clients) < MAJORITY:
        return found
    for kind in dict.fromkeys(kind for own in clients for kind in own):
        norms = [[norm for norm in own.get(kind, ()) if norm > 0] for own in clients]
        if 2 * sum(bool(of_client) for of_client in norms) > len(clients):
            pairs = [(norm, 1 / len(of_client)) for of_client in norms for norm in of_client]
            found[kind] = weighted_median(pairs)
    return found


def weighted_median(pairs: Iterable[tuple[float, float]]) -> float:
    """Return the smallest value up to which half of the weight lies.

    Args:
        pairs: of value and weight > 0, at least one.
    """
    pairs = sorted(pairs)
    half, below = sum(weight for _, weight in pairs) / 2, 0.0
    for value, weight in pairs[:-1]:
        below += weight
        if below >= half:
            return value
    return pairs[-1][0]
