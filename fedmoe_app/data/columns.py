"""Bring any table into the uniform columns, and refuse what cannot be used.

Classification: ``text`` (str) and ``label`` (int index into the label names). Causal-lm:
``prompt`` and ``response`` (str). In both, the column that a partition goes by keeps its name.

Rows with an empty text (or an empty instruction or response) are dropped, with one warning that
tells how many. A missing or unknown label is an error: guessing would train on a wrong answer.
Rows are numbered from 1, blank lines and a CSV header not counted.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import ClassLabel, Dataset, Features, Value

from fedmoe_app.config import DataConfig
from fedmoe_app.data.errors import DataError

_MAX_LISTED = 20
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Table:
    """Rows as they were read, and where from (for messages)."""

    dataset: Dataset
    origin: str
    private: bool = False  # a node's own: messages reach the server and must not quote its values


def format_prompt(instruction: str, context: str = "") -> str:
    """Return the prompt of an instruction, in the layout of Alpaca (Taori et al., 2023)."""
    passage = f"### Context:\n{context.strip()}\n\n" if context.strip() else ""
    return f"### Instruction:\n{instruction.strip()}\n\n{passage}### Response:\n"


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
    elif all(isinstance(_feature(table, config.label_field), ClassLabel) for table in tables):
        names = _feature(tables[0], config.label_field).names
    else:
        found = {
            value for table in tables for value in _present(_labels(table, config.label_field))
        }
        if all(isinstance(value, int) for value in found):
            names = _companion_names(tables, config.label_field) or [str(i) for i in sorted(found)]
        else:
            names = sorted(str(value) for value in found)
    if len(set(names)) < len(names):
        raise DataError(f"data.label-names = {_listed(names)}: a name stands there twice")
    return tuple(names)


def unify(
    table: Table, config: DataConfig, label_names: Sequence[str], keep_partition_column: bool
) -> Dataset:
    """Return a table in the uniform columns of its task.

    Args:
        table: the rows as read.
        config: which columns mean what.
        label_names: class names in index order; unused by causal-lm.
        keep_partition_column: whether to keep the column that the partition goes by (a test set
            need not have it).

    Raises:
        DataError: a missing column, one of the wrong type, a label outside ``label_names``, or no
            row left.
    """
    if config.task == "classification":
        columns, rows = _classification(table, config, label_names)
    else:
        columns, rows = _causal_lm(table, config)
    if keep_partition_column and config.partition != "iid":
        _add_partition_column(columns, rows, table, config)
    return _dataset(columns)


def _classification(
    table: Table, config: DataConfig, label_names: Sequence[str]
) -> tuple[dict[str, list[Any]], list[int]]:
    texts = _texts(table, config.text_field, "data.text-field")
    rows = _non_empty(table, texts, [config.text_field])
    labels = _labels(table, config.label_field)
    return {
        "text": [texts[row] for row in rows],
        "label": _label_indices(table, labels, rows, label_names),
    }, rows


def _causal_lm(table: Table, config: DataConfig) -> tuple[dict[str, list[Any]], list[int]]:
    instructions = _texts(table, config.instruction_field, "data.instruction-field")
    responses = _texts(table, config.response_field, "data.response-field")
    contexts = [""] * len(responses)
    if config.context_field:
        contexts = _texts(table, config.context_field, "data.context-field")
    shorter = [min(pair, key=len) for pair in zip(instructions, responses, strict=True)]
    rows = _non_empty(table, shorter, [config.instruction_field, config.response_field])
    return {
        "prompt": [format_prompt(instructions[row], contexts[row]) for row in rows],
        "response": [responses[row] for row in rows],
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
    values = _labels(table, name, "data.partition-by")
    for row in rows:
        if values[row] is None:
            raise DataError(f'{table.origin}, row {row + 1}: column "{name}" has no value')
    columns[name] = [values[row] for row in rows]


def _dataset(columns: dict[str, list[Any]]) -> Dataset:
    types = {
        name: Value("int64" if isinstance(values[0], int) else "string")
        for name, values in columns.items()
    }
    return Dataset.from_dict(columns, features=Features(types))


def _feature(table: Table, column: str, key: str = "data.label-field") -> Any:
    features = table.dataset.features
    if column not in features:
        raise DataError(
            f'{key} = "{column}": {table.origin} has no such column; choose one of '
            f"{_listed(features)}"
        )
    return features[column]


def _texts(table: Table, column: str, key: str) -> list[str]:
    """Return a text column, stripped; a missing value becomes the empty text."""
    feature = _feature(table, column, key)
    kind = getattr(feature, "dtype", type(feature).__name__)
    if kind not in ("string", "large_string", "null"):
        raise DataError(f'{key} = "{column}": {table.origin} holds {kind} there, not text')
    return [(value or "").strip() for value in table.dataset[column]]


def _non_empty(table: Table, texts: Sequence[str], columns: Sequence[str]) -> list[int]:
    rows = [row for row, text in enumerate(texts) if text]
    named = " or ".join(f'"{column}"' for column in columns)
    if not rows:
        raise DataError(f"{table.origin}: every row is empty in {named}")
    if len(rows) < len(texts):
        first = next(row for row, text in enumerate(texts) if not text)
        _log.warning(
            "%s: dropped %d of %d rows, which are empty in %s (the first is row %d)",
            table.origin,
            len(texts) - len(rows),
            len(texts),
            named,
            first + 1,
        )
    return rows


def _labels(
    table: Table, column: str, key: str = "data.label-field"
) -> list[str | None] | list[int | None]:
    """Return a column of names or integers, None where the value is missing."""
    feature = _feature(table, column, key)
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
        f"label names {_listed(label_names)}; correct the row, or set data.label-names"
    )


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f", ... ({len(names)} in all)" if len(names) > _MAX_LISTED else ""
    return ", ".join(names[:_MAX_LISTED]) + more
