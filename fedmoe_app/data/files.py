"""Read one local data file, with errors that say where it is broken."""

from __future__ import annotations

import json
import logging
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path

import datasets
import pyarrow as pa
import xxhash
from datasets import Dataset
from datasets.fingerprint import generate_random_fingerprint
from datasets.table import InMemoryTable

from fedmoe_app.config.errors import DataError
from fedmoe_app.config.files import build_once
from fedmoe_app.config.paths import cache_dir
from fedmoe_app.data.reading.arrow_text import trimmed
from fedmoe_app.data.reading.columns import Asked, Rows, schema_of
from fedmoe_app.data.reading.csv_rows import read_csv, read_header
from fedmoe_app.data.reading.json_rows import read_json
from fedmoe_app.data.reading.parquet_rows import read_parquet
from fedmoe_app.data.reading.stored import held, map_file, write_batches
from fedmoe_app.data.reading.streams import AUTO, is_packed, open_bytes, undecodable

# Ending -> kind. Each may be followed by .gz.
FORMATS = {
    ".tsv": "csv",
    ".ndjson": "json",
    ".jsonl": "json",
    ".json": "json",
    ".csv": "csv",
    ".parquet": "parquet",
}
# A quoted value. A mark between two letters is an apostrophe, in the words around it or in it.
_QUOTED = re.compile(
    r"""(?<!\w)b?(?:'(?:[^']|(?<=\w)'(?=\w))*(?:'|$)|"(?:[^"]|(?<=\w)"(?=\w))*(?:"|$))"""
)
_ENDINGS = f"{', '.join(FORMATS)}, each also with .gz"
_RECIPE_VERSION = 1  # raise it whenever the same file would be read differently
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Dialect:
    """How text files are written.

    Attributes:
        encoding: Python's name of it, or ``auto``: UTF-8, or what a byte order mark says.
        delimiter: of CSV; ``auto``: comma, semicolon or tab, by the header.
    """

    encoding: str = AUTO
    delimiter: str = AUTO


@dataclass(frozen=True)
class FileColumns:
    """What was read of a file.

    Attributes:
        dataset: the columns that were asked for and are there, as text or null.
        names: all columns of the file; of JSON, those of its first rows.
        declared: class names of columns that ``datasets`` wrote as ``ClassLabel``; the values of
            these columns are the names.
    """

    dataset: Dataset
    names: tuple[str, ...]
    declared: dict[str, tuple[str, ...]]


def looks_like_file(source: str) -> bool:
    """Tell whether a source name means a local file, be it there or not."""
    path = Path(source).expanduser()
    if path.is_dir():
        return False
    return path.is_file() or _ending(path) in FORMATS or source.startswith(("/", "./", "../", "~"))


def read_file(source: str, keep_copy: bool = True) -> Dataset:
    """Return all columns of a file, as text and exactly as they stand there.

    Lists and objects come as JSON text. Arguments and errors are those of :func:`read_columns`.
    """
    return read_columns(source, None, keep_copy=keep_copy, trim=False).dataset


def names_by_rows(source: str) -> bool:
    """Tell whether it is the rows of a file that say what columns it has, as those of JSON do."""
    return FORMATS.get(_ending(Path(source))) == "json"


def column_names(
    source: str, dialect: Dialect = Dialect(), private: bool = False, lenient: bool = False
) -> list[str]:
    """Return the names of a file's columns; of JSON, those of its first thousand rows.

    Raises:
        DataError: as :func:`read_columns`.
    """
    path = _checked(source)
    with _explained(path, dialect):
        if FORMATS[_ending(path)] == "csv":
            return list(read_header(path, dialect.encoding, dialect.delimiter, lenient).names)
        return list(_open_rows(path, Asked(), dialect, private).names)


def read_columns(
    source: str,
    asked: Asked | None,
    dialect: Dialect = Dialect(),
    keep_copy: bool = True,
    trim: bool = True,
    private: bool = False,
    lenient: bool = False,
) -> FileColumns:
    """Read columns of a file, in memory that does not grow with the file.

    Args:
        source: the file's path, taken literally: ``*``, ``?`` and ``[`` are part of a name.
        asked: the columns; None means all of them.
        dialect: how a text file is written.
        keep_copy: whether a copy may be kept, under ``cache_dir()/text`` in a folder named by the
            file's contents, so that a changed file is never taken from the cache. With False the
            rows are in memory, or in a file without a name that is gone with this process.
        trim: take outer white space away.
        private: whether messages must not name the file's own columns.
        lenient: each row stands by itself: one that cannot be read is left out, with a warning,
            and there may be none. Of JSON, all columns that are asked for are there then, be they
            in a row or not. No copy is kept.

    Raises:
        DataError: a missing, unreadable, empty or broken file, or an unknown ending.
    """
    if lenient:
        assert asked is not None
        return _read_leniently(source, asked, dialect, trim, private)
    path = _checked(source)
    with _explained(path, dialect):
        rows = _open_rows(path, asked, dialect, private)
        key = _key(path, asked, dialect, trim)
        table = _cached(key, rows, trim) if keep_copy else _held(rows, trim)
    if table.num_rows == 0:
        raise DataError(f"{source}: the file holds no rows")
    there = [name for name in table.column_names if name in rows.names or _has_values(table, name)]
    # Without a fingerprint datasets would hash all of the rows.
    dataset = Dataset(InMemoryTable(table.select(there)), fingerprint=key)
    return FileColumns(dataset, rows.names, rows.declared)


def _read_leniently(
    source: str, asked: Asked, dialect: Dialect, trim: bool, private: bool
) -> FileColumns:
    by_rows = names_by_rows(source)
    path = _checked(source, may_be_empty=by_rows)
    try:  # where no row is at fault the fast readers give the same rows
        with _explained(path, dialect):
            rows = _open_rows(path, asked, dialect, private)
            table = _held(rows, trim)
    except DataError:
        with _explained(path, dialect):
            rows = _open_rows(path, asked, dialect, private, lenient=True)
            table = _held(rows, trim)
    names = asked.names if by_rows else rows.names
    if not table.num_rows:
        table = schema_of([name for name in asked.names if name in names]).empty_table()
    there = [name for name in table.column_names if name in names]
    key = generate_random_fingerprint()
    dataset = Dataset(InMemoryTable(table.select(there)), fingerprint=key)
    return FileColumns(dataset, names, rows.declared)


def _checked(source: str, may_be_empty: bool = False) -> Path:
    path = Path(source).expanduser()
    if path.is_dir():
        raise DataError(
            f'{source}: is a folder; name the files, or set data.source-kind = "folder" to read '
            "all data files in it"
        )
    if not path.is_file():
        raise DataError(
            f"{source}: there is no such file (looked for {path.absolute()}); give an absolute "
            "path, since a Flower app does not run in the folder in which flwr run was typed"
        )
    if _ending(path) not in FORMATS:
        raise DataError(f"{source}: unknown ending; a data file ends in one of {_ENDINGS}")
    if not may_be_empty and _is_empty(path):
        raise DataError(f"{source}: the file is empty")
    return path


def _ending(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _is_empty(path: Path) -> bool:
    try:
        with open_bytes(path) as file:
            while block := file.read(_BLOCK):
                if block.strip():
                    return False
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({_without_values(error)})") from None
    return True


def _open_rows(
    path: Path, asked: Asked | None, dialect: Dialect, private: bool, lenient: bool = False
) -> Rows:
    kind = FORMATS[_ending(path)]
    if kind == "csv":
        return read_csv(path, asked, dialect.encoding, dialect.delimiter, private, lenient)
    if kind == "json":
        return read_json(path, asked, dialect.encoding, lenient)
    return read_parquet(path, asked, open_bytes(path) if is_packed(path) else None, lenient)


def _key(path: Path, asked: Asked | None, dialect: Dialect, trim: bool) -> str:
    """Return what changes whenever the file's contents or the way to read them do."""
    state = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            state.update(block)
    way = [asked and astuple(asked), astuple(dialect), trim, _ending(path), is_packed(path)]
    state.update(json.dumps([_RECIPE_VERSION, *way]).encode())
    return state.hexdigest()


def _cached(key: str, rows: Rows, trim: bool) -> pa.Table:
    def build(folder: Path) -> None:
        schema, batches = _begun(rows, trim)
        write_batches(folder / "rows.arrow", schema, batches)

    return map_file(build_once(cache_dir() / "text" / key, build) / "rows.arrow")


def _held(rows: Rows, trim: bool) -> pa.Table:
    return held(*_begun(rows, trim))


def _begun(rows: Rows, trim: bool) -> tuple[pa.Schema, Iterable[pa.RecordBatch]]:
    """Return the schema of the first batch, and all batches."""
    batches = (_trimmed(batch) if trim else batch for batch in rows.batches)
    first = next(batches, None)
    if first is None:
        return pa.schema([]), ()
    return first.schema, _chained(first, batches)


def _chained(first: pa.RecordBatch, rest: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    yield first
    yield from rest


def _trimmed(batch: pa.RecordBatch) -> pa.RecordBatch:
    columns = [trimmed(column) for column in batch.columns]
    return pa.RecordBatch.from_arrays(columns, schema=batch.schema)


def _has_values(table: pa.Table, name: str) -> bool:
    return bool(table[name].null_count < len(table))


@contextmanager
def _explained(path: Path, dialect: Dialect) -> Iterator[None]:
    """Turn what libraries raise into an error that names the place and no value of a row."""
    try:
        yield
    except DataError as error:
        raise error from None  # or a traceback would show what a library said before
    except (UnicodeError, pa.ArrowException, OSError, EOFError, zlib.error, ValueError) as error:
        kind = FORMATS[_ending(path)]
        fault = None if kind == "parquet" else _not_decodable(path, dialect)
        message = fault or f"cannot be read as {kind} ({_without_values(error)})"
        # The chain is cut: a traceback in a node's log would show the library's own words.
        raise DataError(f"{path}: {message}") from None


def _not_decodable(path: Path, dialect: Dialect) -> str | None:
    try:
        return undecodable(path, dialect.encoding)
    except (OSError, EOFError, zlib.error, UnicodeError):
        return None  # the file breaks off before, or the codec says no place (punycode)


def _without_values(error: BaseException) -> str:
    """Return a library's message without what it quotes: that may be out of a node's own rows."""
    message = str(error).strip() or type(error).__name__
    return _QUOTED.sub("...", message.splitlines()[0])


@contextmanager
def quiet_datasets() -> Iterator[None]:
    """Keep ``datasets`` from printing progress bars and its own error lines meanwhile."""
    bars_were_off = datasets.are_progress_bars_disabled()
    verbosity = datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(verbosity)
        if not bars_were_off:
            datasets.enable_progress_bars()
