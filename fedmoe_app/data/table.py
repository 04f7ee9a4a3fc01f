"""Read the columns of a table as text, with errors that say where a value is wrong.

Whatever a column's type is, its values are the text that stands in the file: a label is the class
whose name it equals, be it ``1``, ``"1"`` or ``true``. Rows are numbered from 1 in messages, blank
lines and a CSV header not counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
from datasets import ClassLabel, Dataset
from datasets.table import InMemoryTable

from fedmoe_app.config.errors import DataError
from fedmoe_app.data.reading.arrow_text import NotText, as_text, is_nested, trimmed
from fedmoe_app.data.reading.columns import listed


@dataclass(frozen=True)
class Table:
    """Rows as they were read, and where from (for messages).

    Attributes:
        dataset: columns of any type; of a file, those that the run reads, as text.
        origin: the file's or data set's name.
        private: a node's own: messages reach the server and must not quote its values.
        names: all columns of the file; empty for those of ``dataset``.
        declared: class names of columns that are declared as a class index; the values of such a
            column of ``dataset`` are the names themselves.
        first_row: where these rows begin in the file, from 0.
        is_trimmed: its text columns have no outer white space.
        lenient: each row stands by itself: one that cannot be used is left out and is no error, and
            nothing is told from several rows together.
    """

    dataset: Dataset
    origin: str
    private: bool = False
    names: tuple[str, ...] = ()
    declared: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    first_row: int = 0
    is_trimmed: bool = False
    lenient: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of all columns."""
        return tuple(dict.fromkeys((*self.names, *self.dataset.column_names)))

    def where(self, row: int) -> str:
        """Return file and row for a message; ``row`` counts from 0 in ``dataset``."""
        return f"{self.origin}, row {self.first_row + row + 1}"

    def part(self, start: int, stop: int) -> Table:
        """Return the rows from ``start`` up to ``stop``, without a copy."""
        rows = self.dataset.select(range(start, stop))
        return replace(self, dataset=rows, first_row=self.first_row + start)

    def parts(self, num_rows: int) -> Iterator[Table]:
        """Give the rows piece by piece, at most so many at once, without a copy."""
        for start, batch in batches(self.dataset, num_rows):
            features = self.dataset.features
            part = Dataset(
                InMemoryTable(pa.Table.from_batches([batch])),
                info=self.dataset.info.copy() if features else None,
                fingerprint=f"{start:x}",
            )
            yield replace(self, dataset=part, first_row=self.first_row + start)


@dataclass(frozen=True)
class Needed:
    """What a row must have, in the words of messages.

    Attributes:
        by_none: said where no row has it.
        but_not_by: said of the rows that do not.
    """

    by_none: str
    but_not_by: str

    @classmethod
    def texts(cls, columns: Sequence[str]) -> Needed:
        """Texts in all of some columns."""
        named = " or ".join(f'"{column}"' for column in columns)
        return cls(f"every row is empty in {named}", f"which are empty in {named}")


def batches(dataset: Dataset, num_rows: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Give a data set's rows as they lie in memory, at most so many at once, with their start."""
    arrow = dataset.with_format("arrow")
    for start in range(0, len(dataset), num_rows):
        offset = start
        for batch in arrow[start : start + num_rows].to_batches():
            yield offset, batch
            offset += len(batch)


def check_column(table: Table, column: str, key: str = "data.label-field") -> None:
    """Refuse a table without a column.

    Args:
        table: the rows as read.
        column: its name.
        key: the run config's key that names the column, for the message.

    Raises:
        DataError: there is no such column.
    """
    if column not in table.dataset.column_names:
        raise DataError(
            f'{key} = "{column}": {table.origin} has no such column; choose one of '
            f"{column_names(table)}"
        )


def column_names(table: Table) -> str:
    """Return the columns' names for a message; of a node's own file, only how many there are.

    Where a CSV file lacks its header, the names are the values of the first row.
    """
    names = table.columns
    return f"its {len(names)} columns" if table.private else listed(names)


def class_names(table: Table, column: str) -> tuple[str, ...] | None:
    """Return the names of a column that is declared as a class index; None for any other."""
    if column in table.declared:
        return tuple(table.declared[column])
    feature = table.dataset.features.get(column)
    return tuple(feature.names) if isinstance(feature, ClassLabel) else None


def text_array(table: Table, column: str, batch: pa.RecordBatch, key: str) -> pa.Array:
    """Return a column of a batch as text without outer white space, null where it is missing.

    Raises:
        DataError: for a column of lists or objects, or of bytes that are no text.
    """
    array = batch.column(column)
    # A file's columns are text; datasets copies all features at every look.
    names = None if table.names else class_names(table, column)
    try:
        if is_nested(array.type):
            raise NotText(f"holds {array.type}, not text")
        text = as_text(array, names)
        return text if table.is_trimmed else trimmed(text)
    except NotText as error:
        raise DataError(f'{key} = "{column}": {table.origin} {error}') from None


def read_texts(table: Table, column: str, key: str) -> list[str]:
    """Return a text column, stripped; a missing value becomes the empty text."""
    return [value or "" for value in _read(table, column, key)]


def read_labels(table: Table, column: str, key: str = "data.label-field") -> list[str | None]:
    """Return a column of names, stripped, None where the value is missing or empty."""
    return [value or None for value in _read(table, column, key)]


def read_cells(table: Table, column: str, key: str) -> list[Any]:
    """Return a column as it stands: lists and objects as such, all else as text."""
    check_column(table, column, key)
    arrays = (
        batch.column(column) for _, batch in batches(table.dataset, max(1, len(table.dataset)))
    )
    return [
        cell
        for array in arrays
        for cell in (array if is_nested(array.type) else as_text(array)).to_pylist()
    ]


def _read(table: Table, column: str, key: str) -> list[str | None]:
    check_column(table, column, key)
    arrays = (
        text_array(table, column, batch, key)
        for _, batch in batches(table.dataset, max(1, len(table.dataset)))
    )
    return [value for array in arrays for value in array.to_pylist()]
