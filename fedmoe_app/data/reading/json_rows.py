"""JSON Lines and JSON arrays of objects, column by column as text.

pyarrow parses JSON Lines where all asked values are texts, about three times as fast as Python's
``json``. A block with anything else in it (a number, true, a list, a fault) goes through Python,
which keeps numbers as they are written and knows the line.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
from pyarrow import json as arrow_json

from fedmoe_app.config.errors import DataError
from fedmoe_app.data.language.conversations import are_messages
from fedmoe_app.data.reading.columns import (
    ROWS,
    Asked,
    LeftOut,
    Rows,
    is_text,
    json_text,
    schema_of,
)
from fedmoe_app.data.reading.streams import open_utf8

_BLOCK = 4 << 20
_FAST_BLOCK = 256 << 10  # parsed by several threads; a longer row goes through Python
_LARGEST_ROW = 256 << 20
_FIRST_ROWS = 1000  # whose keys are the file's columns
_SPACE = " \t\n\r"


def _no_number(name: str) -> str | None:
    """NaN, which Python's json writes for a missing value, is one."""
    return None if name == "NaN" else name


# Numbers stay as they are written: 1.0, 1e3, 0012345678901234567890.
_DECODER = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=_no_number)

_Row = tuple[str, dict[str, Any]]  # where it stands, and what it holds


def read_json(path: Path, asked: Asked | None, encoding: str, lenient: bool = False) -> Rows:
    """Read the columns that are asked for (None: all); see :func:`read_columns` of ``files``."""
    if lenient and asked is not None:
        return _read_good(path, asked, encoding)
    array = _is_array(path, encoding)
    names = _first_names(path, encoding, array)
    if asked is None:
        asked = Asked(nested=names)
    elif array or asked.nested:
        asked = replace(
            asked, scalars=tuple(name for name in asked.scalars if name not in asked.nested)
        )
    make = _array_batches if array else _line_batches
    return Rows(names, make(path, encoding, asked))


def _read_good(path: Path, asked: Asked, encoding: str) -> Rows:
    """Read the rows that can be read, each by itself; what columns there are no row decides.

    Whether a file is an array, its name says: the first line could be a row. In an array nothing
    can be read behind a fault of syntax.
    """
    array = ".json" in [suffix.lower() for suffix in path.suffixes] and _is_array(
        path, encoding, lenient=True
    )
    return Rows(asked.names, _good_batches(path, encoding, asked, array))


def _good_batches(path: Path, encoding: str, asked: Asked, array: bool) -> Iterator[pa.RecordBatch]:
    left_out = LeftOut(path)
    with open_utf8(path, encoding, lenient=True) as file:
        if array:
            yield from _in_batches(path, _array_rows(path, file, left_out), asked, left_out)
        else:
            for first, block in _blocks_of_lines(path, file, left_out):
                fast = None if asked.nested else _parse_fast(block, asked.names)
                if fast is not None:
                    yield from fast.to_batches()
                else:
                    rows = _rows_of_block(path, first, block, left_out)
                    yield from _in_batches(path, rows, asked, left_out)
    left_out.report()


def _is_array(path: Path, encoding: str, lenient: bool = False) -> bool:
    with open_utf8(path, encoding, lenient) as file:
        while block := file.read(_BLOCK):
            if block.strip():
                return block.lstrip().startswith(b"[")
    return False


def _first_names(path: Path, encoding: str, array: bool) -> tuple[str, ...]:
    with open_utf8(path, encoding) as file:
        rows = _array_rows(path, file) if array else _line_rows(path, file)
        keys = (key for _, row in islice(rows, _FIRST_ROWS) for key in row)
        return tuple(dict.fromkeys(keys))


def _line_batches(path: Path, encoding: str, asked: Asked) -> Iterator[pa.RecordBatch]:
    with open_utf8(path, encoding) as file:
        for first, block in _blocks_of_lines(path, file):
            fast = None if asked.nested else _parse_fast(block, asked.names)
            if fast is not None:
                yield from fast.to_batches()
            else:
                yield from _in_batches(path, _rows_of_block(path, first, block), asked)


def _blocks_of_lines(
    path: Path, file: IO[bytes], left_out: LeftOut | None = None
) -> Iterator[tuple[int, bytes]]:
    """Give pieces of whole lines, each with the number of its first line."""
    rest, line = b"", 1
    while block := file.read(_BLOCK):
        whole, end, rest_after = block.rpartition(b"\n")
        if not end:
            rest += block
            if len(rest) > _LARGEST_ROW and left_out is not None:
                rest = b"!"  # no row, and its line is passed over
            elif len(rest) > _LARGEST_ROW:
                raise DataError(f"{path}: line {line} is longer than {_LARGEST_ROW >> 20} MiB")
            continue
        piece = rest + whole + end
        yield line, piece
        line += _count_ends(piece)
        rest = rest_after
    if rest:
        yield line, rest


def _parse_fast(block: bytes, names: Sequence[str]) -> pa.Table | None:
    """Parse by pyarrow; None where the result might not be what stands in the file."""
    schema = schema_of(names)
    try:
        if not block.isascii():
            block.decode()  # pyarrow does not look
        table = arrow_json.read_json(
            pa.BufferReader(block),
            arrow_json.ReadOptions(use_threads=True, block_size=_FAST_BLOCK),
            arrow_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
        )
    except (pa.ArrowException, UnicodeDecodeError):
        return None
    # It takes two objects in a line, or one over two lines.
    return table.select(names) if table.num_rows == _num_lines(block, table.num_rows) else None


def _num_lines(block: bytes, expected: int) -> int:
    """Return the number of lines that are not blank."""
    quick = _count_ends(block) + (not block.endswith(b"\n"))
    if quick == expected:
        return quick
    return sum(1 for line in block.split(b"\n") if line.strip())


def _count_ends(block: bytes) -> int:
    return int(np.count_nonzero(np.frombuffer(block, dtype=np.uint8) == ord("\n")))


def _line_rows(path: Path, file: IO[bytes]) -> Iterator[_Row]:
    for first, block in _blocks_of_lines(path, file):
        yield from _rows_of_block(path, first, block)


def _rows_of_block(
    path: Path, first: int, block: bytes, left_out: LeftOut | None = None
) -> Iterator[_Row]:
    for number, line in enumerate(block.split(b"\n"), start=first):
        if line.strip():
            where = f"line {number}"
            try:
                found = _object(path, where, line)
            except (DataError, UnicodeDecodeError, ValueError):
                if left_out is None:
                    raise
                left_out.note(where)
            else:
                yield where, found


def _object(path: Path, where: str, line: bytes) -> dict[str, Any]:
    try:
        value = _DECODER.decode(line.decode())
    except json.JSONDecodeError as error:
        # The line is not quoted: of a node's file, the message reaches the server.
        hint = (
            "; a JSON Lines file has one object a line, objects over several lines stand in an "
            "array: [...]"
            if line.strip() == b"{"
            else ""
        )
        raise DataError(f"{path}: {where} is not valid JSON ({error.msg}){hint}") from None
    except RecursionError:
        raise DataError(f"{path}: {where} is nested too deeply") from None
    if not isinstance(value, dict):
        raise DataError(f"{path}: {where} is not a JSON object")
    return value


def _array_batches(path: Path, encoding: str, asked: Asked) -> Iterator[pa.RecordBatch]:
    with open_utf8(path, encoding) as file:
        yield from _in_batches(path, _array_rows(path, file), asked)


def _array_rows(path: Path, file: IO[bytes], left_out: LeftOut | None = None) -> Iterator[_Row]:
    """Give the objects of an array one by one; memory holds a block of the text at a time."""
    try:
        yield from _objects(path, file, left_out)
    except (DataError, UnicodeDecodeError):
        if left_out is None:
            raise
        left_out.note("where the array breaks off; what follows is not read")


def _objects(path: Path, file: IO[bytes], left_out: LeftOut | None) -> Iterator[_Row]:
    text = _Text(file)
    text.skip("[")
    for number in count(1):
        if text.peek() == "]":
            break
        where = f"row {number}"
        value = text.value(path, where)
        if isinstance(value, dict):
            yield where, value
        elif left_out is None:
            raise DataError(f"{path}: {where} is not a JSON object")
        else:
            left_out.note(where)
        if text.peek() == ",":
            text.skip(",")
            if text.peek() == "]":
                raise DataError(f"{path}: a comma stands after the last row")
        elif text.peek() != "]":
            raise DataError(f"{path}: the array is not closed after {where}")
    text.skip("]")
    if text.peek():
        raise DataError(f"{path}: something stands behind the end of the array")


class _Text:
    """The text of a file, read a block at a time."""

    def __init__(self, file: IO[bytes]) -> None:
        self._reader = codecs.getreader("utf-8")(file)
        self._text = ""
        self._at = 0

    def peek(self) -> str:
        """Return the next character that is no space; empty at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _SPACE:
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def skip(self, mark: str) -> None:
        """Step over a character that :meth:`peek` has found."""
        if self.peek() == mark:
            self._at += 1

    def value(self, path: Path, where: str) -> Any:
        """Decode the next value; what goes beyond the block is read in addition."""
        self.peek()
        while True:
            try:
                value, self._at = _DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                # It may only be cut off. A fault costs one look at up to the largest row.
                if len(self._text) - self._at < _LARGEST_ROW and self._more():
                    continue
                raise DataError(f"{path}: {where} is not valid JSON ({error.msg})") from None
            except RecursionError:
                raise DataError(f"{path}: {where} is nested too deeply") from None
            else:
                return value

    def _more(self) -> bool:
        """Read as much again as there is, so that a long value is looked at few times."""
        rest = self._text[self._at :]
        block = self._reader.read(max(_BLOCK, len(rest)), max(_BLOCK, len(rest)))
        self._text, self._at = rest + block, 0
        return bool(block)


def _in_batches(
    path: Path, rows: Iterator[_Row], asked: Asked, left_out: LeftOut | None = None
) -> Iterator[pa.RecordBatch]:
    schema = schema_of(asked.names)
    while part := list(islice(rows, ROWS)):
        if left_out is not None:
            part = [row for row in part if _is_good(path, row, asked, left_out)]
        columns = [
            [_cell(path, where, name, row.get(name), asked) for where, row in part]
            for name in asked.names
        ]
        yield _batch(path, part, columns, schema)


def _is_good(path: Path, row: _Row, asked: Asked, left_out: LeftOut) -> bool:
    """Tell whether a row holds what is asked for; note it if not."""
    where, values = row
    try:
        cells = [_cell(path, where, name, values.get(name), asked) for name in asked.names]
    except DataError:
        cells = ["\udcff"]
    if good := all(map(is_text, cells)):
        return good
    left_out.note(where)
    return False


def _cell(path: Path, where: str, name: str, value: Any, asked: Asked) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if name in asked.nested and (not asked.texts_or_messages or are_messages(value)):
        return json_text(value)
    if name in asked.nested and not value:
        return None
    kind = "a list" if isinstance(value, list) else "an object"
    wanted = "neither a text nor messages" if name in asked.nested else "not a text"
    raise DataError(f'{path}: {where}: column "{name}" holds {kind}, {wanted}')


def _batch(
    path: Path, part: Sequence[_Row], columns: list[list[str | None]], schema: pa.Schema
) -> pa.RecordBatch:
    try:
        arrays = [pa.array(column, pa.string()) for column in columns]
    except UnicodeEncodeError:
        where, name = next(
            (part[row][0], schema.names[index])
            for row in range(len(part))
            for index, column in enumerate(columns)
            if not is_text(column[row])
        )
        raise DataError(
            f'{path}: {where}: column "{name}" holds half of a character (a lone surrogate)'
        ) from None
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
