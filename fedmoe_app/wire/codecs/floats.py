"""Plain floating-point numbers: fp32, fp16 and bf16."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedmoe_app.wire.codecs.base import Codec, Rows, check_length, count


class Float(Codec):
    """The values themselves, little-endian, in a type of 32 or 16 bits."""

    def __init__(self, name: str, dtype: torch.dtype) -> None:
        self.name = name
        self.lossless = dtype == torch.float32
        self._dtype = dtype

    def encode(self, values: Tensor, rows: Rows, seed: Sequence[int]) -> bytes:
        """Round to the nearest."""
        return raw_bytes(values.to(self._dtype))

    def decode(self, data: memoryview, rows: Rows) -> Tensor:
        """Widen to float32; values of 32 bits are a view of the data, which is only read."""
        check_length(data, self.max_bytes(rows), self.name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the view must not be written to
            return torch.frombuffer(data, dtype=self._dtype).float()

    def max_bytes(self, rows: Rows) -> int:
        """Return the exact length."""
        return count(rows) * self._dtype.itemsize


def raw_bytes(tensor: Tensor) -> bytes:
    """Return a tensor's values as bytes; NumPy knows no bfloat16, so these go as integers."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    if flat.dtype == torch.bfloat16:
        flat = flat.view(torch.int16)
    return flat.numpy().tobytes()


def from_raw(data: memoryview, dtype: torch.dtype) -> Tensor:
    """Return a copy of values ``[n]``; the length must be a multiple of the type's."""
    known = torch.int16 if dtype == torch.bfloat16 else dtype
    numpy_dtype = np.dtype(str(known).removeprefix("torch."))
    return torch.from_numpy(np.frombuffer(data, numpy_dtype).copy()).view(dtype)
