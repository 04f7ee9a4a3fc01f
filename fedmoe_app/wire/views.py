"""The global state as views of its own encoded arrays: the server holds one copy, not two."""

from __future__ import annotations

from collections.abc import Iterable

from flwr.app import ArrayRecord
from torch import Tensor

from fedmoe_app.moe.state import ModelState
from fedmoe_app.wire.arrays import ArrayBuffers, to_array, view_array


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
