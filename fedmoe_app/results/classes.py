"""How a classifier did on each class of the server's test set: ``classes.jsonl``, a line a scoring.

::

    {"round": 3, "names": ["no", "yes"], "macro_f1": 0.61, "majority": 0.7,
     "confusion": [[0, 0, 5], [0, 1, 2], [1, 1, 3]]}      rows of class 0 taken for 1: 2

Shapes: C classes; a confusion matrix ``[C, C]`` counts rows by their class and the class that the
model gave them. Precision, recall and F1 are those of C. J. van Rijsbergen, "Information
Retrieval", 1979; where nothing is there to divide by they are 0.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedmoe_app.results.best import best_of
from fedmoe_app.results.folder import CLASSES_FILE, ResultsError, read_metrics


@dataclass(frozen=True)
class Classes:
    """The classes of a scoring.

    Attributes:
        round: after which the global model was scored.
        names: of the C classes.
        confusion: counts ``[C, C]``, int64: rows of the class of the row, taken for the column's.
    """

    round: int
    names: tuple[str, ...]
    confusion: np.ndarray

    @property
    def support(self) -> np.ndarray:
        """Test rows of each class, ``[C]``."""
        return np.asarray(self.confusion.sum(axis=1))

    @property
    def precision(self) -> np.ndarray:
        """Share of the rows taken for a class that are of it, ``[C]``."""
        return _ratio(self.confusion.diagonal(), self.confusion.sum(axis=0))

    @property
    def recall(self) -> np.ndarray:
        """Share of a class's rows that were taken for it, ``[C]``."""
        return _ratio(self.confusion.diagonal(), self.support)

    @property
    def f1(self) -> np.ndarray:
        """Harmonic mean of precision and recall, ``[C]``."""
        both = self.support + self.confusion.sum(axis=0)
        return _ratio(2 * self.confusion.diagonal(), both)

    @property
    def macro_f1(self) -> float:
        """Mean F1 over the classes that rows are of or were taken for: each counts the same."""
        occurs = (self.support + self.confusion.sum(axis=0)) > 0
        return float(self.f1[occurs].mean()) if occurs.any() else 0.0

    @property
    def majority(self) -> float:
        """Accuracy of always giving the test set's most frequent class."""
        total = self.support.sum()
        return float(self.support.max() / total) if total else 0.0

    @property
    def worst_confusions(self) -> list[tuple[int, int, int]]:
        """Return class, class given, and rows of each mistake, the most frequent first."""
        wrong = self.confusion - np.diag(self.confusion.diagonal())
        pairs = [(int(a), int(b), int(wrong[a, b])) for a, b in np.argwhere(wrong)]
        return sorted(pairs, key=lambda pair: -pair[2])

    def said(self) -> str:
        """Say in one line what an accuracy is worth; no class is named: it may go into a log."""
        return (
            f"macro-F1 {self.macro_f1:.3f}; always giving the most frequent class would reach "
            f"accuracy {self.majority:.3f}"
        )

    def line(self) -> dict[str, Any]:
        """Return the line of ``classes.jsonl``; of the matrix only what is not 0."""
        cells = [
            [int(a), int(b), int(self.confusion[a, b])] for a, b in np.argwhere(self.confusion)
        ]
        return {
            "round": self.round,
            "names": list(self.names),
            "macro_f1": self.macro_f1,
            "majority": self.majority,
            "confusion": cells,
        }


def read_classes(folder: Path) -> list[Classes]:
    """Return the scorings of a run in their order; none where it does not classify.

    Raises:
        ResultsError: a line that no run has written.
    """
    file = folder / CLASSES_FILE
    return [_read(line, file) for line in read_metrics(file)] if file.is_file() else []


def kept_classes(folder: Path, lines: Sequence[dict[str, Any]]) -> Classes | None:
    """Return the scoring of the model that a run keeps; None where there is none.

    Args:
        folder: of the run.
        lines: its metrics lines.
    """
    found = read_classes(folder)
    best = best_of(lines)
    if best is None:
        return found[-1] if found else None
    return next((each for each in found if each.round == best["round"]), None)


def _read(line: dict[str, Any], file: Path) -> Classes:
    try:
        names = tuple(map(str, line["names"]))
        confusion = np.zeros((len(names), len(names)), np.int64)
        for row, column, count in line["confusion"]:
            confusion[row, column] = count
        return Classes(int(line["round"]), names, confusion)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        where = json.dumps(line)[:80]
        raise ResultsError(f"{file}: {where}: not a line of this file ({error})") from None


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros(len(whole)), where=whole > 0)
