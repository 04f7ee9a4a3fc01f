"""Class names and the index of each row's class.

A label is the class whose name it equals. It is a position among the names only where the data
set declares that (``ClassLabel``), where a column ``<label>_name`` beside it says what each number
means, or where ``data.label-kind = "index"`` says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import pyarrow as pa
from pyarrow import compute

from fedmoe_app.config.errors import DataError
from fedmoe_app.config.lists import torn_name
from fedmoe_app.config.schema import DataConfig
from fedmoe_app.data.table import Table, batches, check_column, class_names, listed, text_array

_KEY = "data.label-field"
_ROWS = 1 << 16
_INTEGER = re.compile(r"-?[0-9]+")


def companion(label_field: str) -> str:
    """Return the name of the column that may hold the names of integer labels."""
    return f"{label_field}_name"


def find_label_names(tables: Sequence[Table], config: DataConfig) -> tuple[str, ...]:
    """Return the class names in index order.

    They are ``data.label-names`` if given; else the names that come with the data set; else, for
    labels 0, 1, 2, ... with a column called like the label column plus ``_name``, the names in it;
    else the labels that there are, sorted (as numbers if all are integers).

    Raises:
        DataError: a repeated name, a missing column, fewer than two classes, or
            ``data.label-kind = "index"`` without names.
    """
    if config.labels:
        names: Sequence[str] = config.labels
    elif config.label_kind == "index" and not all(_declared(table, config) for table in tables):
        raise DataError(
            'data.label-kind = "index": the labels are positions among data.label-names, which is '
            "empty; name the classes there"
        )
    else:
        names = _names_in(tables, config.label_field)
    if len(set(names)) < len(names):
        twice = listed(sorted({name for name in names if list(names).count(name) > 1}))
        raise DataError(f"data.label-names = {listed(names)}: a name stands there twice ({twice})")
    return tuple(names)


def _declared(table: Table, config: DataConfig) -> tuple[str, ...] | None:
    return class_names(table, config.label_field)


def _names_in(tables: Sequence[Table], label_field: str) -> Sequence[str]:
    declared = [class_names(table, label_field) for table in tables]
    named = list(dict.fromkeys(name for names in declared if names for name in names))
    if all(declared):
        return named
    if named:
        _check_others(tables, label_field, named)
        return named
    found: set[str] = set()
    for table in tables:
        found |= _values(table, label_field)
    return _companion_names(tables, label_field) or _sorted(found)


def _check_others(tables: Sequence[Table], label_field: str, names: Sequence[str]) -> None:
    """Refuse tables without class names of their own whose labels are none of the others' names.

    Were they classes of their own, 0 and 1 in a CSV file beside "negative" and "positive" of a
    data set would make four.
    """
    for table in tables:
        if class_names(table, label_field) is not None:
            continue
        if other := sorted(_values(table, label_field) - set(names)):
            shown = "labels" if table.private else f"labels such as {other[0]!r}"
            raise DataError(
                f'{table.origin}: column "{label_field}" has {shown} beside '
                f"files that declare the classes {listed(names)}; write these names there, or set "
                "data.label-names"
            )


def _sorted(found: Iterable[str]) -> list[str]:
    names = sorted(found)
    return sorted(names, key=int) if all(map(_INTEGER.fullmatch, names)) else names


def _values(table: Table, column: str) -> set[str]:
    """Return all different values of a column that are not empty."""
    check_column(table, column, _KEY)
    found: set[str] = set()
    for _, batch in batches(table.dataset, _ROWS):
        found |= set(compute.unique(text_array(table, column, batch, _KEY)).to_pylist())
    return {value for value in found if value}


def _companion_names(tables: Sequence[Table], label_field: str) -> list[str] | None:
    """Names of integer labels out of the column beside them, if it fits."""
    column = companion(label_field)
    pairs: set[tuple[str | None, str | None]] = set()
    for table in tables:
        if column not in table.dataset.column_names:
            return None
        pairs |= _pairs(table, label_field, column)
    names = dict(pairs)
    fits = len(names) == len(pairs) and set(names) == {str(index) for index in range(len(pairs))}
    return (
        [names[str(index)] or "" for index in range(len(pairs))]
        if fits and all(names.values())
        else None
    )


def _pairs(table: Table, first: str, second: str) -> set[tuple[str | None, str | None]]:
    found: set[tuple[str | None, str | None]] = set()
    for _, batch in batches(table.dataset, _ROWS):
        columns = [text_array(table, name, batch, _KEY) for name in (first, second)]
        groups = pa.table(columns, names=["a", "b"]).group_by(["a", "b"]).aggregate([])
        found |= set(zip(groups["a"].to_pylist(), groups["b"].to_pylist(), strict=True))
    return found


def label_column(table: Table, config: DataConfig, label_names: Sequence[str]) -> str:
    """Return the column whose values are class names: the label's, or the one beside it."""
    column, beside = config.label_field, companion(config.label_field)
    check_column(table, column, _KEY)
    if beside not in table.dataset.column_names or config.label_kind == "index":
        return column
    known = set(label_names)
    own = _values(table, column)
    return beside if not own <= known and _values(table, beside) <= known else column


def indices_by_row(
    table: Table, config: DataConfig, batch: pa.RecordBatch, names: Sequence[str]
) -> pa.Array:
    """Turn the labels of a lenient table into positions among the class names, int64.

    Null where a label is missing or no class. Whether the label or the name beside it says the
    class is told of each row by itself.
    """
    by_index = config.label_kind == "index" and class_names(table, config.label_field) is None
    values = [str(index) for index in range(len(names))] if by_index else list(names)
    columns = [config.label_field]
    if (beside := companion(config.label_field)) in table.dataset.column_names and not by_index:
        columns.append(beside)
    found = [
        compute.index_in(
            text_array(table, column, batch, _KEY),
            value_set=pa.array(values, pa.string()),
            skip_nulls=True,
        )
        for column in columns
    ]
    return compute.coalesce(*found).cast(pa.int64())


def label_indices(
    table: Table, config: DataConfig, labels: pa.Array, start: int, names: Sequence[str]
) -> pa.Array:
    """Turn labels into positions among the class names, int64.

    Args:
        table: where they come from.
        config: what a label is.
        labels: text, null where it is missing.
        start: the row of the first in the table, for messages.
        names: class names in index order.

    Raises:
        DataError: a missing label, or one that is no class; with file, row and column.
    """
    by_index = config.label_kind == "index" and class_names(table, config.label_field) is None
    values = [str(index) for index in range(len(names))] if by_index else list(names)
    indices = compute.index_in(labels, value_set=pa.array(values, pa.string()), skip_nulls=True)
    if indices.null_count:
        bad = compute.index(indices.is_null(), True).as_py()
        raise DataError(
            _bad_label(table, config, labels[bad].as_py(), start + bad, names, by_index)
        )
    return indices.cast(pa.int64())


def _bad_label(
    table: Table,
    config: DataConfig,
    value: str | None,
    row: int,
    names: Sequence[str],
    by_index: bool,
) -> str:
    where, column = table.where(row), f'(column "{config.label_field}")'
    if not value:
        return f"{where}: the label is missing {column}"
    label = "its label" if table.private else f"label {value!r}"
    if by_index:
        return (
            f"{where}: {label} is not an index from 0 to {len(names) - 1} of data.label-names "
            f"{column}"
        )
    hint = ""
    if value.isdecimal() and not any(name.isdecimal() for name in names):
        hint = ', or set data.label-kind = "index" if it is a position among them'
    return (
        f"{where}: {label} is not one of the {len(names)} label names {listed(names)}; correct the "
        f"row {column}, or set data.label-names{hint}{torn_name(value, names)}"
    )
