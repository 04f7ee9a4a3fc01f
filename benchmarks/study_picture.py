"""The figure of docs/study.md: where each scheme ends, between the untrained and the centralised.

Drawn by ``python -m benchmarks.study report``.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from fedmoe_app.report.charts import SHAPES, Axis, Dots, dots, three
from fedmoe_app.report.files import beside, picture_of, write_pictures

WIDTH = 620  # pixels of the chart
_MEAN, _SEED = "mean over the seeds", "one seed"


class Part(NamedTuple):
    """What the figure shows of one kind of head.

    Attributes:
        head: the kind, written before every row's name where there are several.
        start: mean accuracy before training.
        rows: accuracy by scheme and seed, in the order of the rows.
    """

    head: str
    start: float
    rows: Mapping[str, Mapping[int, float]]


def draw(file: Path, title: str, about: str, parts: Sequence[Part]) -> list[Path]:
    """Draw one row a scheme and head, worst last within its head; return the file."""
    names: list[str] = []
    values: list[list[float]] = []
    for part in parts:
        rows = {name: list(seeds.values()) for name, seeds in part.rows.items() if seeds}
        rows["before training"] = [part.start]
        for name in sorted(rows, key=lambda row: -statistics.fmean(rows[row])):
            names.append(f"{part.head} · {name}" if len(parts) > 1 else name)
            values.append(rows[name])
    chart = dots(
        title,
        names,
        [
            Dots(_MEAN, [[statistics.fmean(found)] for found in values]),
            Dots(_SEED, values, colour="var(--quiet)", shape=SHAPES[1], small=True),
        ],
        Axis("accuracy on the test rows", three, low=None),
    )
    about = f"{about}, {parts[0].head}" if len(parts) == 1 else about
    drawn = beside([chart._replace(about=about)], WIDTH)
    return write_pictures({file: picture_of([drawn], chart.legend, 1)})
