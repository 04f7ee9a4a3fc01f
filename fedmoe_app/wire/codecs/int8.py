"""Eight bits a value, one scale a row, stochastic rounding (QSGD, Alistarh et al. 2017).

    q = floor(x / s + u),  s = max|row| / 127,  u uniform in (0, 1)         decoded: q·s

The mean of the decoded value is x, up to s/512: u has 256 steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from fedmoe_app.wire.codecs.base import Codec, Rows, check_length, check_scales, count
from fedmoe_app.wire.codecs.floats import from_raw, raw_bytes

_LEVELS = 127
_CHUNK = 1 << 16  # values at a time: what is worked on stays in the processor's cache
_TINY = 1e-30  # least scale: 1/s stays finite for a row of zeros


class Int8(Codec):
    """Layout: scales float32 ``[rows]``, then values int8 ``[n]``."""

    name = "int8"

    def encode(self, values: Tensor, rows: Rows, seed: Sequence[int]) -> bytes:
        """Quantise row by row; the noise is drawn from the seed."""
        noise = np.random.SFC64(list(seed))
        coded = torch.empty(count(rows), dtype=torch.int8)  # [n]
        scales = torch.empty(sum(number for number, _ in rows))  # [rows]
        work = torch.empty(_CHUNK)
        for part, row_part, width in _chunks(rows):
            block = values[part].view(-1, width)
            scales[row_part] = _quantise(block, coded[part].view(-1, width), work, noise)
        return raw_bytes(scales) + coded.numpy().tobytes()

    def decode(self, data: memoryview, rows: Rows) -> Tensor:
        """Multiply each row by its scale."""
        check_length(data, self.max_bytes(rows), self.name)
        number = sum(number for number, _ in rows)
        scales = from_raw(data[: 4 * number], torch.float32)
        check_scales(scales, self.name)
        coded = torch.from_numpy(np.frombuffer(data, np.int8, offset=4 * number).copy())
        values = torch.empty(count(rows))
        for part, row_part, width in _chunks(rows):
            out = values[part].view(-1, width)
            torch.mul(coded[part].view(-1, width), scales[row_part].unsqueeze(1), out=out)
        return values

    def max_bytes(self, rows: Rows) -> int:
        """Return the exact length."""
        return 4 * sum(number for number, _ in rows) + count(rows)


def _quantise(block: Tensor, coded: Tensor, work: Tensor, noise: np.random.SFC64) -> Tensor:
    """Write a block of rows ``[R, C]`` into ``coded``; return its scales ``[R]``."""
    size = block.numel()
    scaled = (work[:size] if size <= len(work) else torch.empty(size)).view(block.shape)
    largest = torch.maximum(block.amax(dim=1, keepdim=True), -block.amin(dim=1, keepdim=True))
    scales = largest.mul_(1 / _LEVELS).clamp_min_(_TINY)  # [R, 1]
    torch.mul(block, scales.reciprocal(), out=scaled)
    random = noise.random_raw(-(-size // 8)).astype("<u8", copy=False)
    steps = torch.from_numpy(random.view(np.uint8)[:size]).view(block.shape)
    # 127.0001 + 255.5/256 stays below 128, and -127.0001 + 0.5/256 above -127.
    scaled.add_(0.5 / 256).add_(steps, alpha=1 / 256).floor_()
    coded.copy_(scaled)
    return scales.squeeze(1)


def _chunks(rows: Rows) -> Iterator[tuple[slice, slice, int]]:
    """Yield runs of whole rows: their values, their scales, and the length of a row."""
    value = row = 0
    for number, width in rows:
        step = max(1, _CHUNK // width)
        for start in range(0, number, step):
            taken = min(step, number - start)
            yield slice(value, value + taken * width), slice(row, row + taken), width
            value, row = value + taken * width, row + taken
