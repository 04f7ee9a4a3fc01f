"""Tables of a comparison for a paper: few columns, a caption, bold where the seeds say so.

A value is a mean over the seeds ± the half width of its 95 % Student-t interval. The highest
accuracy of a partition is bold where each of the paired differences to the other schemes has an
interval above 0: with intervals that hold 0 nothing is bold, since nothing is the best. The tests
are several, and the intervals are not corrected for that.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedmoe_app.compare.plan import ALONE, CENTRALISED, NO_PARTITION, Plan
from fedmoe_app.compare.reading import Comparison
from fedmoe_app.compare.summary import (
    Estimate,
    Result,
    Row,
    paired_difference,
    results_of,
    summarise,
)
from fedmoe_app.compare.tables import ABOUT_ALONE, first_scheme, has_macro_f1
from fedmoe_app.results.table import MISSING, human_bytes
from fedmoe_app.shown.tables import latex, markdown, markdown_cell
from fedmoe_app.shown.text import readable, visible

FORMATS = ("latex", "markdown")


@dataclass(frozen=True)
class PaperTable:
    """A table before it is written in one language or the other.

    Attributes:
        headers: of the columns.
        groups: rows by partition, the reference's first, each a list of cells.
        bold: (group, row) whose accuracy is the highest beyond its intervals.
        caption: what the figures are.
        command: the line that makes them again; empty where it is not known.
    """

    headers: list[str]
    groups: list[tuple[str, list[list[str]]]]
    bold: frozenset[tuple[int, int]]
    caption: str
    command: str


def paper_table(comparison: Comparison) -> PaperTable:
    """Return the table of a comparison."""
    plan = comparison.plan
    results = results_of(plan, comparison.outcomes)
    rows = summarise(plan, results)
    metric = next((r.figures.metric for r in results if r.figures), "accuracy")
    macro = has_macro_f1(rows)
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.partition, []).append(row)
    best = {name: clear_best(plan, results, name) for name in groups}
    bold = {
        (g, r)
        for g, (name, group) in enumerate(groups.items())
        for r, row in enumerate(group)
        if row.scheme == best[name]
    }
    headers = ["scheme", visible(metric), f"minus {readable(first_scheme(plan))}",
               *(["macro-F1"] if macro else []), "local accuracy", "up a round"]  # fmt: skip
    cells = [
        ("" if name == NO_PARTITION else visible(name), [_cells(row, macro) for row in group])
        for name, group in groups.items()
    ]
    return PaperTable(
        headers, cells, frozenset(bold), caption(comparison, metric), comparison.command
    )


def clear_best(plan: Plan, results: Sequence[Result], partition: str) -> str | None:
    """Return the scheme whose accuracy is above each other one's beyond the paired 95 % interval.

    None where a difference may be 0, where one seed alone is there, and of a single scheme.
    """
    found: dict[str, dict[int, float]] = {}
    for result in results:
        done = result.finished
        here = result.cell.partition == partition and result.cell.scheme != CENTRALISED
        if here and done and done.accuracy is not None:
            found.setdefault(result.cell.scheme, {})[result.cell.seed] = done.accuracy
    if len(found) < 2:
        return None
    best = max(found, key=lambda name: sum(found[name].values()) / len(found[name]))
    differences = [paired_difference(found[best], found[name]) for name in found if name != best]
    above = [each is not None and each.interval is not None and each.interval[0] > 0
             for each in differences]  # fmt: skip
    return best if all(above) else None


def caption(comparison: Comparison, metric: str) -> str:
    """Return what the figures of a table are, in sentences."""
    text = (
        f"{_first_up(metric)} of the global model on the test set of the server: "
        f"{_spread(comparison.plan)}. {_setting(comparison.plan)}"
    )
    if len(comparison.plan.seeds) > 1:
        text += (
            " Differences are taken seed by seed. Bold: above each other scheme beyond the "
            "interval of the paired difference."
        )
    return text


def figure_caption(comparison: Comparison, metric: str) -> str:
    """Return what the pictures show, in sentences, and the command that made them."""
    plan = comparison.plan
    made = f" Made by {visible(comparison.command)}." if comparison.command else ""
    return (
        f"{_first_up(metric)} of the global model over the rounds: {_spread(plan)}. "
        f"{_setting(plan)}{made}"
    )


def _first_up(metric: str) -> str:
    return visible(metric[:1].upper() + metric[1:])


def _spread(plan: Plan) -> str:
    if len(plan.seeds) < 2:
        return "one seed"
    return f"mean ± half width of the 95% Student-t interval over {len(plan.seeds)} seeds"


def _setting(plan: Plan) -> str:
    """Return clients, partitions, rounds and model, as one sentence."""
    flat = plan.cells[0].flat
    rounds = int(flat["num-server-rounds"])
    where = ", ".join(name for name in plan.partitions if name != NO_PARTITION)
    model = f", model {visible(Path(str(flat['model.name'])).name)}" if "model.name" in flat else ""
    many = "s" * (rounds != 1)
    alone = f" {ABOUT_ALONE}" if ALONE in plan.schemes else ""
    return f"{plan.clients} clients ({visible(where)}), {rounds} round{many}{model}.{alone}"


def write_table(table: PaperTable, kind: str) -> str:
    """Return the table as text of ``kind``, one of ``FORMATS``."""
    return _latex(table) if kind == "latex" else _markdown(table)


def _cells(row: Row, macro_f1: bool) -> list[str]:
    return [
        readable(row.scheme) + (f" ({row.failed} failed)" if row.failed else ""),
        plus_minus(row.accuracy),
        plus_minus(row.difference, sign="+"),
        *([plus_minus(row.macro_f1)] if macro_f1 else []),
        plus_minus(row.local_accuracy),
        human_bytes(row.bytes_up),
    ]


def plus_minus(value: Estimate | None, sign: str = "") -> str:
    """Return ``0.712 ± 0.010``: the mean and the half width of its interval."""
    if value is None:
        return MISSING
    half = "" if value.half_width is None else f" ± {value.half_width:.3f}"
    return f"{value.mean:{sign}.3f}{half}"


_COLUMNS_OF_HALF_A_PAGE = 4


def _latex(table: PaperTable) -> str:
    count = len(table.headers)
    made = f" Made by \\texttt{{{latex(table.command)}}}." if table.command else ""
    # More columns are wider than one of a page's two: 9 point type over both holds them.
    wide = count > _COLUMNS_OF_HALF_A_PAGE
    kind = "table*" if wide else "table"
    lines = [
        r"% \usepackage{booktabs}",
        rf"\begin{{{kind}}}",
        r"  \centering",
        *([r"  \small\setlength{\tabcolsep}{4pt}"] if wide else []),
        rf"  \caption{{{latex(table.caption)}{made}}}",
        rf"  \begin{{tabular}}{{l{'r' * (count - 1)}}}",
        r"    \toprule",
        _latex_row([latex(header) for header in table.headers]),
    ]
    for g, (name, rows) in enumerate(table.groups):
        lines.append(r"    \midrule")
        if name and len(table.groups) > 1:
            lines.append(rf"    \multicolumn{{{count}}}{{l}}{{\emph{{{latex(name)}}}}} \\")
        for r, row in enumerate(rows):
            cells = [latex(row[0]), *map(_latex_number, row[1:])]
            if (g, r) in table.bold:
                cells[1] = rf"\textbf{{{cells[1]}}}"
            lines.append(_latex_row(cells))
    return "\n".join([*lines, r"    \bottomrule", r"  \end{tabular}", rf"\end{{{kind}}}"]) + "\n"


def _latex_row(cells: Sequence[str]) -> str:
    return rf"    {' & '.join(cells)} \\"


def _latex_number(text: str) -> str:
    """Return a figure with a minus in the place of a hyphen, and what is missing as a dash."""
    if text == MISSING:
        return "--"
    return f"$-${latex(text[1:])}" if text.startswith("-") else latex(text)


def _markdown(table: PaperTable) -> str:
    many = len(table.groups) > 1
    named = ["partition"] if many else []
    headers = [table.headers[0], *named, *table.headers[1:]]
    lines = [_markdown_row(map(markdown_cell, headers)), f"| --- {'| ---: ' * (len(headers) - 1)}|"]
    for g, (name, rows) in enumerate(table.groups):
        for r, row in enumerate(rows):
            cells = [markdown_cell(cell) for cell in row]
            if (g, r) in table.bold:
                cells[1] = f"**{cells[1]}**"
            place = [markdown_cell(name or MISSING)] if many else []
            lines.append(_markdown_row([cells[0], *place, *cells[1:]]))
    made = f" Made by `{visible(table.command)}`." if table.command else ""
    return "\n".join([*lines, "", markdown(table.caption) + made]) + "\n"


def _markdown_row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
