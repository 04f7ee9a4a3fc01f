"""The largest changes only: their positions, and their values through a second codec.

Stich et al. 2018, arXiv:1809.07599; with error feedback (:mod:`fedmoe_app.client.encode`).

Layout: k (uint32), number of bytes that tell the positions (uint32), form (uint8: 0 bitmap,
1 steps), the positions, and the k values through a second codec.

A bitmap has one bit a value. Steps have one byte b a position: it lies b + 1 after the one before;
the byte 255 goes 255 on without a position. Which of the two is shorter is taken: steps below a
share of about one in eight.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedmoe_app.wire.codecs.base import Codec, Rows, count
from fedmoe_app.wire.errors import InvalidUpdateError

DEFAULT_SHARE = 0.05
_HEADER = struct.Struct("<IIB")
_BITMAP, _STEPS = 0, 1
_SKIP = 255
_ROW = 256  # kept values that share a scale, where the second codec has scales a row


class TopK(Codec):
    """Sparsification over the whole vector.

    Args:
        values: codec of the values that are kept.
        share: of the values that are kept, above 0 and at most 1; only the encoder reads it.
    """

    def __init__(self, values: Codec, share: float = DEFAULT_SHARE) -> None:
        self.name = "topk" if values.lossless else f"topk+{values.name}"
        self._values = values
        self._share = share

    def encode(self, values: Tensor, rows: Rows, seed: Sequence[int]) -> bytes:
        """Keep the largest magnitudes; of equal ones those that ``torch.topk`` prefers."""
        size = len(values)
        kept = self._kept(size)
        positions = values.abs().topk(kept, sorted=False).indices.sort().values  # [k]
        form, told = _shorter(positions.numpy(), size)
        coded = self._values.encode(values[positions], _value_rows(kept), seed)
        return _HEADER.pack(kept, len(told), form) + told + coded

    def decode(self, data: memoryview, rows: Rows) -> Tensor:
        """Return zeros with the kept values at their positions."""
        if len(data) < _HEADER.size:
            raise InvalidUpdateError(f"{self.name}: {len(data)} bytes are no header", "size")
        kept, told, form = _HEADER.unpack_from(data)
        size = count(rows)
        if kept > size:
            raise InvalidUpdateError(f"{self.name}: keeps {kept} of {size} values", "size")
        if told > len(data) - _HEADER.size:
            raise InvalidUpdateError(
                f"{self.name}: {told} bytes of positions in {len(data)} bytes of data", "size"
            )
        end = _HEADER.size + told
        positions = _read(np.frombuffer(data[_HEADER.size : end], np.uint8), form, kept, size)
        values = self._values.decode(data[end:], _value_rows(kept))
        decoded = torch.zeros(size)
        decoded[torch.from_numpy(positions)] = values
        return decoded

    def max_bytes(self, rows: Rows) -> int:
        """Return the length with all values kept."""
        size = count(rows)
        longest = max(-(-size // 8), size + size // _SKIP + 1)
        return _HEADER.size + longest + self._values.max_bytes(_value_rows(size))

    def expected_bytes(self, rows: Rows) -> int:
        """Return the length for positions that are spread evenly at random.

        A step is then longer than s with probability (1 − k/n)^s, so that 255 is gone on
        q/(1 − q) times a position, q = (1 − k/n)^255.
        """
        size = count(rows)
        kept = self._kept(size)
        beyond = (1 - kept / size) ** _SKIP
        told = min(-(-size // 8), round(kept / (1 - beyond)))
        return _HEADER.size + told + self._values.expected_bytes(_value_rows(kept))

    def _kept(self, size: int) -> int:
        return min(size, max(1, round(self._share * size)))


def _value_rows(kept: int) -> Rows:
    whole, rest = divmod(kept, _ROW)
    return tuple(row for row in ((whole, _ROW), (1, rest)) if row[0] and row[1])


def _shorter(positions: np.ndarray, size: int) -> tuple[int, bytes]:
    """Return the shorter form of sorted positions ``[k]`` and its bytes."""
    gaps = np.diff(positions, prepend=-1) - 1  # [k], 0 and more
    skips, last = np.divmod(gaps, _SKIP)
    if len(positions) + int(skips.sum()) >= -(-size // 8):
        mask = np.zeros(size, bool)
        mask[positions] = True
        return _BITMAP, np.packbits(mask).tobytes()
    steps = np.full(len(positions) + int(skips.sum()), _SKIP, np.uint8)
    steps[np.cumsum(skips + 1) - 1] = last
    return _STEPS, steps.tobytes()


def _read(told: np.ndarray, form: int, kept: int, size: int) -> np.ndarray:
    """Return the positions ``[k]``; the longest that is allocated is 8·size bytes."""
    if form == _BITMAP and len(told) == -(-size // 8):
        bits = np.unpackbits(told)
        positions = np.flatnonzero(bits)
    elif form == _STEPS and len(told) <= kept + size // _SKIP:
        positions = (np.cumsum(told.astype(np.int64) + (told < _SKIP)) - 1)[told < _SKIP]
    else:
        raise InvalidUpdateError(f"topk: positions of form {form} in {len(told)} bytes", "size")
    if len(positions) != kept or (kept and positions[-1] >= size):
        raise InvalidUpdateError(
            f"topk: {len(positions)} positions up to {int(positions[-1]) if len(positions) else 0},"
            f" expected {kept} below {size}",
            "size",
        )
    return positions
