"""Tables of a comparison for programs: CSV, one line a run or one a scheme and partition."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fedmoe_app.compare.statistics import Estimate, Reached
from fedmoe_app.compare.summary import SHARES, Result, Row
from fedmoe_app.shown.tables import csv_text

_TARGETS = [f"{100 * share:.0f}" for share in SHARES]
_CELL_COLUMNS = (
    "scheme", "partition", "seed", "status", "accuracy", "loss", "initial_loss",
    "local_accuracy_mean", "local_accuracy_variance", *(f"rounds_to_{n}" for n in _TARGETS),
    "bytes_up_per_round", "bytes_up_total", "seconds", "failed_rounds", "missing_replies",
    "cell", "failure",
)  # fmt: skip
_ROW_COLUMNS = (
    "scheme", "partition", "runs", "failed", "accuracy_mean", "accuracy_std", "accuracy_low",
    "accuracy_high", "accuracy_seeds", "difference_mean", "difference_low", "difference_high",
    "difference_seeds", "local_accuracy_mean", "local_accuracy_variance",
    *(name for n in _TARGETS for name in (f"rounds_to_{n}", f"reached_{n}", f"reached_{n}_of")),
    "bytes_up_per_round", "seconds", "failed_rounds", "missing_replies",
)  # fmt: skip


def cells_csv(results: Iterable[Result]) -> str:
    """Return one line a run; what is not known is empty."""
    return csv_text(_CELL_COLUMNS, (_cell_values(result) for result in results))


def summary_csv(rows: Iterable[Row]) -> str:
    """Return one line a scheme and partition; what is not known is empty."""
    return csv_text(_ROW_COLUMNS, (_row_values(row) for row in rows))


def _cell_values(result: Result) -> Sequence[object]:
    cell, found = result.cell, result.figures
    status = "ok" if result.finished else "failed"
    name = (cell.scheme, cell.partition, cell.seed, status)
    if found is None:
        return (*name, *[None] * (len(_CELL_COLUMNS) - 6), cell.key, result.failure)
    rounds = result.rounds or [None] * len(SHARES)
    return (
        *name, found.accuracy, found.loss, found.initial_loss, found.local_accuracy,
        found.local_variance, *rounds, found.bytes_up, found.bytes_up_total,
        round(found.seconds, 3), found.failed_rounds, found.missing_replies,
        cell.key, result.failure,
    )  # fmt: skip


def _row_values(row: Row) -> Sequence[object]:
    accuracy, difference = row.accuracy, row.difference
    return (
        row.scheme, row.partition, row.runs, row.failed,
        accuracy and accuracy.mean, accuracy and accuracy.std, *_ends(accuracy),
        accuracy and accuracy.n,
        difference and difference.mean, *_ends(difference), difference and difference.n,
        row.local_accuracy and row.local_accuracy.mean, row.local_variance,
        *(value for reached in row.rounds for value in _reached_values(reached)),
        row.bytes_up, row.seconds and round(row.seconds, 3),
        row.failed_rounds, row.missing_replies,
    )  # fmt: skip


def _ends(value: Estimate | None) -> tuple[float | None, float | None]:
    return (value and value.interval) or (None, None)


def _reached_values(value: Reached | None) -> tuple[float | int | None, ...]:
    return (value.mean, value.reached, value.of) if value else (None, None, None)
