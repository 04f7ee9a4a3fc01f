"""Tensors as Flower ``Array``s, decoded only when they are exactly what was expected.

An ``Array`` is a ``.npy`` file in a message. ``numpy.load`` evaluates the file's header as Python
literals and allocates what it claims. So the header is not read at all: it must be, byte for byte,
the one that ``numpy.save`` writes for the expected shape and type.
"""

from __future__ import annotations

import math
import warnings
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
    values = tensor.detach().cpu().contiguous().numpy()
    if not values.size:
        return Array(values)
    # What numpy.save writes, with one copy of the values in place of three.
    data = b"".join((_header(values.shape, values.dtype), values.reshape(-1).data.cast("B")))
    return Array(str(values.dtype), tuple(values.shape), _NUMPY_STYPE, data)


def from_array(array: Array, shape: tuple[int, ...], dtype: torch.dtype, key: str) -> Tensor:
    """Decode an array that must have exactly this shape and type.

    Returns:
        A view of the array's own bytes: read it only.

    Raises:
        InvalidUpdateError: naming ``key``, what was expected and what came.
    """
    wanted = np.dtype(str(dtype).removeprefix("torch."))
    if array.stype != _NUMPY_STYPE:
        raise InvalidUpdateError(f"{key}: serialised as {array.stype!r}, expected {_NUMPY_STYPE!r}")
    header = _header(shape, wanted)
    if not array.data.startswith(header):
        raise InvalidUpdateError(
            f"{key}: not a .npy array of {wanted} {list(shape)}; "
            f"it says {str(array.dtype)[:20]} {str(list(array.shape))[:60]}"
        )
    expected_bytes = int(np.prod(shape, dtype=np.int64)) * wanted.itemsize
    if len(array.data) - len(header) != expected_bytes:
        raise InvalidUpdateError(
            f"{key}: {len(array.data) - len(header)} bytes of data, expected {expected_bytes}"
        )
    if not expected_bytes:
        return torch.empty(shape, dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the view must not be written to
        return torch.frombuffer(array.data, dtype=dtype, offset=len(header)).view(shape)


def _header(shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    """Return the header that ``numpy.save`` writes for an array of this shape and type."""
    stream = BytesIO()
    described = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(
        stream, {"descr": described, "fortran_order": False, "shape": shape}
    )
    return stream.getvalue()


def finite(tensor: Tensor, key: str) -> Tensor:
    """Return the tensor if all its values are finite.

    Raises:
        InvalidUpdateError: naming ``key`` and how many values are NaN or infinite.
    """
    if tensor.numel() and not all(map(math.isfinite, tensor.aminmax())):  # one pass, no copy
        bad = int((~torch.isfinite(tensor)).sum())
        raise InvalidUpdateError(f"{key}: {bad} of {tensor.numel()} values are NaN or infinite")
    return tensor
