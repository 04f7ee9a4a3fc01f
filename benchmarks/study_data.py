"""Data and partitions of the study: sizes, settings, and files of training, validation, test rows.

The rows lie beside the repository, not in it.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.cells import SHARED_DATA
from fedmoe_app.compare.plan import Partition
from fedmoe_app.config.paths import home

RANDOM, CLOSED, LEFT_OUT = "random", "closed-form", "leave-one-out"  # heads of classifiers
LANGUAGE = "language"  # the head that the model has
VALIDATION = 600  # rows taken from the training file where the set has no validation file
SPLIT_SEED = 7
PARTITIONS: Mapping[str, Partition] = {
    "dirichlet-0.1": Partition("Dirichlet 0.1", {"data.partition": "dirichlet", "data.alpha": 0.1}),
    "dirichlet-0.5": Partition("Dirichlet 0.5", {"data.partition": "dirichlet", "data.alpha": 0.5}),
    "iid": Partition("IID", {"data.partition": "iid"}),
    "domain": Partition(
        "by domain", {"data.partition": "natural", "data.partition-by": "domain"}
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Data:
    """Sizes of one data set.

    Attributes:
        train: rows, of all clients together.
        test: rows, also of validation.
        max_length: tokens.
        rounds: by kind of head.
        partition: how rows are shared where learning rates are tuned; a key of PARTITIONS.
        settings: of the run config, beside those of the whole study.
    """

    train: int
    test: int
    max_length: int
    rounds: Mapping[str, int]
    clients: int = 10
    partition: str = "dirichlet-0.1"
    settings: Mapping[str, Any] = field(default_factory=dict)


_CLASSIFIER = {RANDOM: 6, CLOSED: 3, LEFT_OUT: 3}
DATA: Mapping[str, Data] = {
    "ag_news": Data(1000, 600, 64, _CLASSIFIER),
    "clinc150": Data(2000, 600, 36, _CLASSIFIER),
    "banking77": Data(2000, 600, 48, _CLASSIFIER),
    "hwu64": Data(2000, 600, 36, _CLASSIFIER),
    "dolly15k": Data(
        800, 300, 96, {LANGUAGE: 3}, clients=8, partition="domain",
        settings={"data.task": "causal-lm", "data.context-field": "context"},
    ),
}  # fmt: skip


def is_here(name: str) -> bool:
    """Return whether the data set lies beside the repository."""
    return (SHARED_DATA / name).is_dir()


def split_files(name: str) -> dict[str, Path]:
    """Write train, validation and test rows of a set, once; its own validation file is taken."""
    folder = home() / "benchmarks" / "study" / "data" / name
    files = {part: folder / f"{part}.jsonl" for part in ("train", "validation", "test")}
    if all(file.is_file() for file in files.values()):
        return files
    train = _lines(SHARED_DATA / name / "train.jsonl.gz")
    own = SHARED_DATA / name / "validation.jsonl.gz"
    random.Random(SPLIT_SEED).shuffle(train)
    parts = {
        "train": train if own.is_file() else train[VALIDATION:],
        "validation": _lines(own) if own.is_file() else train[:VALIDATION],
        "test": _lines(SHARED_DATA / name / "test.jsonl.gz"),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for part, lines in parts.items():
        files[part].write_text("".join(map(_row, lines)), encoding="utf-8")
    return files


def _lines(file: Path) -> list[str]:
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        return list(lines)


def _row(line: str) -> str:
    row = json.loads(line)
    if "label_name" in row:
        row["label"] = row.pop("label_name")
    return json.dumps(row) + "\n"
