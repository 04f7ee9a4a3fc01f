"""Where text comes from: the embedded corpus, local files, or a data set of the hub.

``data.source`` is one of

- ``embedded``: the docstring corpus of :mod:`fedmoe_app.data.corpus`;
- a file that ends in one of ``FORMATS``, also with .gz; or several, comma-separated. A path is
  taken literally; patterns and folders are read where ``data.source-kind`` says so;
- the name of a hub data set, ``owner/name`` or ``owner/name:subset``. These live in the usual
  Hugging Face cache.

One list, ``SOURCES``, holds the three; the first that claims a name reads it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import xxhash
from datasets import ClassLabel, Dataset, concatenate_datasets

from fedmoe_app.config.errors import DataError
from fedmoe_app.config.lists import file_names
from fedmoe_app.config.policy import node_policy
from fedmoe_app.config.schema import EMBEDDED, DataConfig
from fedmoe_app.data.columns import (
    Table,
    asked_columns,
    find_label_names,
    named_columns,
    unify,
)
from fedmoe_app.data.corpus import load_corpus
from fedmoe_app.data.files import (
    FORMATS,
    Dialect,
    column_names,
    looks_like_file,
    names_by_rows,
    quiet_datasets,
    read_columns,
)
from fedmoe_app.data.found import find_files
from fedmoe_app.data.reading.columns import Asked

# The caps draw the same examples in every run; the run seed only changes the partition.
_CAP_SEED = 0
_ROWS = 1 << 14


@dataclass(frozen=True)
class TextData:
    """Text in the uniform columns of :mod:`fedmoe_app.data.columns`."""

    train: Dataset
    test: Dataset | None
    label_names: tuple[str, ...]  # empty for causal-lm
    fingerprint: str  # hash of the training text: equal where two nodes hold the same
    validation: Dataset | None = None


@dataclass(frozen=True)
class RawData:
    """Tables as a source has them."""

    train: list[Table]
    test: list[Table]  # empty when the source has no test split


@dataclass(frozen=True)
class Source:
    """A kind of source: which names it claims and how it reads one."""

    claims: Callable[[str], bool]
    read: Callable[[str, DataConfig], RawData]


def load_text_data(config: DataConfig, with_test: bool = True) -> TextData:
    """Load, check and cap the training and test text that a run config names.

    Args:
        config: the run's data section.
        with_test: False leaves test and validation rows out. Nodes need them not, and in a
            deployment they do not have the server's files.

    Raises:
        DataError: naming file, row, value and choices.
    """
    raw = _read(config)
    label_names: tuple[str, ...] = ()
    if config.kind.classifies:
        label_names = find_label_names(raw.train, config)
    train = _unify_all(raw.train, config, label_names, keep_partition_column=True)
    train = cap(train, config.max_train_examples)
    test = _test_set(raw, config, label_names) if with_test else None
    validation = load_validation(config, label_names) if with_test else None
    return TextData(train, test, label_names, _fingerprint(train, label_names), validation)


def _test_set(raw: RawData, config: DataConfig, label_names: Sequence[str]) -> Dataset | None:
    tables = raw.test
    if config.test_source:
        files = find_files(config.test_source, config.source_kind, test=True)
        tables = [_read_file(path, config) for path in files.train]
    if not tables:
        return None
    test = _unify_all(tables, config, label_names, keep_partition_column=False)
    return cap(test, config.max_test_examples)


def load_validation(config: DataConfig, label_names: Sequence[str]) -> Dataset | None:
    """Return the rows of ``data.validation-source``; None without one.

    Raises:
        DataError: a file of them is the training or the test data, too. A round chosen on test rows
            would make the test's figure too good.
    """
    if not config.validation_source:
        return None
    _refuse_shared_files(config)
    files = find_files(config.validation_source, config.source_kind, test=True)
    tables = [_read_file(path, config) for path in files.train]
    return _unify_all(tables, config, label_names, keep_partition_column=False)


def _refuse_shared_files(config: DataConfig) -> None:
    mine = _resolved(config.validation_source)
    for key, names in (("source", config.source), ("test-source", config.test_source)):
        if shared := sorted(mine & _resolved(names)):
            raise DataError(
                f'data.validation-source = "{config.validation_source}": {shared[0]} is in '
                f"data.{key}, too; give rows that are neither training nor test rows"
            )


def _resolved(names: str) -> set[str]:
    return (
        {str(Path(name).expanduser().resolve()) for name in file_names(names)} if names else set()
    )


def load_node_file(
    path: str | Path, config: DataConfig, label_names: Sequence[str], lenient: bool = False
) -> Dataset:
    """Load the file of a node that brings its own data (``data-path`` in its node config).

    No copy of a node's file is left on the disk: the text is in memory, or, if there is much of
    it, in a file without a name that goes with this process.

    Args:
        path: the file; ``data.source`` is not looked at.
        config: the run's data section: task and field names.
        label_names: the run's class names.
        lenient: a row that cannot be used is left out, with a warning, and is no error; what is
            made of a row depends on no other. There may be none.

    Raises:
        DataError: also when a label is not one of ``label_names``, with the row number. With
            ``lenient`` only for what the file as a whole is: not there, broken off, without a
            column.
    """
    tables = read_tables(config, Path(path), lenient)
    return _unify_all(tables, config, label_names, keep_partition_column=False)


def read_tables(config: DataConfig, path: Path | None = None, lenient: bool = False) -> list[Table]:
    """Return the training tables of the source, or of another file, as they are read."""
    if path is None:
        return _read(config).train
    files = find_files(str(path), config.source_kind)
    return [_read_file(found, config, True, lenient) for found in files.all]


def cap(dataset: Dataset, max_examples: int) -> Dataset:
    """Return at most ``max_examples`` rows (0 = all), in their order, the same in every run.

    With a column ``label`` every class keeps its share, up to rounding.
    """
    if max_examples == 0 or len(dataset) <= max_examples:
        return dataset
    order = np.random.default_rng(_CAP_SEED).permutation(len(dataset))
    if "label" in dataset.column_names:
        order = _spread(dataset.with_format("numpy")["label"][:][order], order)
    return dataset.select(np.sort(order[:max_examples]))


def _spread(labels: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Reorder so that every prefix holds the classes in proportion to their sizes."""
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    return order[np.argsort(place, kind="stable")]


def _read(config: DataConfig) -> RawData:
    if config.source_kind != "auto" and config.source != EMBEDDED:
        return _read_files(config.source, config)
    return next(kind for kind in SOURCES if kind.claims(config.source)).read(config.source, config)


def _read_embedded(source: str, config: DataConfig) -> RawData:
    corpus = load_corpus()
    names = ClassLabel(names=list(corpus.label_names))
    with quiet_datasets():
        train, test = (part.cast_column("label", names) for part in (corpus.train, corpus.test))
    return RawData([Table(train, source)], [Table(test, f"{source} (test)")])


def _read_files(source: str, config: DataConfig) -> RawData:
    files = find_files(source, config.source_kind)
    return RawData(
        [_read_file(path, config) for path in files.train],
        [_read_file(path, config) for path in files.test],
    )


def _read_file(
    path: str, config: DataConfig, private: bool = False, lenient: bool = False
) -> Table:
    dialect = Dialect(config.encoding, config.delimiter)
    if lenient and names_by_rows(path):
        names: Sequence[str] = named_columns(config)
    else:
        names = column_names(path, dialect, private, lenient)
    asked = _allowed(asked_columns(config, names))
    trim = config.kind.classifies  # a completion begins with its space
    found = read_columns(path, asked, dialect, not private, trim, private, lenient)
    return Table(
        found.dataset,
        path,
        private,
        found.names,
        found.declared,
        is_trimmed=trim,
        lenient=lenient,
    )


def _allowed(asked: Asked) -> Asked:
    """Leave out what this node's policy does not let a run read.

    Raises:
        RefusedError: the run cannot do without it.
    """
    policy = node_policy()
    if policy is None:
        return asked
    needed = (*asked.scalars, *asked.nested)
    return replace(asked, optional=policy.columns_read(needed, asked.optional))


def _read_hub(source: str, config: DataConfig) -> RawData:
    if Path(source).expanduser().is_dir():
        raise DataError(
            f'data.source = "{source}": is a folder; set data.source-kind = "folder" to read all '
            "data files in it, or name one file"
        )
    name, _, subset = source.partition(":")
    try:
        with quiet_datasets():
            splits = datasets.load_dataset(name, subset or None)
    except Exception as error:  # many types: network, hub, formats
        reason = str(error).strip().splitlines()
        raise DataError(
            f'data.source = "{source}": not "embedded", not a file here '
            f"({', '.join(FORMATS)}, also .gz), and no data set could be loaded under this name "
            f"({reason[0] if reason else type(error).__name__})"
        ) from error
    if "train" not in splits:
        raise DataError(f'data.source = "{source}": no split "train" among {", ".join(splits)}')
    test = [Table(splits["test"], f"{source} (test)")] if "test" in splits else []
    return RawData([Table(splits["train"], source)], test)


def _are_files(source: str) -> bool:
    return any(looks_like_file(part) for part in file_names(source))


SOURCES = (
    Source(claims=lambda name: name == EMBEDDED, read=_read_embedded),
    Source(claims=_are_files, read=_read_files),
    Source(claims=lambda name: True, read=_read_hub),
)


def _unify_all(
    tables: Sequence[Table],
    config: DataConfig,
    label_names: Sequence[str],
    keep_partition_column: bool,
) -> Dataset:
    parts = [unify(table, config, label_names, keep_partition_column) for table in tables]
    for table, part in zip(tables, parts, strict=True):
        if part.column_names != parts[0].column_names:
            raise DataError(
                f"{table.origin}: its rows are of another kind than those of {tables[0].origin}; "
                "give files of one kind"
            )
    return parts[0] if len(parts) == 1 else concatenate_datasets(parts)


def _fingerprint(train: Dataset, label_names: Sequence[str]) -> str:
    """Hash names and rows, whatever pieces they lie in and files they lie in."""
    state = xxhash.xxh3_128(json.dumps([list(label_names), train.column_names]).encode())
    arrow = train.with_format("arrow")
    for start in range(0, len(train), _ROWS):
        for column in arrow[start : start + _ROWS].columns:
            _hash_column(state, column.combine_chunks())
    return state.hexdigest()[:16]


def _hash_column(state: xxhash.xxh3_128, column: pa.Array) -> None:
    if column.type == pa.string():
        # Lengths as well as bytes: or "ab", "c" would be "a", "bc".
        _, offsets, data = column.buffers()
        ends = np.frombuffer(offsets, np.int32)[column.offset : column.offset + len(column) + 1]
        state.update(np.diff(ends).tobytes())
        state.update(memoryview(data or b"")[ends[0] : ends[-1]])
    elif pa.types.is_integer(column.type):
        state.update(column.to_numpy().tobytes())
    else:
        state.update(json.dumps(column.to_pylist()).encode())
