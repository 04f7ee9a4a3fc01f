"""Arrow tables larger than memory: written as they are made, then mapped from the disk."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa

IN_MEMORY = 64 << 20  # bytes up to which a table without a file of its own stays in memory


def write_batches(
    path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch | pa.Table]
) -> None:
    """Write batches to a new file that only its owner may read."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        for batch in batches:
            writer.write(batch)


def map_file(path: Path) -> pa.Table:
    """Return a table whose values stay in the file until they are looked at."""
    return pa.ipc.open_stream(pa.memory_map(str(path))).read_all()


def held(schema: pa.Schema, batches: Iterable[pa.RecordBatch | pa.Table]) -> pa.Table:
    """Return batches as one table, in memory if they are small.

    Larger ones go to a file without a name, in the folder for temporary files, that only this
    process can open and that is gone with it.
    """
    small: list[pa.Table] = []
    size = 0
    rest = iter(batches)
    for batch in rest:
        small.append(_table(batch))
        size += batch.nbytes
        if size > IN_MEMORY:
            return _spilled(schema, small, rest)
    return pa.concat_tables(small) if small else schema.empty_table()


def _table(batch: pa.RecordBatch | pa.Table) -> pa.Table:
    return pa.Table.from_batches([batch]) if isinstance(batch, pa.RecordBatch) else batch


def _spilled(
    schema: pa.Schema, first: Iterable[pa.Table], rest: Iterable[pa.RecordBatch | pa.Table]
) -> pa.Table:
    with tempfile.TemporaryFile(prefix="fedmoe-") as file:
        with pa.ipc.new_stream(file, schema) as writer:
            for part in (first, rest):
                for batch in part:
                    writer.write(batch)
        file.flush()
        # The mapping keeps the contents after the file is closed.
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return pa.ipc.open_stream(pa.py_buffer(mapped)).read_all()
