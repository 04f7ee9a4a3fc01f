"""Tables of a comparison for readers: Markdown and the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import IO

from rich import box
from rich.cells import cell_len

from fedmoe_app.compare.figures import losses
from fedmoe_app.compare.plan import ALONE, CENTRALISED, NO_PARTITION, Plan
from fedmoe_app.compare.summary import SHARES, Estimate, Reached, Result, Row
from fedmoe_app.results.table import MISSING, human_bytes
from fedmoe_app.shown.duration import duration
from fedmoe_app.shown.tables import csv_text, markdown_cell
from fedmoe_app.shown.tables import markdown as plain
from fedmoe_app.shown.terminal import Console, Table, say
from fedmoe_app.shown.text import readable, visible

ABOUT_ALONE = "Alone: every client trains by itself; the mean over their models."
_TARGETS = [f"{100 * share:.0f}" for share in SHARES]


def markdown(plan: Plan, rows: Sequence[Row], results: Sequence[Result], metric: str) -> str:
    """Return the summary as a Markdown page: what was compared, the table, the failed runs."""
    seeds = ", ".join(map(str, plan.seeds))
    names = [readable(name) for name in plan.schemes if name != CENTRALISED]
    text = [
        f"# Comparison of {plain(', '.join(names))}",
        "",
        f"{plan.clients} clients, {plan.cells[0].rounds} rounds, seeds {seeds}. "
        + plain(legend(metric, plan.schemes)),
        "",
        *markdown_table(*text_table(plan, rows, metric)),
        *[f"\n{plain(line)}" for line in chosen(plan)],
        *[f"\n{plain(line)}" for line in failures(results)],
    ]
    return "\n".join(text) + "\n"


def legend(metric: str, schemes: Sequence[str] = ()) -> str:
    """Explain the columns, and the row ``alone`` where it is among the schemes."""
    text = (
        f"Global {metric}: that of the global model after the last round on the server's test "
        "set, mean ± sample standard deviation over the seeds, with the 95% Student-t interval "
        "of the mean; the difference to the first scheme is taken seed by seed. Local accuracy: "
        "of each client after its local training on its own hold-out, mean and variance over the "
        "clients, averaged over the seeds. Rounds to a share of the centralised accuracy: mean "
        "over the seeds that reached it. Runs: those that the means are over; a run without an "
        "accuracy after the last round has failed; replies missing: asked for and not usable, "
        "over all rounds and runs. Macro-F1, of classifications: the mean F1 over the classes, of "
        "the same model on the same rows as global accuracy."
    )
    return f"{text} {ABOUT_ALONE}" if ALONE in schemes else text


def first_scheme(plan: Plan) -> str:
    """Return the scheme that the others are held against."""
    return next(name for name in plan.schemes if name != CENTRALISED)


def text_table(plan: Plan, rows: Sequence[Row], metric: str) -> tuple[list[str], list[list[str]]]:
    """Return the headers and the cells of the table; macro-F1 where a row has it."""
    macro = has_macro_f1(rows)
    return headers(first_scheme(plan), metric, macro), [shown(row, macro) for row in rows]


def has_macro_f1(rows: Sequence[Row]) -> bool:
    """Tell whether the table has a column of macro-F1: texts that are generated have none."""
    return any(row.macro_f1 for row in rows)


def headers(first: str, metric: str, macro_f1: bool = False) -> list[str]:
    """Return the column headers; ``first`` is what the others are held against."""
    return [
        "scheme", "partition", f"global {visible(metric)}", "95% interval",
        f"minus {readable(first)}", *(["macro-F1"] if macro_f1 else []),
        "local accuracy", "variance", *(f"rounds to {n}%" for n in _TARGETS),
        "up a round", "time", "runs",
    ]  # fmt: skip


def shown(row: Row, macro_f1: bool = False) -> list[str]:
    """Return a row as text."""
    return [
        readable(row.scheme),
        visible(row.partition),
        mean_and_std(row.accuracy, row.seeds),
        _interval(row.accuracy, "{:.3f}"),
        _difference(row.difference, row.seeds),
        *([mean_and_std(row.macro_f1, row.seeds)] if macro_f1 else []),
        f"{row.local_accuracy.mean:.3f}" if row.local_accuracy else MISSING,
        MISSING if row.local_variance is None else f"{row.local_variance:.4f}",
        *(_rounds(reached) for reached in row.rounds),
        human_bytes(row.bytes_up),
        MISSING if row.seconds is None else duration(row.seconds),
        _runs(row),
    ]


def _runs(row: Row) -> str:
    """Return ``2, 1 failed, 3 replies missing``."""
    failed = [f"{row.failed} failed"] * bool(row.failed)
    return ", ".join([str(row.runs), *failed, *losses(row.failed_rounds, row.missing_replies)])


def mean_and_std(value: Estimate | None, seeds: int | None = None) -> str:
    """Return ``0.712 ± 0.010`` (sample standard deviation).

    Args:
        value: the mean.
        seeds: how many seeds it should be over; where it is over fewer, that is said.
    """
    if value is None:
        return MISSING
    part = _part(value, seeds) or ("one seed" if value.std is None else "")
    std = "" if value.std is None else f" ± {value.std:.3f}"
    return f"{value.mean:.3f}{std}" + (f" ({part})" if part else "")


def _part(value: Estimate, seeds: int | None) -> str:
    return "" if seeds is None or value.n == seeds else f"{value.n} of {seeds} seeds"


def _interval(value: Estimate | None, form: str) -> str:
    if value is None or value.interval is None:
        return MISSING
    return " to ".join(form.format(end) for end in value.interval)


def _difference(value: Estimate | None, seeds: int) -> str:
    if value is None:
        return MISSING
    interval = "" if value.interval is None else _interval(value, "{:+.3f}")
    about = ", ".join(filter(None, (interval, _part(value, seeds))))
    return f"{value.mean:+.3f}" + (f" ({about})" if about else "")


def _rounds(value: Reached | None) -> str:
    if value is None or value.mean is None:
        return MISSING
    part = "" if value.reached == value.of else f" (reached {value.reached} of {value.of})"
    return f"{value.mean:.1f}{part}"


def failures(results: Iterable[Result]) -> list[str]:
    """Return a line for each run that failed."""
    return [f"failed: {r.cell.label}: {r.failure}" for r in results if r.failure]


def chosen(plan: Plan) -> list[str]:
    """Return a line for each row and partition: the point of the grid that it runs with."""
    lines = []
    for choice in plan.choices:
        alone = choice.partition == NO_PARTITION
        where = choice.scheme if alone else f"{choice.scheme}, {choice.partition}"
        scores = "; ".join(
            f"{point}: {'failed' if score is None else f'{score:.3f}'}"
            for point, score in choice.scores.items()
        )
        lines.append(f"chosen: {where}: {choice.point} (validation {choice.by} of {scores})")
    return lines


def markdown_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table with aligned columns."""
    escaped = [[markdown_cell(text) for text in row] for row in (headers, *rows)]
    widths = [max(cell_len(row[i]) for row in escaped) for i in range(len(headers))]
    lines = ["| " + " | ".join(map(_padded, row, widths)) + " |" for row in escaped]
    rule = "| " + " | ".join("-" * width for width in widths) + " |"
    return [lines[0], rule, *lines[1:]]


def _padded(text: str, width: int) -> str:
    return text + " " * (width - cell_len(text))


def print_summary(
    plan: Plan, rows: Sequence[Row], metric: str, file: IO[str] | None = None
) -> None:
    """Print the summary: a table that fits the terminal, or Markdown where there is none."""
    file = file or sys.stdout
    if file.isatty():
        Console(file=file).print(rich_table(plan, rows, metric))
    else:
        for line in markdown_table(*text_table(plan, rows, metric)):
            say(line, file)


def rich_table(plan: Plan, rows: Sequence[Row], metric: str) -> Table:
    """Build the table for a terminal: a section a partition, rows with failures in red.

    The lines under the first hold interval, variance, number of seeds and what went wrong.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    macro = has_macro_f1(rows)
    titles = _stacked_headers(headers(first_scheme(plan), metric, macro))
    for number, title in enumerate(titles):
        # On a narrow terminal texts wrap: a figure that is cut would be a wrong one.
        table.add_column(title, justify="right" if number else "left", overflow="fold")
    for position, row in enumerate(rows):
        if position and row.partition != rows[position - 1].partition:
            table.add_section()
        table.add_row(*_stacked(row, macro), style="red" if row.failed else None)
    return table


def _stacked_headers(names: Sequence[str]) -> list[str]:
    macro, names = _without_macro(names)
    scheme, partition, accuracy, interval, minus, local, variance, *rounds, up, time, runs = names
    return [
        f"{scheme}\n{partition}",
        f"{accuracy}\n{interval}",
        f"{minus}\n{interval}",
        *macro,
        local.replace(" ", "\n") + f"\n{variance}",
        *(name.replace(" to ", "\nto ") for name in rounds),
        up.replace(" a ", "\na "),
        time,
        runs,
    ]


def _without_macro(cells: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the cell of macro-F1, if there is one, and the others: 12 of them."""
    extra = len(cells) - 12
    return [*cells[5 : 5 + extra]], [*cells[:5], *cells[5 + extra :]]


def _stacked(row: Row, macro_f1: bool) -> list[str]:
    macro, text = _without_macro(shown(row, macro_f1))
    minus, _, ends = text[4].replace(", ", "\n").partition(" (")
    rounds = [value.replace(" (reached ", "\n").rstrip(")") for value in text[7:9]]
    return [
        f"{text[0]}\n{text[1]}",
        text[2].replace(" (", "\n(") + f"\n{text[3]}",
        f"{minus}\n{ends.rstrip(')')}",
        *(value.replace(" (", "\n(") for value in macro),
        f"{text[5]}\n{text[6]}",
        *rounds,
        *text[9:11],
        text[11].replace(", ", "\n"),
    ]


_CSV_TARGETS = [f"{100 * share:.0f}" for share in SHARES]
_CELL_COLUMNS = (
    "scheme", "partition", "seed", "status", "accuracy", "loss", "initial_loss", "macro_f1",
    "local_accuracy_mean", "local_accuracy_variance", *(f"rounds_to_{n}" for n in _CSV_TARGETS),
    "bytes_up_per_round", "bytes_up_total", "seconds", "failed_rounds", "missing_replies",
    "cell", "failure",
)  # fmt: skip
_ROW_COLUMNS = (
    "scheme", "partition", "runs", "failed", "accuracy_mean", "accuracy_std", "accuracy_low",
    "accuracy_high", "accuracy_seeds", "difference_mean", "difference_low", "difference_high",
    "difference_seeds", "macro_f1_mean", "macro_f1_std", "local_accuracy_mean",
    "local_accuracy_variance",
    *(name for n in _CSV_TARGETS for name in (f"rounds_to_{n}", f"reached_{n}", f"reached_{n}_of")),
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
        *name, found.accuracy, found.loss, found.initial_loss, found.macro_f1, found.local_accuracy,
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
        row.macro_f1 and row.macro_f1.mean, row.macro_f1 and row.macro_f1.std,
        row.local_accuracy and row.local_accuracy.mean, row.local_variance,
        *(value for reached in row.rounds for value in _reached_values(reached)),
        row.bytes_up, row.seconds and round(row.seconds, 3),
        row.failed_rounds, row.missing_replies,
    )  # fmt: skip


def _ends(value: Estimate | None) -> tuple[float | None, float | None]:
    return (value and value.interval) or (None, None)


def _reached_values(value: Reached | None) -> tuple[float | int | None, ...]:
    return (value.mean, value.reached, value.of) if value else (None, None, None)
