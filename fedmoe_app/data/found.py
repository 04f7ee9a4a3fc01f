"""The files that a source means: paths, or, where the run config says so, patterns or folders."""

from __future__ import annotations

import glob
import os
import re
from dataclasses import dataclass
from pathlib import Path

from fedmoe_app.config.errors import DataError
from fedmoe_app.config.lists import file_names

AUTO, GLOB, FOLDER = "auto", "glob", "folder"

# The words by which `datasets` tells the splits of a folder apart, too.
_TEST = re.compile(r"(?:^|[^a-z])(?:test|testing|eval|evaluation)(?:[^a-z]|$)")
_VALIDATION = re.compile(r"(?:^|[^a-z])(?:validation|valid|dev|val)(?:[^a-z]|$)")
_ENDINGS = (".tsv", ".ndjson", ".jsonl", ".json", ".csv", ".parquet")


@dataclass(frozen=True)
class Files:
    """Paths of data files, sorted where a pattern or folder named them."""

    train: tuple[str, ...]
    test: tuple[str, ...] = ()

    @property
    def all(self) -> tuple[str, ...]:
        """Both."""
        return (*self.train, *self.test)


def find_files(source: str, kind: str, test: bool = False) -> Files:
    """Return the files that a source means.

    Args:
        source: a value of ``data.source``, ``data.test-source`` or of a node's ``data-path``.
        kind: ``data.source-kind``. ``auto``: every name is one path, whatever characters are in it.
            ``glob``: names are patterns with ``*``, ``?`` and ``[...]``. ``folder``: all data files
            below it; those with the word test or eval in their path are the test set, and those
            with validation, valid, val or dev are left out.
        test: whether the source is a test set: of a folder, all files belong to it.

    Raises:
        DataError: a pattern or folder without data files.
    """
    found: list[str] = []
    for name in file_names(source, patterns=kind == GLOB):
        found += _matches(name, kind)
    if kind != FOLDER or test:
        return Files(tuple(found))
    return Files(
        tuple(path for path in found if not _is_part(path, source, (_TEST, _VALIDATION))),
        tuple(path for path in found if _is_part(path, source, (_TEST,))),
    )


def _matches(name: str, kind: str) -> list[str]:
    path = Path(name).expanduser()
    if kind == AUTO or path.is_file():
        return [name]
    if kind == GLOB:
        found = sorted(
            match for match in glob.glob(str(path), recursive=True) if Path(match).is_file()
        )
        if not found:
            raise DataError(f'"{name}": no file matches this pattern (data.source-kind = "glob")')
        return found
    if not path.is_dir():
        raise DataError(f'"{name}": there is no such folder (data.source-kind = "folder")')
    found = sorted(str(file) for file in path.rglob("*") if _is_data(file, path))
    if not found:
        raise DataError(f"{name}: no data file in this folder ({', '.join(_ENDINGS)}, also .gz)")
    return found


def _is_data(file: Path, folder: Path) -> bool:
    hidden = any(part.startswith((".", "_")) for part in file.relative_to(folder).parts)
    return (
        not hidden and file.is_file() and file.name.lower().removesuffix(".gz").endswith(_ENDINGS)
    )


def _is_part(path: str, source: str, words: tuple[re.Pattern[str], ...]) -> bool:
    below = os.path.relpath(path, Path(source).expanduser()).lower()
    return any(word.search(below) for word in words)
