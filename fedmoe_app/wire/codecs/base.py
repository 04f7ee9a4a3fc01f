"""What a codec is: one vector of float32 to bytes and back, its size known beforehand."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import numpy as np
from torch import Tensor

from fedmoe_app.wire.errors import InvalidUpdateError

# (rows, values a row), in the order of the vector: where scales belong to rows.
Rows = tuple[tuple[int, int], ...]

MIN_ROW = 64  # values that share a scale: shorter rows are joined, a scale costs 4 bytes


class Codec(ABC):
    """One way to write a vector of n float32 values as bytes.

    Attributes:
        name: what configs and replies call it.
        lossless: whether decoding gives back the same bits.
    """

    name: str
    lossless = False

    @abstractmethod
    def encode(self, values: Tensor, rows: Rows, seed: Sequence[int]) -> bytes:
        """Encode a vector.

        Args:
            values: ``[n]`` float32. NaN and infinity stay recognisable: decoding refuses them.
            rows: how the n values fall into rows.
            seed: of codecs that round at random.
        """

    @abstractmethod
    def decode(self, data: memoryview, rows: Rows) -> Tensor:
        """Decode a vector of which ``rows`` tells the length; returns ``[n]`` float32.

        Nothing is allocated before the length of ``data`` is known to be right.

        Raises:
            InvalidUpdateError: if the bytes cannot be those of such a vector.
        """

    @abstractmethod
    def max_bytes(self, rows: Rows) -> int:
        """Return how long an encoded vector can be."""

    def expected_bytes(self, rows: Rows) -> int:
        """Return how long an encoded vector is; exact, unless the codec says otherwise."""
        return self.max_bytes(rows)


def count(rows: Rows) -> int:
    """Return the number of values."""
    return sum(number * length for number, length in rows)


def rows_of(shapes: Iterable[tuple[int, ...]]) -> Rows:
    """Return the rows of tensors that are joined into one vector.

    A row is what the last dimension holds; rows shorter than ``MIN_ROW`` (a LoRA matrix of rank 8
    has such) are joined up to that length, and a tensor may end in a shorter one.
    """
    merged: list[tuple[int, int]] = []
    for shape in shapes:
        size = int(np.prod(shape, dtype=np.int64))
        if not size:
            continue
        last = shape[-1] if shape else 1
        length = min(size, last * -(-MIN_ROW // last))
        for number, width in ((size // length, length), (1, size % length)):
            if not width:
                continue
            if merged and merged[-1][1] == width:
                number += merged.pop()[0]
            merged.append((number, width))
    return tuple(merged)


def check_length(data: memoryview, expected: int, what: str) -> None:
    """Refuse data of another length.

    Raises:
        InvalidUpdateError: with both lengths.
    """
    if len(data) != expected:
        raise InvalidUpdateError(f"{what}: {len(data)} bytes of data, expected {expected}", "size")


def check_scales(scales: Tensor, what: str) -> None:
    """Refuse scales that no encoder writes.

    Raises:
        InvalidUpdateError: if one is NaN, infinite or negative.
    """
    # The comparison is false for NaN.
    if not bool(((scales >= 0) & (scales < float("inf"))).all()):
        raise InvalidUpdateError(f"{what}: a scale is NaN, infinite or negative", "values")
