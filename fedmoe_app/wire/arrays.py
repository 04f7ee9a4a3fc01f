"""Tensors as Flower ``Array``s under their own names, as the server sends them down.

An ``Array`` is a ``.npy`` file in a message; bfloat16, which NumPy lacks, goes as the bytes of a
file of integers, with a name of its own for the kind of serialisation. What clients send up is not
read this way: ``numpy.load`` evaluates a file's header and allocates what it claims.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from io import BytesIO

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from torch import Tensor

from fedmoe_app.moe.state import ModelState

_NUMPY, _BF16 = "numpy.ndarray", "fedmoe.bf16"


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
        return _plain(tensor)
    rounded = tensor.to(dtype)
    if dtype != torch.bfloat16:
        return _plain(rounded)
    whole = _plain(rounded.view(torch.int16))
    return Array(dtype=whole.dtype, shape=whole.shape, stype=_BF16, data=whole.data)


def _plain(tensor: Tensor) -> Array:
    """Return what ``numpy.save`` writes, with one copy of the values in place of three."""
    values = tensor.numpy()
    if not values.size:
        return Array(values)
    data = b"".join((_header(values.shape, values.dtype), values.reshape(-1).data.cast("B")))
    return Array(str(values.dtype), tuple(values.shape), _NUMPY, data)


class ArrayBuffers:
    """Tensors of zeros that are to become arrays: their values are then not copied.

    A server that sums a model of gigabytes so holds the sums and the arrays made of them once.
    """

    def __init__(self) -> None:
        self._arrays: dict[int, Array] = {}  # by address of the values

    def zeros(self, shape: Sequence[int]) -> Tensor:
        """Return zeros, float32, to be written to until :meth:`array` is asked for."""
        size = math.prod(shape)
        if not size:
            return torch.zeros(*shape)
        header = _header(tuple(shape), np.dtype(np.float32))
        # Nobody else knows these bytes yet: until then they may be written to as in C.
        data = bytes(len(header) + 4 * size)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that bytes are not writable
            torch.frombuffer(data, dtype=torch.uint8)[: len(header)] = torch.frombuffer(
                bytearray(header), dtype=torch.uint8
            )
            values = torch.frombuffer(data, dtype=torch.float32, offset=len(header)).view(*shape)
        self._arrays[values.data_ptr()] = Array("float32", tuple(shape), _NUMPY, data)
        return values

    def array(self, tensor: Tensor) -> Array:
        """Encode a tensor; one of :meth:`zeros` is not copied, and not written to from then on."""
        array = self._arrays.pop(tensor.data_ptr(), None)
        return to_array(tensor) if array is None else array


def read_array(array: Array) -> Tensor:
    """Decode what :func:`to_array` has encoded; values of 16 bits come as float32."""
    if array.stype == _BF16:
        plain = Array(dtype=array.dtype, shape=array.shape, stype=_NUMPY, data=array.data)
        return torch.from_numpy(plain.numpy().copy()).view(torch.bfloat16).float()
    tensor = torch.from_numpy(array.numpy().copy())
    return tensor.float() if tensor.dtype == torch.float16 else tensor


def view_array(array: Array) -> Tensor:
    """Return a view of the bytes of an array that this process has encoded: read it only."""
    shape, dtype = tuple(array.shape), getattr(torch, array.dtype)
    if not math.prod(shape):
        return torch.empty(shape, dtype=dtype)
    offset = len(_header(shape, np.dtype(array.dtype)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the view must not be written to
        return torch.frombuffer(array.data, dtype=dtype, offset=offset).view(shape)


def _header(shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    """Return the header that ``numpy.save`` writes for an array of this shape and type."""
    stream = BytesIO()
    described = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(
        stream, {"descr": described, "fortran_order": False, "shape": shape}
    )
    return stream.getvalue()


def encode_one_by_one(
    tensors: Iterable[tuple[str, Tensor]], buffers: ArrayBuffers | None = None
) -> ArrayRecord:
    """Encode tensors as they come, each freed before the next one is made."""
    encode = to_array if buffers is None else buffers.array
    record = ArrayRecord()
    for key, tensor in tensors:
        record[key] = encode(tensor)
    return record


def view_state(arrays: ArrayRecord) -> ModelState:
    """Read a state that this server has encoded, without a copy; it must not be written to."""
    state = ModelState()
    for key, array in arrays.items():
        state.insert(key, view_array(array))
    return state
