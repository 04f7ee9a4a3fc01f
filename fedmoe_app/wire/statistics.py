"""What a scheme's own parts measured on a client: float32 numbers by name, within bounds.

Plain values whatever the codec of the changes; a reply without any has no such record.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from flwr.app import ArrayRecord, RecordDict
from torch import Tensor

from fedmoe_app.shown.values import shown
from fedmoe_app.wire.errors import InvalidUpdateError
from fedmoe_app.wire.packing import raw_array, read_raw
from fedmoe_app.wire.spec import NumberSpec

RECORD = "statistics"
_ITEM = 4  # bytes of a float32


def encode_statistics(numbers: Mapping[str, Tensor]) -> ArrayRecord:
    """Encode float32 numbers for a reply."""
    return ArrayRecord(
        {name: raw_array(t.contiguous().numpy().tobytes()) for name, t in numbers.items()}
    )


def decode_statistics(content: RecordDict, expected: Mapping[str, NumberSpec]) -> dict[str, Tensor]:
    """Decode and validate what is in a reply.

    Raises:
        InvalidUpdateError: a name that is not expected or that is missing, another size, or a
            number out of bounds.
    """
    record = content.array_records.get(RECORD, ArrayRecord())
    found = {}
    needed = {name for name, spec in expected.items() if not spec.optional}
    if missing := sorted(needed - set(record)):
        raise InvalidUpdateError(f"statistics.{missing[0]}: missing", "missing")
    for name, array in record.items():
        spec = expected.get(name)
        if spec is None:
            raise InvalidUpdateError(f"statistics.{shown(name)}: nobody asked for it", "missing")
        size = _ITEM * math.prod(spec.shape)
        data = read_raw(array, f"statistics.{name}", size)
        if len(data) != size:
            raise InvalidUpdateError(
                f"statistics.{name}: {len(data)} bytes, expected {size}", "size"
            )
        numbers = torch.from_numpy(np.frombuffer(data, np.float32).copy()).view(spec.shape)
        # The comparison is false for NaN.
        if not bool(((numbers >= spec.low) & (numbers <= spec.high)).all()):
            raise InvalidUpdateError(
                f"statistics.{name}: a number outside {spec.low:g} to {spec.high:g}"
            )
        found[name] = numbers
    return found
