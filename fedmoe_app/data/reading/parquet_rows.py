"""Parquet: typed columns become the text that a JSON or CSV file of the same rows would hold."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import pyarrow as pa
from pyarrow import parquet
from pyarrow import types as kinds

from fedmoe_app.config.errors import DataError
from fedmoe_app.data.reading.arrow_text import NotText, as_text, is_nested
from fedmoe_app.data.reading.columns import ROWS, Asked, LeftOut, Rows


def read_parquet(
    path: Path, asked: Asked | None, file: IO[bytes] | None = None, lenient: bool = False
) -> Rows:
    """Read the columns that are asked for (None: all); see :func:`read_columns` of ``files``.

    Args:
        path: the file, for messages, too.
        asked: the columns.
        file: the unpacked contents, where they are not those of ``path``.
        lenient: a value that cannot be read is missing, and no error.
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
        _batches(path, source, {name: own[name] for name in wanted}, nested, declared, lenient),
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
    lenient: bool,
) -> Iterator[pa.RecordBatch]:
    start = 0
    left_out = LeftOut(path) if lenient else None
    for batch in source.iter_batches(ROWS, columns=list(names.values())):
        columns = []
        for name, own in names.items():
            column = batch.column(own)
            if is_nested(column.type) and name not in nested:
                raise DataError(
                    f'{path}, row {start + 1}: column "{name}" holds {column.type}, not a text'
                )
            columns.append(_text(path, start, name, column, declared.get(name), left_out))
        yield pa.RecordBatch.from_arrays(columns, list(names))
        start += len(batch)
    if left_out is not None:
        left_out.report()


def _text(
    path: Path,
    start: int,
    name: str,
    column: pa.Array,
    names: tuple[str, ...] | None,
    left_out: LeftOut | None,
) -> pa.Array:
    try:
        text = as_text(column, names)
        text.validate(full=True)
        return text
    except pa.ArrowInvalid:
        if left_out is not None:
            return _good_values(start, column, names, left_out)
        row = start + next(row for row in range(len(text)) if not _is_utf8(text[row]))
        raise DataError(
            f'{path}, row {row + 1}: column "{name}" holds bytes that are not UTF-8'
        ) from None
    except NotText as error:
        if left_out is not None and _is_by_value(column.type):
            return _good_values(start, column, names, left_out)
        raise DataError(f'{path}: column "{name}" {error}') from None


def _is_by_value(kind: pa.DataType) -> bool:
    """Tell whether it is a value, and not the type, that decides if a column can be read."""
    of_bytes = kinds.is_binary(kind) or kinds.is_large_binary(kind)
    return bool(of_bytes or kinds.is_large_string(kind) or kinds.is_integer(kind))


def _good_values(
    start: int, column: pa.Array, names: tuple[str, ...] | None, left_out: LeftOut
) -> pa.Array:
    """Return the values that can be read, null in the place of the others."""
    found: list[str | None] = []
    for row in range(len(column)):
        try:
            (value,) = as_text(column.slice(row, 1), names).to_pylist()
        except (NotText, pa.ArrowInvalid, UnicodeDecodeError):
            left_out.note(f"row {start + row + 1}")
            value = None
        found.append(value)
    return pa.array(found, pa.string())


def _is_utf8(value: pa.Scalar) -> bool:
    try:
        value.as_py()
    except UnicodeDecodeError:
        return False
    return True
