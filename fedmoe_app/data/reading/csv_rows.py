"""CSV: all fields are text, all rows are as wide as the header.

pyarrow parses; what it would pass over without a word (a quotation mark that is not doubled) or
would explain with the row's own text (a row of another width) is looked for by Python's ``csv``,
which knows the line.
"""

from __future__ import annotations

import csv
import io
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO

import pyarrow as pa
from pyarrow import csv as arrow_csv

from fedmoe_app.config.errors import DataError
from fedmoe_app.data.reading.columns import (
    ROWS,
    Asked,
    LeftOut,
    Rows,
    is_text,
    listed,
    schema_of,
)
from fedmoe_app.data.reading.streams import AUTO, MARKED, open_utf8

DELIMITERS = (",", ";", "\t")  # recognised; in this order where two fit equally well
_HEADER_BYTES, _MAX_HEADER_BYTES = 1 << 20, 1 << 26
_BLOCKS = (4 << 20, 256 << 20)  # the second for files with longer rows than the first
_MOST_LINES = 10_000  # of one row, where rows are read one by one
_SEPARATOR_LINE = "sep="  # Excel's first line, before the header


@dataclass(frozen=True)
class Header:
    """The first row, how it is written, and where the rows begin."""

    names: tuple[str, ...]
    delimiter: str
    num_bytes: int
    num_lines: int


def read_csv(
    path: Path,
    asked: Asked | None,
    encoding: str,
    delimiter: str,
    private: bool,
    lenient: bool = False,
) -> Rows:
    """Read the columns that are asked for (None: all); see :func:`read_columns` of ``files``."""
    header = read_header(path, encoding, delimiter, lenient)
    found = [(index, name) for index, name in enumerate(header.names) if _is_asked(name, asked)]
    for _, name in found:
        if header.names.count(name) > 1:
            shown = "a column" if private else f'column "{name}"'
            raise DataError(f"{path}: {shown} stands twice in the header")
    if not found:
        header_shown = "" if private else f" ({listed(header.names)})"
        needed = (*asked.scalars, *asked.nested) if asked else ()
        wanted = f" ({', '.join(needed)})" if needed else ""
        raise DataError(
            f"{path}: the header{header_shown} has none of the columns that the run reads{wanted}; "
            "name yours in data.text-field, data.label-field, ..., or the separator in "
            "data.delimiter"
        )
    if lenient:
        return Rows(header.names, _batches_of_good(path, header, found, encoding))
    return Rows(header.names, _batches(path, header, found, encoding, private))


def read_header(path: Path, encoding: str, delimiter: str = AUTO, lenient: bool = False) -> Header:
    """Read the first row that is not blank; its names without outer spaces."""
    size = _HEADER_BYTES
    while (found := _header_in(path, encoding, delimiter, size, lenient)) is None:
        if size >= _MAX_HEADER_BYTES:
            raise DataError(f"{path}: line 1: the header has no end within {size >> 20} MiB")
        size *= 8
    return found


def _header_in(
    path: Path, encoding: str, delimiter: str, size: int, lenient: bool
) -> Header | None:
    """Return the header if it ends within the first ``size`` bytes."""
    with open_utf8(path, encoding, lenient) as file:
        data = file.read(size)
    head = _whole_characters(data, size)
    lines, skipped = _skip_blank(io.StringIO(head, newline="").readlines())
    if lines and lines[0].lstrip('"').lower().startswith(_SEPARATOR_LINE):
        given = lines[0].strip().strip('"')[len(_SEPARATOR_LINE) :]
        delimiter = given or delimiter if delimiter == AUTO else delimiter
        skipped.append(lines.pop(0))
    if delimiter == AUTO:
        delimiter = _delimiter_of(path, lines)
    names, used = _first_record(lines, delimiter)
    if len(data) == size and used >= len(lines):
        return None  # it may go on
    taken = skipped + lines[:used]
    num_bytes = sum(len(line.encode()) for line in taken)
    return Header(tuple(name.strip() for name in names), delimiter, num_bytes, len(taken))


def _whole_characters(data: bytes, size: int) -> str:
    # The cut may go through a character; a file that is no UTF-8 is found when it is read.
    return data.decode("utf-8", "replace") if len(data) < size else data.decode("utf-8", "ignore")


def _skip_blank(lines: list[str]) -> tuple[list[str], list[str]]:
    first = next((index for index, line in enumerate(lines) if line.strip()), len(lines))
    return lines[first:], lines[:first]


def _delimiter_of(path: Path, lines: Sequence[str]) -> str:
    """Return the separator that cuts the header into the most columns."""
    known = [suffix.lower() for suffix in path.suffixes]
    order = ("\t", ",", ";") if ".tsv" in known else DELIMITERS
    counts = {mark: len(_first_record(lines, mark)[0]) for mark in order}
    return max(order, key=lambda mark: counts[mark])


def _first_record(lines: Sequence[str], delimiter: str) -> tuple[list[str], int]:
    """Return the first row's fields and how many lines it takes."""
    with _long_fields():
        reader = csv.reader(lines, delimiter=delimiter)
        record = next(reader, [])
        return record, reader.line_num


@contextmanager
def _long_fields() -> Iterator[None]:
    before = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _is_asked(name: str, asked: Asked | None) -> bool:
    return asked is None or name in asked.names


def _batches(
    path: Path, header: Header, found: Sequence[tuple[int, str]], encoding: str, private: bool
) -> Iterator[pa.RecordBatch]:
    names = [name for _, name in found]
    done = 0
    for block in _BLOCKS:
        stream = _Watched(open_utf8(path, encoding), header)
        skip = done
        try:
            with stream.file:
                for batch in _parsed(stream, header, [index for index, _ in found], block):
                    left, skip = batch.slice(skip), max(0, skip - len(batch))
                    done += len(left)
                    yield left.rename_columns(names)
            if stream.has_quotes:
                _check_quotes(path, header, encoding, private)
            return
        except pa.ArrowInvalid as error:
            if "Empty CSV" in str(error):
                return  # nothing follows the header
            if "straddling" in str(error) and block != _BLOCKS[-1]:
                continue
            _check_rows(path, header, encoding, private)
            raise


def _parsed(
    stream: _Watched, header: Header, columns: Sequence[int], block: int
) -> Iterator[pa.RecordBatch]:
    # Columns have numbers meanwhile: names may stand twice where nobody asks for them.
    numbers = [str(index) for index in range(len(header.names))]
    reader = arrow_csv.open_csv(
        stream,
        # One thread: blocks are parsed as they are read, and nothing waits in a queue.
        read_options=arrow_csv.ReadOptions(
            use_threads=False, block_size=block, column_names=numbers
        ),
        parse_options=arrow_csv.ParseOptions(delimiter=header.delimiter, newlines_in_values=True),
        convert_options=arrow_csv.ConvertOptions(
            column_types=dict.fromkeys(numbers, pa.string()),
            include_columns=[numbers[index] for index in columns],
        ),
    )
    yield from reader


def _batches_of_good(
    path: Path, header: Header, found: Sequence[tuple[int, str]], encoding: str
) -> Iterator[pa.RecordBatch]:
    """Give the rows that can be read, each looked at by itself."""
    left_out, schema = LeftOut(path), schema_of([name for _, name in found])
    with open_utf8(path, encoding, lenient=True) as file, _long_fields():
        file.read(header.num_bytes)
        lines = _Lines(io.TextIOWrapper(file, "utf-8", MARKED, newline=""), header.num_lines)
        rows = _good_records(lines, header, left_out)
        while part := list(islice(rows, ROWS)):
            columns = [pa.array([row[index] for row in part], pa.string()) for index, _ in found]
            yield pa.RecordBatch.from_arrays(columns, schema=schema)
    left_out.report()


def _good_records(lines: _Lines, header: Header, left_out: LeftOut) -> Iterator[list[str]]:
    while lines.begin():
        where = f"line {lines.number}"
        record = _record(lines, header.delimiter)
        if record == []:
            continue  # a blank line
        if record and len(record) == len(header.names) and all(map(is_text, record)):
            yield record
        else:
            left_out.note(where)


def _record(lines: _Lines, delimiter: str) -> list[str] | None:
    """Return the row that begins in the next line; None, and only that line is passed, if none can.

    What follows a mark that is never closed, or closed by that of another row, may be good rows.
    """
    try:
        record = next(csv.reader(lines, delimiter=delimiter, strict=True), [])
        if not any('"' in line for line in lines.taken):
            return record
        reader = csv.reader(lines.taken, delimiter=delimiter, strict=True, skipinitialspace=True)
        if not _differs(record, next(reader, [])):
            return record
    except csv.Error:
        pass
    lines.give_back()
    return None


class _Lines:
    """A text's lines; those of a row that cannot be read are given back, but for its first."""

    def __init__(self, text: Iterable[str], number: int) -> None:
        self._rest = iter(text)
        self._waiting: deque[str] = deque()
        self._passed = number
        self.taken: list[str] = []

    @property
    def number(self) -> int:
        """The number of the row's first line."""
        return self._passed + 1

    def begin(self) -> bool:
        """Begin a row; whether there is one."""
        self._passed += len(self.taken)
        self.taken = []
        if not self._waiting:
            self._waiting.extend(islice(self._rest, 1))
        return bool(self._waiting)

    def give_back(self) -> None:
        """Let the lines of this row begin rows of their own, but for its first."""
        self._waiting.extendleft(reversed(self.taken[1:]))
        self.taken = self.taken[:1]

    def __iter__(self) -> Iterator[str]:
        """Give the row's lines, as many as whoever reads them asks for."""
        while len(self.taken) < _MOST_LINES:
            if not self._waiting:
                self._waiting.extend(islice(self._rest, 1))
            if not self._waiting:
                return
            self.taken.append(self._waiting.popleft())
            yield self.taken[-1]


class _Watched:
    """The rows' bytes; notes whether there is a quotation mark, by whose rules pyarrow is lax."""

    closed = False

    def __init__(self, file: IO[bytes], header: Header) -> None:
        self.file = file
        self.has_quotes = False
        file.read(header.num_bytes)

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes."""
        data = self.file.read(size)
        self.has_quotes = self.has_quotes or b'"' in data
        return data


def _check_quotes(path: Path, header: Header, encoding: str, private: bool) -> None:
    """Refuse marks that are not doubled, never closed, or behind a space.

    Raises:
        DataError: with the line.
    """
    both = (_records(path, header, encoding, skip_space) for skip_space in (False, True))
    for (line, record), (_, without) in zip(*both, strict=False):
        if _differs(record, without):
            raise DataError(
                f"{path}: line {line}: a space stands before a quotation mark, which makes the "
                "mark a part of the text; take the space away"
            )


def _differs(record: Sequence[str], without: Sequence[str]) -> bool:
    """Tell whether a row is another one when spaces before its fields are passed over."""
    pairs = zip(record, without, strict=False)
    return record != without and any(a.lstrip() != b.lstrip() for a, b in pairs)


def _check_rows(path: Path, header: Header, encoding: str, private: bool) -> None:
    """Find the first row that is not as wide as the header.

    Raises:
        DataError: with its line and both numbers of fields.
    """
    width = len(header.names)
    for line, record in _records(path, header, encoding):
        if record and len(record) != width:
            raise DataError(f"{path}: {_wrong_width(line, record, header, private)}")


def _records(
    path: Path, header: Header, encoding: str, skip_space: bool = False
) -> Iterator[tuple[int, list[str]]]:
    """Give every row with the number of its first line, by the strict rules of RFC 4180."""
    with open_utf8(path, encoding) as file, _long_fields():
        file.read(header.num_bytes)
        text = io.TextIOWrapper(file, "utf-8", newline="")
        reader = csv.reader(
            text, delimiter=header.delimiter, strict=True, skipinitialspace=skip_space
        )
        line = header.num_lines
        try:
            for record in reader:
                yield line + 1, record
                line = header.num_lines + reader.line_num
        except csv.Error as error:
            raise DataError(f"{path}: {_wrong_quotes(line + 1, str(error))}") from None


def _wrong_width(line: int, record: list[str], header: Header, private: bool) -> str:
    width = len(header.names)
    shown = "" if private else f" ({listed(header.names)})"
    count = "1 field" if len(record) == 1 else f"{len(record)} fields"
    message = f"line {line} has {count}, the header has {width}{shown}"
    if len(record) > width and not any(record[width:]):
        return f"{message}: the line ends in a separator too many; take it away, or name the column"
    if len(record) > width:
        return (
            f"{message}: a text with a separator in it must stand in quotation marks, or the "
            "header lacks a column's name"
        )
    mark = {"\t": "a tab"}.get(header.delimiter, f'"{header.delimiter}"')
    return f"{message}; {mark} is taken for the separator, data.delimiter names another"


def _wrong_quotes(line: int, reason: str) -> str:
    if "end of data" in reason:
        return f"line {line}: a quotation mark is opened there and never closed"
    return (
        f"line {line}: text follows a closing quotation mark; a mark inside of a quoted text must "
        'be doubled ("")'
    )
