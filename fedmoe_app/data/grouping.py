"""Rows grouped by the value that they have in a column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

Rows = npt.NDArray[np.int64]  # row numbers, from 0


@dataclass(frozen=True)
class Groups:
    """The values of a column and which row has which.

    Attributes:
        values: the different values, in their order: V of them.
        codes: for each row its value's position in ``values``, ``[R]`` int64.
    """

    values: Sequence[Any]
    codes: Rows

    @property
    def sizes(self) -> Rows:
        """Number of rows of each value, ``[V]``."""
        return np.bincount(self.codes, minlength=len(self.values))


def group(dataset: Dataset, column: str) -> Groups:
    """Group the rows of a data set by a column of any type; a missing value is a value, too.

    The values are sorted, so that the order of the rows does not count; values that have no order,
    such as lists, go by how Python writes them.
    """
    cells = dataset.with_format("arrow")[column][:]
    try:
        encoded = pc.dictionary_encode(cells, null_encoding="encode").unify_dictionaries()
    except pa.ArrowNotImplementedError:  # nested values
        cells = pa.chunked_array([[repr(cell) for cell in cells.to_pylist()]])
        encoded = cells.dictionary_encode()
    values = encoded.chunk(0).dictionary.to_pylist()
    order = _order(values)
    rank = np.empty(len(values), np.int64)
    rank[order] = np.arange(len(values))
    found = np.concatenate([chunk.indices.to_numpy() for chunk in encoded.chunks])
    return Groups([values[index] for index in order], rank[found])


def _order(values: Sequence[Any]) -> list[int]:
    """Positions in the order of their values; a missing one is the last."""
    places = range(len(values))
    try:
        return sorted(places, key=lambda place: (values[place] is None, values[place]))
    except TypeError:
        return sorted(places, key=lambda place: repr(values[place]))


def parts_of(
    owners: npt.NDArray[np.integer], num_parts: int, order: Rows | None = None
) -> list[Rows]:
    """Return the rows that each part owns.

    Args:
        owners: the part of each row, ``[R]``.
        num_parts: how many there are; some may own nothing.
        order: the rows in the order that the parts are to have them; None keeps the file's.
    """
    order = np.arange(len(owners)) if order is None else order
    owned = owners[order]
    grouped = order[np.argsort(owned, kind="stable")]
    ends = np.cumsum(np.bincount(owned, minlength=num_parts))
    return np.split(grouped, ends[:-1])
