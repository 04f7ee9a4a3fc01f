"""Read the columns of a table of unknown make, with errors that say where a value is wrong.

Rows are numbered from 1 in messages, blank lines and a CSV header not counted.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import ClassLabel, Dataset

from fedmoe_app.data.errors import DataError
from fedmoe_app.shown.logs import log_line

_MAX_LISTED = 20
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Table:
    """Rows as they were read, and where from (for messages)."""

    dataset: Dataset
    origin: str
    private: bool = False  # a node's own: messages reach the server and must not quote its values


def read_feature(table: Table, column: str, key: str = "data.label-field") -> Any:
    """Return a column's type.

    Args:
        table: the rows as read.
        column: its name.
        key: the run config's key that names the column, for the message.

    Raises:
        DataError: there is no such column.
    """
    features = table.dataset.features
    if column not in features:
        raise DataError(
            f'{key} = "{column}": {table.origin} has no such column; choose one of '
            f"{column_names(table)}"
        )
    return features[column]


def column_names(table: Table) -> str:
    """Return the columns' names for a message; of a node's own file, only how many there are.

    Where a CSV file lacks its header, the names are the values of the first row.
    """
    features = table.dataset.features
    return f"its {len(features)} columns" if table.private else listed(features)


def read_texts(table: Table, column: str, key: str) -> list[str]:
    """Return a text column, stripped; a missing value becomes the empty text."""
    feature = read_feature(table, column, key)
    kind = getattr(feature, "dtype", type(feature).__name__)
    if kind not in ("string", "large_string", "null"):
        raise DataError(f'{key} = "{column}": {table.origin} holds {kind} there, not text')
    return [(value or "").strip() for value in table.dataset[column]]


def non_empty(table: Table, texts: Sequence[str], columns: Sequence[str]) -> list[int]:
    """Return the rows whose text is not empty, with one warning about the others.

    Raises:
        DataError: every row is empty.
    """
    rows = [row for row, text in enumerate(texts) if text]
    named = " or ".join(f'"{column}"' for column in columns)
    if not rows:
        raise DataError(f"{table.origin}: every row is empty in {named}")
    if len(rows) < len(texts):
        first = next(row for row, text in enumerate(texts) if not text)
        _log.warning(
            "%s: dropped %d of %d rows, which are empty in %s (the first is row %d)",
            log_line(table.origin),
            len(texts) - len(rows),
            len(texts),
            log_line(named),
            first + 1,
        )
    return rows


def read_labels(
    table: Table, column: str, key: str = "data.label-field"
) -> list[str | None] | list[int | None]:
    """Return a column of names or integers, None where the value is missing."""
    feature = read_feature(table, column, key)
    values = table.dataset[column]
    if isinstance(feature, ClassLabel):
        # -1 is how unlabelled test sets on the hub are marked.
        return [feature.names[i] if i is not None and i >= 0 else None for i in values]
    kind = getattr(feature, "dtype", type(feature).__name__)
    if kind in ("string", "large_string", "null"):
        return [(value or "").strip() or None for value in values]
    if kind == "bool":
        return [None if value is None else str(value) for value in values]
    if kind.startswith(("int", "uint")):
        return list(values)
    raise DataError(
        f'{key} = "{column}": {table.origin} holds values of type {kind} there; names or integers '
        "are needed, all of one kind and none missing"
    )


def listed(names: Iterable[str]) -> str:
    """Return names for a message, cut when there are many."""
    names = list(names)
    more = f", ... ({len(names)} in all)" if len(names) > _MAX_LISTED else ""
    return ", ".join(names[:_MAX_LISTED]) + more
