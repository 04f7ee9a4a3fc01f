"""Bring any table into the uniform columns, and refuse what cannot be used.

Classification: ``text`` (str) and ``label`` (int index into the label names). Causal-lm: see
:mod:`fedmoe_app.data.causal_lm`. Multiple choice: see :mod:`fedmoe_app.data.choices`. In all of
them, the column that a partition goes by keeps its name.

Rows with an empty text (or an empty instruction or response) are dropped, with one warning that
tells how many. A missing or unknown label is an error: guessing would train on a wrong answer.
Rows are numbered from 1, blank lines and a CSV header not counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from datasets import ClassLabel, Dataset, Features, List, Value

from fedmoe_app.config import DataConfig
from fedmoe_app.data.causal_lm import language_rows
from fedmoe_app.data.choices import multiple_choice
from fedmoe_app.data.errors import DataError
from fedmoe_app.data.prompt_format import ALPACA, PromptFormat
from fedmoe_app.data.table import Table, listed, non_empty, read_feature, read_labels, read_texts


def format_prompt(instruction: str, context: str = "") -> str:
    """Return the prompt of an instruction in the default layout."""
    return PromptFormat(ALPACA).prompt(instruction, context)


def partition_column(config: DataConfig) -> str:
    """Return the uniform name of the column that the Dirichlet or natural partition goes by."""
    if config.task == "classification" and config.partition_column == config.label_field:
        return "label"
    return config.partition_column


def find_label_names(tables: Sequence[Table], config: DataConfig) -> tuple[str, ...]:
    """Return the class names in index order.

    They are ``data.label-names`` if given; else the names that come with the data set; else, for
    text labels, the sorted texts; else, for integers, those in a text column called like the label
    column plus ``_name``, if there is one, or the sorted integers themselves.

    Raises:
        DataError: a repeated name, a missing column, or labels that are neither text nor integers.
    """
    if config.labels:
        names: Sequence[str] = config.labels
    elif all(isinstance(read_feature(table, config.label_field), ClassLabel) for table in tables):
        names = read_feature(tables[0], config.label_field).names
    else:
        found = {
            value for table in tables for value in _present(read_labels(table, config.label_field))
        }
        if all(isinstance(value, int) for value in found):
            names = _companion_names(tables, config.label_field) or [str(i) for i in sorted(found)]
        else:
            names = sorted(str(value) for value in found)
    if len(set(names)) < len(names):
        raise DataError(f"data.label-names = {listed(names)}: a name stands there twice")
    return tuple(names)


def unify(
    table: Table, config: DataConfig, label_names: Sequence[str], keep_partition_column: bool
) -> Dataset:
    """Return a table in the uniform columns of its task.

    Args:
        table: the rows as read.
        config: which columns mean what.
        label_names: class names in index order; only used by classification.
        keep_partition_column: whether to keep the column that the partition goes by (a test set
            need not have it).

    Raises:
        DataError: a missing column, one of the wrong type, a label outside ``label_names``, or no
            row left.
    """
    if config.task == "classification":
        columns, rows = _classification(table, config, label_names)
    elif config.task == "multiple-choice":
        columns, rows = multiple_choice(table, config)
    else:
        columns, rows = language_rows(table, config)
    if keep_partition_column and config.partition != "iid":
        _add_partition_column(columns, rows, table, config)
    return _dataset(columns)


def _classification(
    table: Table, config: DataConfig, label_names: Sequence[str]
) -> tuple[dict[str, list[Any]], list[int]]:
    texts = read_texts(table, config.text_field, "data.text-field")
    rows = non_empty(table, texts, [config.text_field])
    labels = read_labels(table, config.label_field)
    return {
        "text": [texts[row] for row in rows],
        "label": _label_indices(table, labels, rows, label_names),
    }, rows


def _add_partition_column(
    columns: dict[str, list[Any]], rows: list[int], table: Table, config: DataConfig
) -> None:
    name = partition_column(config)
    if name == "label" and config.label_field == config.partition_column and "label" in columns:
        return
    if name in columns:
        raise DataError(
            f'data.partition-by = "{name}": this name is taken by the text itself or its label; '
            "rename the column in the data"
        )
    values = read_labels(table, name, "data.partition-by")
    for row in rows:
        if values[row] is None:
            raise DataError(f'{table.origin}, row {row + 1}: column "{name}" has no value')
    columns[name] = [values[row] for row in rows]


def _dataset(columns: dict[str, list[Any]]) -> Dataset:
    types = {name: _type(values[0]) for name, values in columns.items()}
    return Dataset.from_dict(columns, features=Features(types))


def _type(value: Any) -> Value | List:
    if isinstance(value, list):
        of_messages = bool(value) and isinstance(value[0], dict)
        return List(dict.fromkeys(value[0], Value("string")) if of_messages else Value("string"))
    return Value("int64" if isinstance(value, int) else "string")


def _present(values: Iterable[Any]) -> Iterable[Any]:
    return (value for value in values if value is not None)


def _companion_names(tables: Sequence[Table], label_field: str) -> list[str] | None:
    """Names of integer labels out of the column ``<label_field>_name``, if it fits."""
    column = f"{label_field}_name"
    pairs: set[tuple[Any, Any]] = set()
    for table in tables:
        if column not in table.dataset.features:
            return None
        pairs |= set(zip(table.dataset[label_field], table.dataset[column], strict=True))
    names = dict(pairs)
    fits = sorted(names) == list(range(len(pairs))) if None not in names else False
    fits = fits and all(isinstance(name, str) for name in names.values())
    return [names[index] for index in range(len(pairs))] if fits else None


def _label_indices(
    table: Table, labels: Sequence[Any], rows: Sequence[int], label_names: Sequence[str]
) -> list[int]:
    """Turn names or integers into indices.

    An integer is a position in ``label_names``, unless the names are integers themselves, in
    which case it is a name.
    """
    known: dict[Any, int] = {name: index for index, name in enumerate(label_names)}
    if all(name.lstrip("-").isdecimal() for name in label_names):
        known |= {int(name): index for index, name in enumerate(label_names)}
    else:
        known |= {index: index for index in range(len(label_names))}
    indices = []
    for row in rows:
        if labels[row] not in known:
            raise DataError(_bad_label(table, labels[row], row, label_names))
        indices.append(known[labels[row]])
    return indices


def _bad_label(table: Table, value: Any, row: int, label_names: Sequence[str]) -> str:
    if value is None:
        return f"{table.origin}, row {row + 1}: the label is missing"
    label = "its label" if table.private else f"label {value!r}"
    return (
        f"{table.origin}, row {row + 1}: {label} is not one of the {len(label_names)} "
        f"label names {listed(label_names)}; correct the row, or set data.label-names"
    )
