"""The table of a run: a row a round."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import IO, Any

from rich import box

from fedmoe_app.config.policy import REFUSED
from fedmoe_app.shown.terminal import Console, Table
from fedmoe_app.shown.text import visible

# Columns of a plain log, where there is no terminal to ask.
LOG_WIDTH = 100
MISSING = "-"
MAX_METRIC = 24  # characters of its name


def metrics_table(lines: Sequence[dict[str, Any]]) -> Table:
    """Build the table of the metrics lines (see :mod:`fedmoe_app.results.folder`).

    Columns: round, loss, accuracy (or the task's metric), bytes up and down of all clients
    together, clients that replied, clients that failed, seconds; ε spent so far in a run with
    differential privacy.
    """
    metric = next((line["metric"] for line in lines if line.get("metric")), "accuracy")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    metric = visible(metric, MAX_METRIC)
    headers = ("round", "loss", metric, "bytes up", "bytes down", "clients", "failed", "seconds")
    spends = any(line.get("privacy") for line in lines)
    for header in (*headers, *(["epsilon"] if spends else [])):
        table.add_column(header, justify="right", no_wrap=True)
    for line in lines:
        spent = [_number((line.get("privacy") or {}).get("epsilon"), digits=2)] if spends else []
        table.add_row(*_cells(line), *spent, style="red" if _failed(line) else None)
    return table


def print_table(lines: Sequence[dict[str, Any]], file: IO[str] | None = None) -> None:
    """Print the table; without a terminal in plain text, 100 columns wide."""
    file = file or sys.stdout
    width = None if file.isatty() else LOG_WIDTH
    Console(file=file, width=width).print(metrics_table(lines))


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
