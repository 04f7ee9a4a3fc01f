"""Read one local data file through ``datasets``, with errors that say where it is broken."""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import datasets
from datasets import Dataset
from datasets.table import InMemoryTable
from pyarrow import parquet

from fedmoe_app.data.errors import DataError
from fedmoe_app.paths import cache_dir

# Ending -> loader of ``datasets``. Each may be followed by .gz.
FORMATS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
_QUOTED = re.compile(r"""b?'[^']*'?|b?"[^"]*"?""")
_ENDINGS = f"{', '.join(FORMATS)}, each also with .gz"


def looks_like_file(source: str) -> bool:
    """Tell whether a source name means a local file, be it there or not."""
    path = Path(source).expanduser()
    if path.is_dir():
        return False
    return path.is_file() or _ending(path) in FORMATS or source.startswith(("/", "./", "../", "~"))


def read_file(source: str, keep_copy: bool = True) -> Dataset:
    """Return the rows of a file, as they stand there.

    Args:
        source: the file's path.
        keep_copy: whether ``datasets`` may keep its copy, under ``cache_dir()/datasets`` in a
            folder named by the file's contents, so that a changed file is never taken from the
            cache. With False the rows are in memory only: the copy goes through a temporary
            folder that only this user can read and that is gone, after an error too, when this
            returns.

    Raises:
        DataError: a missing, unreadable, empty or broken file, or an unknown ending.
    """
    path = Path(source).expanduser()
    if not path.is_file():
        raise DataError(
            f"{source}: there is no such file (looked for {path.absolute()}); give an absolute "
            "path, since a Flower app does not run in the folder in which flwr run was typed"
        )
    if _ending(path) not in FORMATS:
        raise DataError(f"{source}: unknown ending; a data file ends in one of {_ENDINGS}")
    if _is_empty(path):
        raise DataError(f"{source}: the file is empty")
    dataset = _load(path, keep_copy)
    if len(dataset) == 0:
        raise DataError(f"{source}: the file holds no rows")
    return dataset


def _ending(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _is_empty(path: Path) -> bool:
    try:
        with _open(path) as file:
            return not file.read(65536).strip()
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read ({_without_values(error)})") from None


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb")  # type: ignore[return-value]


def _load(path: Path, keep_copy: bool) -> Dataset:
    loader = FORMATS[_ending(path)]
    try:
        if loader == "parquet" and path.suffix.lower() == ".gz":  # not unpacked by datasets
            with _open(path) as unpacked:
                return Dataset(InMemoryTable(parquet.read_table(unpacked)))
        with _copies_of(path, keep_copy) as folder:
            return _load_through(folder, path, loader, in_memory=not keep_copy)
    except Exception as error:  # many types, of pyarrow, pandas and datasets
        # The chain is cut: a traceback in a node's log would show the library's own words.
        raise DataError(f"{path}: {_explain(path, loader, error)}") from None


@contextmanager
def _copies_of(path: Path, keep: bool) -> Iterator[Path]:
    """Give the folder for the copies that ``datasets`` makes: in the cache, or one that goes."""
    if keep:
        with path.open("rb") as file:
            contents = hashlib.file_digest(file, "sha256").hexdigest()[:16]
        yield cache_dir() / "datasets" / contents
    else:
        with tempfile.TemporaryDirectory(prefix="fedmoe-") as folder:  # mode 0700
            yield Path(folder)


def _load_through(folder: Path, path: Path, loader: str, in_memory: bool) -> Dataset:
    # pandas would read a class called "None" or "NA" as a missing value.
    options = {"keep_default_na": False, "na_values": [""]} if loader == "csv" else {}
    with quiet_datasets():
        return datasets.load_dataset(
            loader,
            data_files={"train": str(path.absolute())},
            split="train",
            cache_dir=str(folder),
            keep_in_memory=in_memory,
            **options,
        )


def _explain(path: Path, loader: str, error: Exception) -> str:
    if "corresponds to no data" in str(error):
        return "the file holds no rows"
    if loader == "json" and (fault := _json_fault(path)):
        return fault
    return f"cannot be read as {loader} ({_without_values(error.__cause__ or error)})"


def _without_values(error: BaseException) -> str:
    """Return a library's message without what it quotes: that may be out of a node's own rows."""
    message = str(error).strip() or type(error).__name__
    return _QUOTED.sub("...", message.splitlines()[0])


def _json_fault(path: Path) -> str | None:
    """Find the first line that is not a JSON object; None if the lines are not to blame.

    The line itself is not quoted: of a node's file, the message reaches the server.
    """
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            if number == 1 and line.lstrip().startswith(b"["):
                return None  # one JSON array, not JSON Lines
            try:
                value = json.loads(line) if line.strip() else {}
            except ValueError as error:
                reason = getattr(error, "msg", error)  # without json's own line number
                return f"line {number} is not valid JSON ({reason})"
            if not isinstance(value, dict):
                return f"line {number} is not a JSON object"
    return None


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
