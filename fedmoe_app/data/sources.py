"""Where text comes from: the embedded corpus, local files, or a data set of the hub.

``data.source`` is one of

- ``embedded``: the docstring corpus of :mod:`fedmoe_app.data.corpus`;
- a file that ends in .jsonl, .json, .csv or .parquet, also with .gz; or several, comma-separated;
- the name of a hub data set, ``owner/name`` or ``owner/name:subset``, or a local folder laid out
  like one. These live in the usual Hugging Face cache.

One list, ``SOURCES``, holds the three; the first that claims a name reads it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
from datasets import ClassLabel, Dataset, concatenate_datasets

from fedmoe_app.config import EMBEDDED, DataConfig
from fedmoe_app.data.columns import Table, find_label_names, unify
from fedmoe_app.data.corpus import load_corpus
from fedmoe_app.data.errors import DataError
from fedmoe_app.data.files import FORMATS, looks_like_file, quiet_datasets, read_file
from fedmoe_app.data.names import file_names

# The caps draw the same examples in every run; the run seed only changes the partition.
_CAP_SEED = 0


@dataclass(frozen=True)
class TextData:
    """Text in the uniform columns of :mod:`fedmoe_app.data.columns`."""

    train: Dataset
    test: Dataset | None
    label_names: tuple[str, ...]  # empty for causal-lm
    fingerprint: str  # hash of the training text: equal where two nodes hold the same


@dataclass(frozen=True)
class RawData:
    """Tables as a source has them."""

    train: list[Table]
    test: list[Table]  # empty when the source has no test split


@dataclass(frozen=True)
class Source:
    """A kind of source: which names it claims and how it reads one."""

    claims: Callable[[str], bool]
    read: Callable[[str], RawData]


def load_text_data(config: DataConfig, with_test: bool = True) -> TextData:
    """Load, check and cap the training and test text that a run config names.

    Args:
        config: the run's data section.
        with_test: False leaves the test set out. Nodes need it not, and in a deployment they do
            not have the server's ``test-source``.

    Raises:
        DataError: naming file, row, value and choices.
    """
    raw = _read(config.source)
    label_names: tuple[str, ...] = ()
    if config.task == "classification":
        label_names = find_label_names(raw.train, config)
    train = _unify_all(raw.train, config, label_names, keep_partition_column=True)
    train = cap(train, config.max_train_examples)
    test = _test_set(raw, config, label_names) if with_test else None
    return TextData(train, test, label_names, _fingerprint(train, label_names))


def _test_set(raw: RawData, config: DataConfig, label_names: Sequence[str]) -> Dataset | None:
    tables = _read_files(config.test_source).train if config.test_source else raw.test
    if not tables:
        return None
    test = _unify_all(tables, config, label_names, keep_partition_column=False)
    return cap(test, config.max_test_examples)


def load_node_file(path: str | Path, config: DataConfig, label_names: Sequence[str]) -> Dataset:
    """Load the file of a node that brings its own data (``data-path`` in its node config).

    The text is in memory only: no copy of a node's file is left on the disk.

    Args:
        path: the file; ``data.source`` is not looked at.
        config: the run's data section: task and field names.
        label_names: the run's class names; integers in the file are positions in them.

    Raises:
        DataError: also when a label is not one of ``label_names``, with the row number.
    """
    tables = [
        Table(table.dataset, table.origin, private=True)
        for table in _read_files(str(path), keep_copies=False).train
    ]
    return _unify_all(tables, config, label_names, keep_partition_column=False)


def cap(dataset: Dataset, max_examples: int) -> Dataset:
    """Return at most ``max_examples`` rows (0 = all), in their order, the same in every run.

    With a column ``label`` every class keeps its share, up to rounding.
    """
    if max_examples == 0 or len(dataset) <= max_examples:
        return dataset
    order = np.random.default_rng(_CAP_SEED).permutation(len(dataset))
    if "label" in dataset.column_names:
        order = _spread(np.asarray(dataset["label"])[order], order)
    return dataset.select(sorted(order[:max_examples].tolist()))


def _spread(labels: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Reorder so that every prefix holds the classes in proportion to their sizes."""
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    return order[np.argsort(place, kind="stable")]


def _read(source: str) -> RawData:
    return next(kind for kind in SOURCES if kind.claims(source)).read(source)


def _read_embedded(source: str) -> RawData:
    corpus = load_corpus()
    names = ClassLabel(names=list(corpus.label_names))
    with quiet_datasets():
        train, test = (part.cast_column("label", names) for part in (corpus.train, corpus.test))
    return RawData([Table(train, source)], [Table(test, f"{source} (test)")])


def _read_files(sources: str, keep_copies: bool = True) -> RawData:
    return RawData([Table(read_file(path, keep_copies), path) for path in file_names(sources)], [])


def _read_hub(source: str) -> RawData:
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
    return any(looks_like_file(path) for path in file_names(source))


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
    return parts[0] if len(parts) == 1 else concatenate_datasets(parts)


def _fingerprint(train: Dataset, label_names: Sequence[str]) -> str:
    state = hashlib.sha256(json.dumps(list(label_names)).encode())
    columns = {name: train[name][:] for name in train.column_names}
    state.update(json.dumps(columns, sort_keys=True).encode())
    return state.hexdigest()[:16]
