"""Bring any table into the uniform columns, and refuse what cannot be used.

Classification: ``text`` (str) and ``label`` (int index into the label names). Causal-lm: see
:mod:`fedmoe_app.data.language.rows`. Multiple choice: see :mod:`fedmoe_app.data.choices`. In all of
them, the column that a partition goes by keeps its name.

Rows with an empty text (or an empty instruction or response) are dropped, with one warning that
tells how many. A missing or unknown label is an error: guessing would train on a wrong answer.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset
from datasets.fingerprint import generate_random_fingerprint
from datasets.table import InMemoryTable
from pyarrow import compute

from fedmoe_app.config.errors import DataError
from fedmoe_app.config.lists import name_list
from fedmoe_app.config.schema import DataConfig
from fedmoe_app.data.alone import each_alone
from fedmoe_app.data.choices import find_shape, multiple_choice, shape_of
from fedmoe_app.data.labels import (
    companion,
    find_label_names,
    indices_by_row,
    label_column,
    label_indices,
)
from fedmoe_app.data.language.prompt_format import ALPACA, PromptFormat
from fedmoe_app.data.language.row_formats import asked_of_language
from fedmoe_app.data.language.rows import language_rows, needed
from fedmoe_app.data.reading.columns import ROWS, Asked
from fedmoe_app.data.reading.stored import held
from fedmoe_app.data.table import Needed, Table, batches, check_column, read_labels, text_array
from fedmoe_app.shown.logs import log_line

__all__ = ["Table", "asked_columns", "find_label_names", "format_prompt", "unify"]

_BATCH = 1 << 16
# Types of the uniform columns that are no texts.
_TYPES = {
    "options": pa.list_(pa.string()),
    "answer": pa.int64(),
    "messages": pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())])),
    "num_given": pa.int64(),
    "where": pa.string(),
}
_log = logging.getLogger(__name__)


def format_prompt(instruction: str, context: str = "") -> str:
    """Return the prompt of an instruction in the default layout."""
    return PromptFormat(ALPACA).prompt(instruction, context)


def partition_column(config: DataConfig) -> str:
    """Return the uniform name of the column that the Dirichlet or natural partition goes by."""
    if config.kind.classifies and config.partition_column == config.label_field:
        return "label"
    return config.partition_column


def asked_columns(config: DataConfig, names: Sequence[str]) -> Asked:
    """Return the columns of a file that a run reads; no other is looked at.

    Args:
        config: the task and the names that it sets.
        names: the file's columns.
    """
    by = () if config.partition == "iid" else (config.partition_column,)
    if config.kind.classifies:
        # The last is there or not; of JSON, the first rows need not have it.
        beside = (companion(config.label_field),)
        return Asked((config.text_field, config.label_field, *by), optional=beside)
    if config.kind.rows == "options":
        shape = shape_of(names, config)
        return Asked(by, shape.columns if shape else ())
    asked = asked_of_language(names, config)
    return replace(asked, scalars=(*asked.scalars, *by))


def named_columns(config: DataConfig) -> tuple[str, ...]:
    """Return the columns that a run's config names, whatever a file has."""
    fields = (
        config.text_field,
        config.label_field,
        config.question_field,
        *name_list(config.options_field, "data.options-field"),
        config.answer_field,
        config.messages_field,
        config.prompt_field or "prompt",
        config.completion_field or "completion",
        config.instruction_field,
        config.response_field,
        config.context_field,
    )
    return tuple(dict.fromkeys(filter(None, fields)))


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
            row left. Of a lenient table, what tells of the run and the file's columns alone.
    """
    if table.lenient:
        assert not keep_partition_column, "a node's own rows are not divided"
        return _leniently(table, config, label_names)
    by = partition_column(config) if keep_partition_column and config.partition != "iid" else None
    if config.kind.classifies:
        return _classification(table, config, label_names, by)
    return _by_rows(table, config, by)


def _leniently(table: Table, config: DataConfig, label_names: Sequence[str]) -> Dataset:
    """Return the rows that can be used, each made by itself; there may be none."""
    if config.kind.classifies:
        rows = _texts_of_classes(table, config, label_names)
    else:
        rows = _rows_alone(table, config)
    if (left := len(table.dataset) - len(rows)) > 0:
        _log.warning(
            "%s: %d of %d rows are not used: they lack what the run asks for, or their answer is "
            "none of those that it names",
            *(log_line(table.origin), left, len(table.dataset)),
        )
    return rows


def _texts_of_classes(table: Table, config: DataConfig, label_names: Sequence[str]) -> Dataset:
    check_column(table, config.text_field, "data.text-field")
    check_column(table, config.label_field)
    schema = pa.schema([("text", pa.string()), ("label", pa.int64())])
    pieces = [schema.empty_table()]
    for _, batch in batches(table.dataset, _BATCH):
        texts = text_array(table, config.text_field, batch, "data.text-field")
        labels = indices_by_row(table, config, batch, label_names)
        kept = compute.and_(
            compute.fill_null(compute.not_equal(texts, ""), False), compute.is_valid(labels)
        )
        pieces.append(pa.table([texts, labels], schema=schema).filter(kept))
    return _dataset(pa.concat_tables(pieces))


def _rows_alone(table: Table, config: DataConfig) -> Dataset:
    make = multiple_choice if config.kind.rows == "options" else language_rows

    def rows(start: int, stop: int) -> pa.Table:
        columns, _ = make(table.part(start, stop), config)
        return pa.table(columns, schema=_schema(columns))

    none = rows(0, 0)  # raises what is wrong with the run
    pieces = each_alone(len(table.dataset), rows, table.origin)
    return _dataset(held(none.schema, (none, *(piece for _, piece in pieces))))


@dataclass
class _Dropped:
    """Rows that are left out since they are empty."""

    count: int = 0
    first: int | None = None

    def note(self, start: int, kept: np.ndarray) -> None:
        """Add a piece's rows: ``kept`` is a mask, ``[rows]``, of rows from ``start`` on."""
        rows = np.flatnonzero(~kept)
        self.count += len(rows)
        if len(rows) and self.first is None:
            self.first = start + int(rows[0])

    def report(self, table: Table, needed: Needed) -> None:
        """Warn of what was left out.

        Raises:
            DataError: it was every row.
        """
        total = len(table.dataset)
        if self.count == total:
            raise DataError(f"{table.origin}: {needed.by_none}")
        if self.first is not None:
            _log.warning(
                "%s: dropped %d of %d rows, %s (the first is row %d)",
                log_line(table.origin),
                self.count,
                total,
                log_line(needed.but_not_by),
                self.first + 1,
            )


def _classification(
    table: Table, config: DataConfig, label_names: Sequence[str], by: str | None
) -> Dataset:
    """Return texts, which stay where they lie (in a mapped file, mostly), and class indices."""
    check_column(table, config.text_field, "data.text-field")
    source = label_column(table, config, label_names)
    extra = _extra_column(table, config, by, ("text", "label"))
    dropped, masks, pieces = _Dropped(), [], []
    for start, batch in batches(table.dataset, _BATCH):
        texts = text_array(table, config.text_field, batch, "data.text-field")
        kept = compute.fill_null(compute.not_equal(texts, ""), False)
        masks.append(kept.to_numpy(zero_copy_only=False))
        dropped.note(start, masks[-1])
        labels = text_array(table, source, batch, "data.label-field")
        # The label of a row that is dropped may be anything.
        labels = compute.if_else(kept, labels, label_names[0] if label_names else "")
        columns = {
            "text": texts,
            "label": label_indices(table, config, labels, start, label_names),
        }
        if extra:
            columns[extra] = _filled(table, extra, batch, start, kept)
        pieces.append(pa.table(columns))
    dropped.report(table, Needed.texts([config.text_field]))
    dataset = _dataset(pa.concat_tables(pieces))
    return dataset.select(np.flatnonzero(np.concatenate(masks))) if dropped.count else dataset


def _extra_column(
    table: Table, config: DataConfig, by: str | None, taken: Sequence[str]
) -> str | None:
    """Return the column to keep for the partition; None where there is none but the label."""
    classifies = config.kind.classifies
    by_label = classifies and by == "label" and config.label_field == config.partition_column
    if by is None or by_label:
        return None
    if by in taken:
        raise DataError(
            f'data.partition-by = "{by}": this name is taken by the text itself or its label; '
            "rename the column in the data"
        )
    check_column(table, by, "data.partition-by")
    return by


def _filled(
    table: Table, column: str, batch: pa.RecordBatch, start: int, kept: pa.Array
) -> pa.Array:
    """Return a column that must have a value in every row that is kept."""
    values = text_array(table, column, batch, "data.partition-by")
    empty = compute.fill_null(compute.equal(values, ""), True)
    missing = compute.and_(kept, empty)
    if compute.any(missing).as_py():
        row = start + compute.index(missing, True).as_py()
        raise DataError(f'{table.where(row)}: column "{column}" has no value')
    return values


def _by_rows(table: Table, config: DataConfig, by: str | None) -> Dataset:
    """Return rows that are made one by one, a piece of the table at a time."""
    dropped = _Dropped()
    pieces = _pieces(table, config, by, dropped)
    first = next(pieces, None)
    if first is None:
        dropped.report(table, _needed(table, config))
        raise DataError(f"{table.origin}: no row is left")
    result = held(first.schema, _of_one_kind(table, first, pieces))
    dropped.report(table, _needed(table, config))
    return _dataset(result)


def _pieces(
    table: Table, config: DataConfig, by: str | None, dropped: _Dropped
) -> Iterator[pa.Table]:
    # How answers name options is told from all rows together.
    whole = config.kind.rows == "options"
    make = multiple_choice if whole else language_rows
    for part in table.parts(max(1, len(table.dataset)) if whole else ROWS):
        columns, rows = make(part, config)
        kept = np.zeros(len(part.dataset), dtype=bool)
        kept[rows] = True
        dropped.note(part.first_row, kept)
        if extra := _extra_column(part, config, by, tuple(columns)):
            columns[extra] = _values_at(part, extra, rows)
        if rows:
            yield pa.table(columns, schema=_schema(columns))


def _of_one_kind(table: Table, first: pa.Table, rest: Iterator[pa.Table]) -> Iterator[pa.Table]:
    yield first
    for piece in rest:
        if piece.column_names != first.column_names:
            raise DataError(
                f"{table.origin}: some rows hold messages and others plain text; write all in one "
                "way"
            )
        yield piece


def _needed(table: Table, config: DataConfig) -> Needed:
    if config.kind.rows == "options":
        return Needed.texts([find_shape(table, config).question])
    return needed(table, config)


def _values_at(table: Table, column: str, rows: Sequence[int]) -> list[str]:
    values = read_labels(table, column, "data.partition-by")
    for row in rows:
        if values[row] is None:
            raise DataError(f'{table.where(row)}: column "{column}" has no value')
    return [values[row] or "" for row in rows]


def _schema(columns: dict[str, list[Any]]) -> pa.Schema:
    """Return the columns' types, which do not depend on the values of one piece."""
    return pa.schema([(name, _TYPES.get(name, pa.string())) for name in columns])


def _dataset(table: pa.Table) -> Dataset:
    # A fingerprint of its own: datasets would hash all of the rows.
    return Dataset(InMemoryTable(table), fingerprint=generate_random_fingerprint())
