"""Tensors as Flower ``Array``s under their own names, as the server sends them down.

An ``Array`` is a ``.npy`` file in a message; bfloat16, which NumPy lacks, goes as the bytes of a
file of integers, with a name of its own for the kind of serialisation. What clients send up is not
read this way: ``numpy.load`` evaluates a file's header and allocates what it claims.
"""

from __future__ import annotations

import torch
from flwr.app import Array
from torch import Tensor

_BF16 = "fedmoe.bf16"


def to_array(tensor: Tensor, dtype: torch.dtype | None = None) -> Array:
    """Encode a tensor.

    Args:
        tensor: of any type that NumPy has; bfloat16 goes as float32.
        dtype: 16-bit type that floating-point values are rounded to; None leaves them.
    """
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.float()
    if dtype is None or not tensor.is_floating_point():
        return Array(tensor.numpy())
    rounded = tensor.to(dtype)
    if dtype != torch.bfloat16:
        return Array(rounded.numpy())
    whole = Array(rounded.view(torch.int16).numpy())
    return Array(dtype=whole.dtype, shape=whole.shape, stype=_BF16, data=whole.data)


def read_array(array: Array) -> Tensor:
    """Decode what :func:`to_array` has encoded; values of 16 bits come as float32."""
    if array.stype == _BF16:
        plain = Array(dtype=array.dtype, shape=array.shape, stype="numpy.ndarray", data=array.data)
        return torch.from_numpy(plain.numpy().copy()).view(torch.bfloat16).float()
    tensor = torch.from_numpy(array.numpy().copy())
    return tensor.float() if tensor.dtype == torch.float16 else tensor
