"""Tensors as Flower ``Array``s, decoded only when they are exactly what was expected.

An ``Array`` is a ``.npy`` file in a message. ``numpy.load`` allocates what the file's header
claims, so the header is read first and compared with the expected shape and the bytes present.
"""

from __future__ import annotations

from io import BytesIO

import numpy as np
import torch
from flwr.app import Array
from torch import Tensor

from fedmoe_app.wire.update import InvalidUpdateError

_NUMPY_STYPE = "numpy.ndarray"


def to_array(tensor: Tensor) -> Array:
    """Encode a tensor; bfloat16, which NumPy lacks, goes as float32."""
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.float()
    return Array(tensor.detach().cpu().contiguous().numpy())


def from_array(array: Array, shape: tuple[int, ...], dtype: torch.dtype, key: str) -> Tensor:
    """Decode an array that must have exactly this shape and type.

    Raises:
        InvalidUpdateError: naming ``key``, what was expected and what came.
    """
    wanted = np.dtype(str(dtype).removeprefix("torch."))
    if array.stype != _NUMPY_STYPE:
        raise InvalidUpdateError(f"{key}: serialised as {array.stype!r}, expected {_NUMPY_STYPE!r}")
    stream = BytesIO(array.data)
    try:
        version = np.lib.format.read_magic(stream)
        if version != (1, 0):
            raise ValueError(f".npy version {version}")
        found_shape, fortran_order, found_dtype = np.lib.format.read_array_header_1_0(stream)
    except ValueError as error:
        raise InvalidUpdateError(f"{key}: not a .npy array ({error})") from None
    if found_shape != shape:
        raise InvalidUpdateError(f"{key}: shape {list(found_shape)}, expected {list(shape)}")
    if found_dtype != wanted or fortran_order:
        raise InvalidUpdateError(f"{key}: type {found_dtype}, expected {wanted} in C order")
    offset = stream.tell()
    expected_bytes = int(np.prod(shape, dtype=np.int64)) * wanted.itemsize
    if len(array.data) - offset != expected_bytes:
        raise InvalidUpdateError(
            f"{key}: {len(array.data) - offset} bytes of data, expected {expected_bytes}"
        )
    values = np.frombuffer(array.data, dtype=wanted, offset=offset).reshape(shape)
    return torch.from_numpy(values.copy())


def finite(tensor: Tensor, key: str) -> Tensor:
    """Return the tensor if all its values are finite.

    Raises:
        InvalidUpdateError: naming ``key`` and how many values are NaN or infinite.
    """
    bad = int((~torch.isfinite(tensor)).sum())
    if bad:
        raise InvalidUpdateError(f"{key}: {bad} of {tensor.numel()} values are NaN or infinite")
    return tensor
