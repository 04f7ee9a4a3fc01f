"""The classes of a classifier on the page: a table, and who is taken for whom."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fedmoe_app.report.charts import Chart
from fedmoe_app.report.cubes import Axis, Cube
from fedmoe_app.report.facts import Cell, Fact, Table
from fedmoe_app.report.heat import Map, page_map
from fedmoe_app.results.classes import Classes
from fedmoe_app.results.table import MISSING

# Of more classes, those with most mistakes are drawn: names of 150 columns cannot be read.
MAX_DRAWN = 24
OTHERS = "all others"
CLASS, GIVEN = "class", "given"
CUBE = "confusion"


class Part(NamedTuple):
    """What the page has of the classes."""

    facts: list[Fact]
    table: Table
    chart: Chart
    cube: Cube


def part_of(classes: Classes) -> Part:
    """Return facts, table and matrix of one scoring."""
    cube, remark = confusion_cube(classes)
    each = Map(
        "Who is taken for whom",
        "Share of a class's test rows that the model gave each class; on the diagonal it is right."
        + remark,
        CUBE, CLASS, GIVEN, high=1.0, label="share of the class's test rows",
    )  # fmt: skip
    return Part(facts_of(classes), classes_table(classes), page_map(each, cube), cube)


def facts_of(classes: Classes) -> list[Fact]:
    """Return macro-F1, and what giving one class to all would reach."""
    most = classes.names[int(classes.support.argmax())]
    return [
        Fact("macro-F1", f"{classes.macro_f1:.3f}", "mean over the classes, each counts the same"),
        Fact("majority baseline", f"{classes.majority:.3f}", f"accuracy of always {most}"),
    ]


def classes_table(classes: Classes) -> Table:
    """Return one row a class, with the class that it is most often taken for."""
    mistakes: dict[int, tuple[int, int]] = {}
    for row, given, count in classes.worst_confusions:
        mistakes.setdefault(row, (given, count))
    rows = []
    for row, name in enumerate(classes.names):
        given, count = mistakes.get(row, (0, 0))
        wrong = f"{classes.names[given]} ({count})" if count else MISSING
        figures = (classes.precision[row], classes.recall[row], classes.f1[row])
        rows.append((
            Cell(name, name), Cell(str(classes.support[row]), float(classes.support[row])),
            *(Cell(f"{value:.3f}", float(value)) for value in figures),
            Cell(wrong, float(count) if count else None),
        ))  # fmt: skip
    headers = ("class", "test rows", "precision", "recall", "F1", "most often taken for")
    return Table(headers, rows)


def confusion_cube(classes: Classes) -> tuple[Cube, str]:
    """Return the matrix as shares of its rows, and what was left out of it.

    Of more than ``MAX_DRAWN`` classes those with most mistakes are there, in the run's order; the
    last column sums up the others. A class without a test row has no number.
    """
    matrix = classes.confusion.astype(float)
    wrong = matrix.sum(axis=0) + matrix.sum(axis=1) - 2 * matrix.diagonal()
    drawn = np.sort(np.argsort(-wrong, kind="stable")[:MAX_DRAWN])
    kept = matrix[np.ix_(drawn, drawn)]
    names = [classes.names[index] for index in drawn]
    columns = list(names)
    remark = ""
    if len(drawn) < len(classes.names):
        rest = matrix[drawn].sum(axis=1) - kept.sum(axis=1)
        kept = np.column_stack([kept, rest])
        columns.append(OTHERS)
        remark = (
            f" Of {len(classes.names)} classes the {len(drawn)} with most mistakes; the table has "
            "all."
        )
    support = matrix[drawn].sum(axis=1, keepdims=True)
    shares = np.divide(kept, support, out=np.full(kept.shape, np.nan), where=support > 0)
    return Cube((Axis(CLASS, tuple(names)), Axis(GIVEN, tuple(columns))), shares), remark
