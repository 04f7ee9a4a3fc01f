"""Encoded examples: a plain list while they are few, an Arrow table on the disk when they are many.

A thousand tokens as Python integers take about 36 KB, in Arrow 4 KB; and what is mapped from a file
takes no memory at all until it is trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NotRequired, TypedDict, overload

import numpy as np
import pyarrow as pa
from datasets import Dataset

from fedmoe_app.data.reading.columns import ROWS
from fedmoe_app.data.reading.stored import held

# Tokens up to which a list is kept (some 150 MB): to read a row out of Arrow takes microseconds.
IN_LIST = 4_000_000

_TOKENS = pa.list_(pa.int32())
_TYPES = {
    "input_ids": _TOKENS,
    "prompt_length": pa.int64(),
    "prompt": _TOKENS,
    "reference": pa.string(),
    "options": pa.list_(_TOKENS),
    "texts": pa.list_(pa.string()),
}


class Row(TypedDict):
    """One encoded example; ``labels`` is a class index or one token id per position.

    A row of a conversation or of plain text has also ``prompt_length``: so many of its first
    tokens come before what a sample shows as expected, which is the last answer.
    A row of exact match has also ``prompt`` (token ids to answer) and ``reference`` (the right
    answer as text). One of multiple choice has the prompt in ``input_ids``, the right option's
    index in ``labels``, ``options`` (token ids of each) and ``texts`` (the same as text).
    """

    input_ids: list[int]
    labels: int | list[int]
    prompt_length: NotRequired[int]
    prompt: NotRequired[list[int]]
    reference: NotRequired[str]
    options: NotRequired[list[list[int]]]
    texts: NotRequired[list[str]]


# Encodes some rows of a data set, given as columns; also returns how many were cut.
EncodeBatch = Callable[[Mapping[str, Any]], tuple[list[Row], int]]


class Encoded(Sequence[Row]):
    """Encoded examples in the order of the data set.

    Attributes:
        num_cut: rows that did not fit into the context and were cut.
    """

    def __init__(self, rows: Iterable[Row] | pa.Table, num_cut: int) -> None:
        """Take the rows and the number of them that were cut."""
        self.num_cut = num_cut
        self._rows: list[Row] | None = None
        if isinstance(rows, pa.Table):
            self._table = rows
            if rows.nbytes <= IN_LIST * 4:
                self._rows = rows.to_pylist()
        else:
            self._rows = list(rows)

    @classmethod
    def of(cls, dataset: Dataset, encode: EncodeBatch) -> Encoded:
        """Encode a data set piece by piece."""
        num_cut = num_tokens = 0
        few: list[Row] = []
        pieces = (encode(batch) for batch in dataset.iter(ROWS))
        for rows, cut in pieces:
            few += rows
            num_cut += cut
            num_tokens += sum(len(row["input_ids"]) for row in rows)
            if num_tokens > IN_LIST:
                return cls._of_many(few, num_cut, pieces)
        return cls(few, num_cut)

    @classmethod
    def _of_many(
        cls, first: list[Row], num_cut: int, rest: Iterable[tuple[list[Row], int]]
    ) -> Encoded:
        counts = [num_cut]

        def tables() -> Iterator[pa.Table]:
            yield to_table(first)
            first.clear()
            for rows, cut in rest:
                counts.append(cut)
                yield to_table(rows)

        table = held(to_table(first[:1]).schema, tables())
        return cls(table, sum(counts))

    def table(self) -> pa.Table:
        """Return the rows as an Arrow table."""
        return to_table(self._rows) if self._rows is not None else self._table

    def keep(self, mask: np.ndarray) -> Encoded:
        """Return the rows where a mask, ``[rows]`` of bool, is true."""
        if self._rows is not None:
            return Encoded(
                [row for row, kept in zip(self, mask, strict=True) if kept], self.num_cut
            )
        return Encoded(self._table.filter(mask), self.num_cut)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._rows) if self._rows is not None else len(self._table)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        """Return one row, or a list of them."""
        if self._rows is not None:
            return self._rows[index]
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step != 1:
                return [self[i] for i in range(start, stop, step)]
            rows: list[Row] = self._table.slice(start, max(0, stop - start)).to_pylist()
            return rows
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        (row,) = self._table.slice(index % len(self), 1).to_pylist()
        return row

    def __iter__(self) -> Iterator[Row]:
        """Give the rows in order."""
        for start in range(0, len(self), ROWS):
            yield from self[start : start + ROWS]

    def __eq__(self, other: object) -> bool:
        """Compare with rows in a list or the like."""
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]


def to_table(rows: Sequence[Row]) -> pa.Table:
    """Return rows of one task as an Arrow table; token ids as int32."""
    if not rows:
        return pa.table({})
    many = isinstance(rows[0]["labels"], list)
    types = _TYPES | {"labels": _TOKENS if many else pa.int64()}
    return pa.Table.from_pylist(list(rows), pa.schema([(key, types[key]) for key in rows[0]]))
