"""Typed Arrow columns as text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
from pyarrow import compute
from pyarrow import types as kinds

from fedmoe_app.data.reading.columns import json_text

# What Python's str.strip takes away, and nothing more.
_SPACE = "".join(chr(code) for code in range(0x3001) if chr(code).isspace())


class NotText(ValueError):
    """A column that cannot be shown as text; the message goes on after the column's name."""


def is_nested(kind: pa.DataType) -> bool:
    """Tell whether a type holds lists or objects."""
    return bool(kinds.is_nested(kind))


def as_text(column: pa.Array, class_names: Sequence[str] | None = None) -> pa.Array:
    """Return a column as text, null where a value is missing.

    Numbers, dates and booleans are written as JSON writes them; lists and objects as JSON text; NaN
    is a missing value.

    Args:
        column: of any type.
        class_names: of a column of class indices: the result holds names, null for -1.

    Raises:
        NotText: for bytes that are no UTF-8, and for types without a form as text.
    """
    if kinds.is_dictionary(column.type):
        column = column.dictionary_decode()
    if class_names is not None and kinds.is_integer(column.type):
        return _class_names(column, class_names)
    if column.type == pa.string():
        return column
    if is_nested(column.type):
        cells = (None if cell is None else json_text(_plain(cell)) for cell in column.to_pylist())
        return pa.array(cells, pa.string())
    if kinds.is_floating(column.type) or kinds.is_temporal(column.type):
        # Arrow would write 1.0 as 1 and midnight with six zeros.
        return pa.array(map(_written, _cells(column)), pa.string())
    if kinds.is_decimal(column.type):
        cells = (None if cell is None else f"{cell:f}" for cell in column.to_pylist())
        return pa.array(cells, pa.string())
    try:
        return column.cast(pa.string())
    except pa.ArrowException:
        raise NotText(f"holds values of type {column.type}, which are no text") from None


def trimmed(column: pa.Array) -> pa.Array:
    """Return text without outer white space; the same object where nothing changes."""
    shorter = compute.utf8_trim(column, _SPACE)
    return column if shorter.equals(column) else shorter


def _cells(column: pa.Array) -> Iterable[Any]:
    # numpy knows the shortest digits of 16 and 32 bits: 0.1 and not 0.10000000149011612.
    floats = kinds.is_floating(column.type)
    return column.to_numpy(zero_copy_only=False) if floats else column.to_pylist()


def _written(cell: Any) -> str | None:
    return None if cell is None or cell != cell else str(cell)


def _class_names(column: pa.Array, names: Sequence[str]) -> pa.Array:
    top = compute.max(column).as_py()
    if top is not None and top >= len(names):
        raise NotText(f"holds the class index {top}, but declares {len(names)} names")
    # -1 is how unlabelled test sets on the hub are marked.
    index = compute.if_else(compute.less(column, 0), None, column)
    return pa.array(list(names), pa.string()).take(index)


def _plain(value: Any) -> Any:
    """Turn what JSON cannot hold into text, numbers included: a list of options is texts."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    if value is None or isinstance(value, bool | str):
        return value
    return str(value)
