"""What sparse updates are in the two masked sums of a round: count, then sum.

A sum over one trainer *is* that trainer, and nobody may say who trained which expert. So the first
sum tells how many clients trained each expert, and with what weight together; an expert that fewer
than ``min_trainers`` trained stays closed, as it was. The second sum is over dense tensors, gates
and the open experts, in which a client sends zeros where it trained nothing::

    first    [trained_e for all e, w·trained_e for all e, w]      uint32, 2·L·E + 1 numbers
    second   w·Δ on a grid (privacy.ring), tensor after tensor     uint32
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmoe_app.privacy.member import SumError
from fedmoe_app.privacy.ring import MAX_WEIGHT, from_ring, to_ring

_SURE = 2  # trainers of an open expert that must be left when clients went between the sums


@dataclass(frozen=True)
class Counts:
    """What the first sum tells.

    Attributes:
        trained: clients that trained each expert, ``[L, E]``.
        weights: their weights together, ``[L, E]``.
        weight: of all clients together.
    """

    trained: NDArray[np.int64]
    weights: NDArray[np.int64]
    weight: int

    def open(self, min_trainers: int) -> list[tuple[int, int]]:
        """Return the experts that enough clients trained, in order."""
        return [(int(i), int(j)) for i, j in np.argwhere(self.trained >= min_trainers)]

    def check_left(self, open_experts: Collection[tuple[int, int]], num_gone: int) -> None:
        """Refuse a second sum in which an expert may be that of one client.

        Raises:
            SumError: so many went that it may.
        """
        least = min((int(self.trained[key]) for key in open_experts), default=num_gone + _SURE)
        if num_gone and least - num_gone < _SURE:
            raise SumError(
                f"{num_gone} clients went between the two sums, and an expert that {least} trained "
                "may be left with one; the round's values stay masked"
            )


def counts_vector(trained: NDArray[np.bool_], weight: int) -> NDArray[np.uint32]:
    """Return a client's part of the first sum.

    Args:
        trained: experts that it trained, ``[L, E]``.
        weight: w.
    """
    flags = trained.reshape(-1).astype(np.uint32)
    return np.concatenate([flags, flags * np.uint32(weight), np.array([weight], np.uint32)])


def counts_of(total: NDArray[np.uint32], shape: tuple[int, int], num_clients: int) -> Counts:
    """Read the first sum.

    Raises:
        SumError: it is none that so many clients can have.
    """
    cells = shape[0] * shape[1]
    trained, weights = (
        part.astype(np.int64).reshape(shape) for part in (total[:cells], total[cells:-1])
    )
    weight = int(total[-1])
    fits = (trained <= weights) & (weights <= MAX_WEIGHT * trained) & (weights <= weight)
    if not (fits.all() and (trained <= num_clients).all()) or not (
        num_clients <= weight <= MAX_WEIGHT * num_clients
    ):
        raise SumError(f"the sum of {num_clients} clients' counts is none: a client sent others")
    return Counts(trained, weights, weight)


def values_vector(
    changes: Mapping[str, NDArray[np.floating]],
    layout: Sequence[tuple[str, int]],
    weight: int,
    grid: tuple[float, int],
    seed: tuple[int, ...],
) -> NDArray[np.uint32]:
    """Return a client's part of the second sum.

    Args:
        changes: by full name; what is not there counts as zeros.
        layout: full name and number of values of each tensor, in order.
        weight: w.
        grid: the range, and bits.
        seed: of the rounding.

    Raises:
        SumError: a name twice, or a tensor of another size.
    """
    if len({name for name, _ in layout}) != len(layout):
        raise SumError("a tensor twice in one sum")
    parts = []
    for name, size in layout:
        values = changes.get(name)
        if values is not None and values.size != size:
            raise SumError(f"{name}: {values.size} values, asked for {size}")
        parts.append(np.zeros(size) if values is None else values.reshape(-1))
    joined = np.concatenate(parts) if parts else np.zeros(0)
    return to_ring(joined, grid[0], weight, grid[1], seed)


def about_layout(layout: Sequence[tuple[str, int]]) -> bytes:
    """Return what the masks of the second sum are bound to.

    What a client has not trained counts as zeros. So a server that asked one client for an expert,
    and the others for names that nobody has, would get that client's changes as the sum.
    """
    listed = json.dumps([[str(name), int(size)] for name, size in layout])
    return hashlib.sha256(listed.encode()).hexdigest().encode()


def mean_values(
    total: NDArray[np.uint32],
    layout: Sequence[tuple[str, int]],
    grid: tuple[float, int],
    weight_of: Mapping[str, int],
) -> dict[str, NDArray[np.float32]]:
    """Return the mean change of each tensor from the second sum.

    Args:
        total: unmasked.
        layout, grid: as of :func:`values_vector`.
        weight_of: what each tensor's sum is divided by.
    """
    sums = from_ring(total, *grid)
    found: dict[str, NDArray[Any]] = {}
    start = 0
    for name, size in layout:
        found[name] = (sums[start : start + size] / weight_of[name]).astype(np.float32)
        start += size
    return found
