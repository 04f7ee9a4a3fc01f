"""Four bits a value in blocks of 64: NF4 (Dettmers et al. 2023, arXiv:2305.14314, appendix E).

The 16 levels, the order of the nibbles and the decoded values are those of bitsandbytes, which is
not called: importing it takes seconds in every client process. Scales are bfloat16, four bytes
saved in every 36.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedmoe_app.wire.codecs.base import Codec, Rows, check_length, check_scales, count
from fedmoe_app.wire.codecs.floats import from_raw, raw_bytes

BLOCK = 64
_CHUNK = 512  # blocks at a time, 32k values: what is worked on stays in the cache
LEVELS = torch.tensor(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
        -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
        0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ]
)  # fmt: skip
_MIDDLES = tuple(((LEVELS[1:] + LEVELS[:-1]) / 2).tolist())  # 15
# [256, 2]: the levels of a byte's high and low nibble
_PAIRS = torch.stack([LEVELS.repeat_interleave(16), LEVELS.repeat(16)], dim=1)


class Int4(Codec):
    """Layout: scales bfloat16 ``[blocks]``, then two values a byte, the first in the high half.

    Blocks go over the whole vector, whatever its rows; the last is filled up with zeros.
    """

    name = "int4"

    def encode(self, values: Tensor, rows: Rows, seed: Sequence[int]) -> bytes:
        """Round every value to the nearest level of its block's largest magnitude."""
        blocks = _blocks(len(values))
        padded = torch.nn.functional.pad(values, (0, blocks * BLOCK - len(values)))
        padded = padded.view(blocks, BLOCK)
        scales = padded.abs().amax(dim=1).bfloat16()  # [blocks]
        coded = torch.empty(blocks, BLOCK // 2, dtype=torch.uint8)
        for start in range(0, blocks, _CHUNK):
            part = slice(start, start + _CHUNK)
            divisor = scales[part].float().unsqueeze(1)
            scaled = padded[part] / torch.where(divisor > 0, divisor, 1.0)
            level = _levels(scaled)
            coded[part] = level[:, ::2] << 4 | level[:, 1::2]
        return raw_bytes(scales) + coded.numpy().tobytes()[: _packed_bytes(len(values))]

    def decode(self, data: memoryview, rows: Rows) -> Tensor:
        """Look up the levels and multiply each block by its scale."""
        check_length(data, self.max_bytes(rows), self.name)
        size = count(rows)
        blocks = _blocks(size)
        scales = from_raw(data[: 2 * blocks], torch.bfloat16).float()
        check_scales(scales, self.name)
        packed = np.zeros(blocks * BLOCK // 2, np.uint8)
        packed[: _packed_bytes(size)] = np.frombuffer(data, np.uint8, offset=2 * blocks)
        coded = torch.from_numpy(packed).view(blocks, BLOCK // 2)
        values = torch.empty(blocks, BLOCK)
        for start in range(0, blocks, _CHUNK):
            part = slice(start, start + _CHUNK)
            levels = _PAIRS.index_select(0, coded[part].reshape(-1).int())
            torch.mul(levels.view(-1, BLOCK), scales[part].unsqueeze(1), out=values[part])
        return values.view(-1)[:size]

    def max_bytes(self, rows: Rows) -> int:
        """Return the exact length."""
        size = count(rows)
        return 2 * _blocks(size) + _packed_bytes(size)


def _levels(scaled: Tensor) -> Tensor:
    """Return the nearest level's number, uint8; 15 comparisons are faster than a binary search."""
    level = torch.zeros(scaled.shape, dtype=torch.uint8)
    above = torch.empty(scaled.shape, dtype=torch.bool)
    for middle in _MIDDLES:
        level += torch.gt(scaled, middle, out=above)
    return level


def _blocks(size: int) -> int:
    return -(-size // BLOCK)


def _packed_bytes(size: int) -> int:
    return -(-size // 2)
