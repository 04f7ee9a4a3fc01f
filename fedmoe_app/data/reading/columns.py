"""What the readers of all formats share: which columns are asked for, and batches of text."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from fedmoe_app.shown.logs import log_line

_log = logging.getLogger(__name__)

# Rows that go through Python at once.
ROWS = 4096


@dataclass(frozen=True)
class Asked:
    """The columns that a caller wants.

    Attributes:
        scalars: that hold one value a row: text, a number, true or false.
        nested: that may also hold lists or objects; these come as JSON text.
        optional: scalars that need not be there.
        texts_or_messages: whether ``nested`` hold either; a list of anything else, as JSON text,
            would be taken for a text that somebody wrote.
    """

    scalars: tuple[str, ...] = ()
    nested: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    texts_or_messages: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """All of them, each once."""
        return tuple(dict.fromkeys((*self.scalars, *self.nested, *self.optional)))


@dataclass(frozen=True)
class Rows:
    """A file's columns of text.

    Attributes:
        names: all columns of the file; of JSON, those of its first rows.
        batches: text or null, in the order of the file; made while they are read.
        declared: class names of the columns that hold an index into them (``ClassLabel``); their
            values are the names already.
    """

    names: tuple[str, ...]
    batches: Iterator[pa.RecordBatch]
    declared: dict[str, tuple[str, ...]] = field(default_factory=dict)


class LeftOut:
    """Counts the rows of a file that cannot be read, and says so in this node's log."""

    def __init__(self, path: Path) -> None:
        """Begin with none of the rows of ``path``."""
        self._path = path
        self.count = 0
        self._first = ""

    def note(self, where: str) -> None:
        """Note one."""
        self.count += 1
        self._first = self._first or where

    def report(self) -> None:
        """Warn of them, if there are any."""
        if self.count:
            _log.warning(
                "%s: left out %d rows that cannot be read (the first is %s)",
                *(log_line(str(self._path)), self.count, self._first),
            )


def is_text(value: str | None) -> bool:
    """Tell whether a value has no half of a character (a lone surrogate)."""
    try:
        (value or "").encode()
    except UnicodeEncodeError:
        return False
    return True


def listed(names: Iterable[str], most: int = 20) -> str:
    """Return names for a message, cut when there are many."""
    names = list(names)
    more = f", ... ({len(names)} in all)" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def schema_of(names: Sequence[str]) -> pa.Schema:
    """Return text columns of these names."""
    return pa.schema([(name, pa.string()) for name in names])


def json_text(value: Any) -> str:
    """Return a list or object as JSON text, its numbers as they stood in the file."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
