"""The table of a run: a row a round."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any

from rich import box

from fedmoe_app.config.policy import REFUSED
from fedmoe_app.shown.tables import latex, markdown_cell
from fedmoe_app.shown.terminal import Console, Table
from fedmoe_app.shown.text import visible

if TYPE_CHECKING:
    from fedmoe_app.results.classes import Classes

# Columns of a plain log, where there is no terminal to ask.
LOG_WIDTH = 100
MISSING = "-"
MAX_METRIC = 24  # characters of its name
_EPSILON = {"privacy": "epsilon", "example_privacy": "epsilon a node"}  # key of a line -> header


def metrics_table(lines: Sequence[dict[str, Any]]) -> Table:
    """Build the table of the metrics lines (see :mod:`fedmoe_app.results.folder`).

    Columns: round, loss, accuracy (or the task's metric), bytes up and down of all clients
    together, clients that replied, clients that failed, seconds; ε spent so far in a run with
    differential privacy of clients, and at most spent of a node's examples in one with that of
    examples.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    headers, rows = _texts(lines)
    for header in headers:
        table.add_column(header, justify="right", no_wrap=True)
    for line, cells in zip(lines, rows, strict=True):
        table.add_row(*cells, style="red" if _failed(line) else None)
    return table


def write_rounds(lines: Sequence[dict[str, Any]], form: str) -> str:
    """Return the same table as text: ``latex`` (booktabs) or ``markdown``."""
    return _written(*_texts(lines), form)


def _written(headers: Sequence[str], rows: Sequence[Sequence[str]], form: str) -> str:
    if form == "markdown":
        written = [[markdown_cell(text) for text in row] for row in (headers, *rows)]
        rule = f"|{' ---: |' * len(headers)}"
        found = [f"| {' | '.join(row)} |" for row in written]
        return "\n".join([found[0], rule, *found[1:]]) + "\n"
    body = [rf"  {' & '.join(map(latex, row))} \\" for row in (headers, *rows)]
    columns = "r" * len(headers)
    head = [r"% \usepackage{booktabs}", rf"\begin{{tabular}}{{{columns}}}", r"  \toprule"]
    tail = [r"  \bottomrule", r"\end{tabular}"]
    return "\n".join([*head, body[0], r"  \midrule", *body[1:], *tail]) + "\n"


def classes_table(classes: Classes) -> Table:
    """Build the table of a scoring's classes: rows of each, precision, recall, F1, worst mistake.

    The last row is macro-F1. Classes stand in the order of their indices.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    headers, rows = _class_texts(classes)
    for number, header in enumerate(headers):
        side = "left" if number in (0, len(headers) - 1) else "right"
        table.add_column(header, justify=side, no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def write_classes(classes: Classes, form: str) -> str:
    """Return the same table as text: ``latex`` (booktabs) or ``markdown``."""
    return _written(*_class_texts(classes), form)


def _class_texts(classes: Classes) -> tuple[list[str], list[list[str]]]:
    """Return the headers, and the cells of each class."""
    worst: dict[int, str] = {}
    for own, given, count in classes.worst_confusions:  # the most frequent first
        worst.setdefault(own, f"{visible(classes.names[given], MAX_METRIC)} ({count})")
    figures = zip(
        classes.names, classes.support, classes.precision, classes.recall, classes.f1, strict=True
    )
    rows = [
        [visible(name, MAX_METRIC), str(count), *(_number(float(each), 3) for each in shares),
         worst.get(number, "")]
        for number, (name, count, *shares) in enumerate(figures)
    ]  # fmt: skip
    mean = ["macro-F1", str(classes.support.sum()), "", "", _number(classes.macro_f1, 3), ""]
    return ["class", "rows", "precision", "recall", "F1", "most often taken for"], [*rows, mean]


def _texts(lines: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return the headers, and the cells of each line."""
    metric = next((line["metric"] for line in lines if line.get("metric")), "accuracy")
    headers = ["round", "loss", visible(metric, MAX_METRIC), "bytes up", "bytes down", "clients",
               "failed", "seconds"]  # fmt: skip
    for key, header in _EPSILON.items():
        if any(line.get(key) for line in lines):
            return [*headers, header], [[*_cells(line), _epsilon(line, key)] for line in lines]
    return headers, [[*_cells(line)] for line in lines]


def _epsilon(line: dict[str, Any], key: str) -> str:
    return _number((line.get(key) or {}).get("epsilon"), digits=2)


def print_table(lines: Sequence[dict[str, Any]], file: IO[str] | None = None) -> None:
    """Print the table; without a terminal in plain text, 100 columns wide."""
    _print(metrics_table(lines), file or sys.stdout)


def print_classes(classes: Classes) -> None:
    """Print the table of a scoring's classes likewise."""
    _print(classes_table(classes), sys.stdout)


def _print(table: Table, file: IO[str]) -> None:
    width = None if file.isatty() else LOG_WIDTH
    Console(file=file, width=width).print(table)


def human_bytes(count: float | None) -> str:
    """Return a byte count with a decimal unit and three digits: ``1.23 MB``; ``-`` for None."""
    if count is None:
        return MISSING
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        # 999.5 would be printed as 1000
        if size < 999.5:
            return f"{size:.0f} {unit}" if unit == "B" else f"{_three_digits(size)} {unit}"
        size /= 1000
    return f"{_three_digits(size)} TB"


def _three_digits(size: float) -> str:
    if size < 9.995:
        return f"{size:.2f}"
    return f"{size:.1f}" if size < 99.95 else f"{size:.0f}"


def _cells(line: dict[str, Any]) -> tuple[str, ...]:
    round_number = line["round"]
    trained = round_number != 0
    return (
        f"{round_number} failed" if _failed(line) else str(round_number),
        _number(line.get("loss")),
        _number(line.get("accuracy")),
        human_bytes(line.get("bytes_up") if trained else None),
        human_bytes(line.get("bytes_down") if trained else None),
        _count(line.get("num_clients")) if trained else MISSING,
        str(num_failed(line)) if trained else MISSING,
        _number((line.get("seconds") or {}).get("round"), digits=1),
    )


def _count(value: int | None) -> str:
    return MISSING if value is None else str(value)


def num_failed(line: Mapping[str, Any]) -> int:
    """Count the clients that failed.

    A failed round notes itself among its failures. A node whose policy does not allow what it was
    asked, to train or to score, has not failed.
    """
    return sum(
        failure.get("who") != "round" and REFUSED not in str(failure.get("reason"))
        for failure in line.get("failures") or ()
    )


def _failed(line: dict[str, Any]) -> bool:
    return line.get("status", "ok") != "ok"


def _number(value: float | None, digits: int = 4) -> str:
    return MISSING if value is None else f"{value:.{digits}f}"
