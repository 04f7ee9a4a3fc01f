"""Parquet: typed columns become the text that a JSON or CSV file of the same rows would hold."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import pyarrow as pa
from pyarrow import parquet

from fedmoe_app.config.errors import DataError
from fedmoe_app.data.reading.arrow_text import NotText, as_text, is_nested
from fedmoe_app.data.reading.columns import ROWS, Asked, Rows


def read_parquet(path: Path, asked: Asked | None, file: IO[bytes] | None = None) -> Rows:
    """Read the columns that are asked for (None: all); see :func:`read_rows` of ``files``.

    Args:
        path: the file, for messages, too.
        asked: the columns.
        file: the unpacked contents, where they are not those of ``path``.
    """
    source = parquet.ParquetFile(file or path)
    schema = source.schema_arrow
    own = {name.strip(): name for name in schema.names}  # its name in the file
    names = tuple(name.strip() for name in schema.names)
    wanted = [name for name in names if asked is None or name in asked.names]
    for name in wanted:
        if names.count(name) > 1:
            raise DataError(f'{path}: column "{name}" stands twice in the file')
    nested = wanted if asked is None else asked.nested
    declared = declared_names(schema)
    return Rows(
        names,
        _batches(path, source, {name: own[name] for name in wanted}, nested, declared),
        {name: declared[name] for name in wanted if name in declared},
    )


def declared_names(schema: pa.Schema) -> dict[str, tuple[str, ...]]:
    """Return the class names of the columns that ``datasets`` wrote as ``ClassLabel``."""
    text = (schema.metadata or {}).get(b"huggingface")
    features = json.loads(text).get("info", {}).get("features", {}) if text else {}
    return {
        column.strip(): tuple(feature["names"])
        for column, feature in (features or {}).items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
    }


def _batches(
    path: Path,
    source: parquet.ParquetFile,
    names: dict[str, str],
    nested: Sequence[str],
    declared: dict[str, tuple[str, ...]],
) -> Iterator[pa.RecordBatch]:
    start = 0
    for batch in source.iter_batches(ROWS, columns=list(names.values())):
        columns = []
        for name, own in names.items():
            column = batch.column(own)
            if is_nested(column.type) and name not in nested:
                raise DataError(
                    f'{path}, row {start + 1}: column "{name}" holds {column.type}, not a text'
                )
            columns.append(_text(path, start, name, column, declared.get(name)))
        yield pa.RecordBatch.from_arrays(columns, list(names))
        start += len(batch)


def _text(
    path: Path, start: int, name: str, column: pa.Array, names: tuple[str, ...] | None
) -> pa.Array:
    try:
        text = as_text(column, names)
        text.validate(full=True)
        return text
    except pa.ArrowInvalid:
        row = start + next(row for row in range(len(text)) if not _is_utf8(text[row]))
        raise DataError(
            f'{path}, row {row + 1}: column "{name}" holds bytes that are not UTF-8'
        ) from None
    except NotText as error:
        raise DataError(f'{path}: column "{name}" {error}') from None


def _is_utf8(value: pa.Scalar) -> bool:
    try:
        value.as_py()
    except UnicodeDecodeError:
        return False
    return True
