"""Data of the compose demo: a file for each node and one to test on, out of the embedded corpus.

    python demo_data.py FOLDER

Node N gets ``FOLDER/node-N/train.jsonl``; half of its texts are of a third of the libraries, the
rest of any, so that no two nodes have the same. ``FOLDER/test.jsonl`` is the server's.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from datasets import Dataset

from fedmoe_app.data.corpus import load_corpus

NODES = 3
TRAIN, TEST = 240, 160  # examples of a node and of the server
SEED = 7


def pick(labels: np.ndarray, node: int, rng: np.random.Generator) -> np.ndarray:
    """Return a node's rows: half of its own libraries, half of all."""
    own = np.flatnonzero(labels % NODES == node)
    return np.concatenate(
        [rng.choice(rows, TRAIN // 2, replace=False) for rows in (own, np.arange(len(labels)))]
    )


def write(path: Path, dataset: Dataset, rows: Iterable[int], names: tuple[str, ...]) -> None:
    """Write these rows as JSON lines with the columns ``text`` and ``label`` (a name)."""
    chosen = dataset.select(sorted({int(row) for row in rows}))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for text, label in zip(chosen["text"], chosen["label"], strict=True):
            file.write(json.dumps({"text": text, "label": names[label]}) + "\n")


def main(folder: Path) -> None:
    """Write the files of all nodes and of the server."""
    corpus, rng = load_corpus(), np.random.default_rng(SEED)
    labels = np.asarray(corpus.train["label"])
    for node in range(NODES):
        rows = pick(labels, node, rng)
        write(folder / f"node-{node}" / "train.jsonl", corpus.train, rows, corpus.label_names)
    test = rng.choice(len(corpus.test), TEST, replace=False)
    write(folder / "test.jsonl", corpus.test, test, corpus.label_names)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
