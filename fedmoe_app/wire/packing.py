"""The changes of an update as two buffers, whatever its number of tensors.

``coded``: all matrices in the order of the spec, as one vector through the codec. ``small``:
vectors (biases, norms) and tensors of fewer than ``MIN_CODED`` values as one vector, in fp32 with a
lossless codec and in fp16 otherwise: a scale or a position would cost more than it saves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from flwr.app import Array
from torch import Tensor

from fedmoe_app.moe.state import ModelState
from fedmoe_app.shown.values import shown
from fedmoe_app.wire.codecs import FP16, FP32, Codec
from fedmoe_app.wire.codecs.base import Rows, rows_of
from fedmoe_app.wire.errors import InvalidUpdateError
from fedmoe_app.wire.spec import Shape, tensors_in_order

CODED, SMALL = "coded", "small"  # keys of the two buffers
MIN_CODED = 64

# No fine-tuning round moves a weight this far; sums of such values stay finite in float32.
MAX_CHANGE = 1e4

_RAW = "fedmoe.raw"  # Flower's name of a serialisation: plain bytes, no .npy header of 128 bytes


def raw_array(data: bytes) -> Array:
    """Return bytes as a Flower array."""
    return Array(dtype="uint8", shape=(len(data),), stype=_RAW, data=data)


def read_raw(array: Array, key: str, most: int) -> memoryview:
    """Return the bytes of :func:`raw_array` without a copy.

    Raises:
        InvalidUpdateError: if the array is of another kind or longer than ``most``.
    """
    size = len(array.data)
    if size > most:
        raise InvalidUpdateError(f"{key}: {size} bytes, at most {most} are possible", "size")
    if (array.stype, array.dtype, tuple(array.shape)) != (_RAW, "uint8", (size,)):
        raise InvalidUpdateError(
            f"{key}: not plain bytes of this length; it says {shown(str(array.stype), 20)} "
            f"{shown(str(array.dtype), 20)} {shown(tuple(array.shape))}",
            "size",
        )
    return memoryview(array.data)


def pack_changes(changes: ModelState, codec: Codec, seed: Sequence[int]) -> dict[str, bytes]:
    """Encode changes into the two buffers.

    Args:
        changes: float32.
        codec: of the matrices.
        seed: of codecs that round at random; the same seed gives the same bytes.
    """
    tensors = tensors_in_order(changes)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    buffers = {}
    for key, part, of_part in _parts(shapes, codec):
        rows = rows_of(part.values())
        buffers[key] = of_part.encode(_joined(tensors, part), rows, seed) if rows else b""
    return buffers


class Squares:
    """Sums of squares of buffers of float32, taken on the way while the values are in the cache."""

    def __init__(self) -> None:
        self._found: dict[str, float] = {}

    def add(self, key: str, block: memoryview) -> None:
        """Look at the next block of a buffer."""
        whole = len(block) // 4
        values = np.frombuffer(block, np.float32, whole)
        with np.errstate(all="ignore"):  # infinity is an answer, too
            self._found[key] = self._found.get(key, 0.0) + float(np.dot(values, values))

    def of(self, key: str, values: Tensor) -> float:
        """Return the sum of squares of a buffer's values, taken now if it was not seen."""
        found = self._found.get(key)
        return float(torch.dot(values, values)) if found is None else found


def unpack_changes(
    buffers: Mapping[str, memoryview],
    codec: Codec,
    shapes: Mapping[str, Shape],
    squares: Squares | None = None,
) -> ModelState:
    """Decode and check changes.

    Args:
        buffers: what :func:`pack_changes` returned.
        codec: of the matrices.
        shapes: of all tensors, in the order of travel.
        squares: of the buffers' values, if the codec is lossless.

    Raises:
        InvalidUpdateError: if lengths do not fit the shapes, or values are not finite or too large.
    """
    found: dict[str, Tensor] = {}
    squares = squares or Squares()
    for key, part, of_part in _parts(shapes, codec):
        vector = _decoded(buffers[key], of_part, rows_of(part.values()))
        sizes = [_size(shape) for shape in part.values()]
        tensors = vector.split(sizes) if sizes else ()
        found |= {n: t.view(s) for (n, s), t in zip(part.items(), tensors, strict=True)}
        # No value is larger than the root of all squares. The comparison is false for NaN.
        if vector.numel() and not squares.of(key, vector) < MAX_CHANGE**2 / 2:
            _check_range(found)
    changes = ModelState()
    for name in shapes:
        changes.insert(name, found[name])
    return changes


def max_packed(codec: Codec, shapes: Mapping[str, Shape]) -> dict[str, int]:
    """Return how long each buffer can be."""
    return {
        key: of_part.max_bytes(rows_of(part.values()))
        for key, part, of_part in _parts(shapes, codec)
    }


def expected_packed(codec: Codec, shapes: Mapping[str, Shape]) -> int:
    """Return how long both buffers are together, see :meth:`Codec.expected_bytes`."""
    parts = [(rows_of(part.values()), of_part) for _, part, of_part in _parts(shapes, codec)]
    return sum(of_part.expected_bytes(rows) for rows, of_part in parts if rows)


def _decoded(data: memoryview, codec: Codec, rows: Rows) -> Tensor:
    if not rows and data:
        raise InvalidUpdateError(f"{len(data)} bytes of data, expected none", "size")
    return codec.decode(data, rows) if rows else torch.zeros(0)


def _joined(tensors: Mapping[str, Tensor], names: Mapping[str, Shape]) -> Tensor:
    """Return the named tensors as one vector ``[n]`` float32."""
    parts = [tensors[name].detach().cpu().float().reshape(-1) for name in names]
    return torch.cat(parts) if parts else torch.zeros(0)


def _parts(shapes: Mapping[str, Shape], codec: Codec) -> list[tuple[str, dict[str, Shape], Codec]]:
    """Return the two buffers: their keys, tensors and codecs."""
    large = {n: s for n, s in shapes.items() if len(s) > 1 and _size(s) >= MIN_CODED}
    small = {name: shape for name, shape in shapes.items() if name not in large}
    return [(CODED, large, codec), (SMALL, small, FP32 if codec.lossless else FP16)]


def _size(shape: Shape) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


def _check_range(tensors: Mapping[str, Tensor]) -> None:
    """Refuse values that are not finite or changed too far, naming the first such tensor."""
    for name, tensor in tensors.items():
        bad = int((~torch.isfinite(tensor)).sum())
        if bad:
            raise InvalidUpdateError(
                f"{name}: {bad} of {tensor.numel()} values are NaN or infinite"
            )
        largest = float(tensor.abs().max()) if tensor.numel() else 0.0
        if largest > MAX_CHANGE:
            raise InvalidUpdateError(
                f"{name}: a value changed by {largest:.3g}, at most {MAX_CHANGE:g} is allowed"
            )
