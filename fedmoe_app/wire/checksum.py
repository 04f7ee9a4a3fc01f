"""A checksum over a whole reply, so that no damage on the way is taken for values.

It protects against accidents (a full disk, a broken cache, a bug between the two programs), not
against a client that lies: TLS and authenticated nodes are Flower's part.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import xxhash
from flwr.app import ArrayRecord

BLOCK = 1 << 20  # bytes at a time: the next to look at them finds them in the core's cache
Watch = Callable[[str, memoryview], None]


def checksum(
    header: Mapping[str, Any],
    metrics: Mapping[str, Any],
    *records: ArrayRecord,
    watch: Watch = lambda key, block: None,
) -> bytes:
    """Return 8 bytes (XXH3) over names, labels and contents of a reply.

    Args:
        header: the entries of the config record, but for the checksum itself.
        metrics: numbers by name; 1 and 1.0 differ.
        records: arrays, with what they say of themselves.
        watch: is shown the data of each array, block by block, in order.
    """
    digest = xxhash.xxh3_64()
    arrays = [item for record in records for item in sorted(record.items())]
    labels = [[k, a.dtype, list(a.shape), a.stype, len(a.data)] for k, a in arrays]
    described = [sorted(header.items()), sorted(metrics.items()), labels]
    digest.update(json.dumps(described, default=repr).encode())
    for key, array in arrays:
        data = memoryview(array.data)
        for start in range(0, len(data), BLOCK):
            block = data[start : start + BLOCK]
            digest.update(block)
            watch(key, block)
    return digest.digest()
