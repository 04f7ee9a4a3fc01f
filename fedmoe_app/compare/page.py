"""``report.html`` of a comparison: curves and final figures with intervals, tables, failures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedmoe_app.compare import plan
from fedmoe_app.compare.figures import Figures
from fedmoe_app.compare.plan import CENTRALISED, NO_PARTITION
from fedmoe_app.compare.plots import charts_of
from fedmoe_app.compare.reading import Comparison
from fedmoe_app.compare.summary import Result, Row, results_of, summarise
from fedmoe_app.compare.tables import legend, text_table
from fedmoe_app.config.lists import base_names
from fedmoe_app.config.pairs import write_value
from fedmoe_app.report import settings
from fedmoe_app.report.facts import Cell, Fact, Table, failures
from fedmoe_app.report.page import State, render, write_page
from fedmoe_app.results.table import MISSING, human_bytes
from fedmoe_app.shown.duration import duration

# What may differ between the runs of one row, or is another name of its column.
_NOT_OF_A_ROW = ("seed", "output-dir", "run-name", "track", "data.partition", "data.alpha")


def write_comparison_page(folder: Path, comparison: Comparison) -> Path:
    """Write ``report.html`` of a comparison into ``folder`` and return its path."""
    return write_page(folder, comparison_page(folder.name, comparison))


def comparison_page(title: str, comparison: Comparison) -> str:
    """Return the page of a comparison."""
    results = _in_order(comparison)
    rows = summarise(comparison.plan, results)
    metric = next((r.figures.metric for r in results if r.figures), "accuracy")
    columns = [name for name in comparison.plan.partitions if name != NO_PARTITION]
    parts: list[dict[str, Any]] = [
        {"title": partition, "charts": {f"{name}-{number}": chart for name, chart in charts_of(
            comparison.plan, results, partition, metric, comparison.lines).items()}}
        for number, partition in enumerate(columns)
    ]  # fmt: skip
    drawn = {name: chart for part in parts for name, chart in part["charts"].items()}
    content = {
        "metric": metric,
        "summary": _summary(comparison, results),
        "advice": _advice(rows, metric),
        "partitions": parts,
        "rows": _rows_table(comparison, rows, metric),
        "runs": _runs_table(results, metric),
        "legend": legend(metric, comparison.plan.schemes),
        "chosen": _chosen_table(comparison.plan),
        "failures": _failures_table(comparison, results),
        "differing": _differing(comparison),
        **_settings(comparison),
    }
    failed = sum(bool(result.failure) for result in results)
    state = State("failed", f"{failed} of {len(results)} runs") if failed else State(
        "complete", f"{len(results)} runs"
    )  # fmt: skip
    shown_charts = {name: chart.to_json() for name, chart in drawn.items() if chart.spec}
    return render("comparison", title, state, content, {"charts": shown_charts, "cubes": {}})


def _in_order(comparison: Comparison) -> list[Result]:
    """Return the results by scheme, partition and seed; a folder lists its runs in any order."""
    asked = comparison.plan
    columns = (NO_PARTITION, *asked.partitions)
    return sorted(
        results_of(asked, comparison.outcomes),
        key=lambda result: (
            asked.schemes.index(result.cell.scheme),
            columns.index(result.cell.partition),
            result.cell.seed,
        ),
    )


def _summary(comparison: Comparison, results: Sequence[Result]) -> list[Fact]:
    asked = comparison.plan
    schemes = [name for name in asked.schemes if name != CENTRALISED]
    done = [result for result in results if result.finished]
    time = sum(result.finished.seconds for result in done if result.finished)
    flat = results[0].cell.flat
    return [
        Fact("schemes", str(len(schemes)), ", ".join(schemes)),
        Fact("partitions", str(len(asked.partitions)), "; ".join(asked.partitions)),
        Fact("seeds", str(len(asked.seeds)), ", ".join(map(str, asked.seeds))),
        Fact("clients", str(asked.clients)),
        Fact("rounds", str(flat["num-server-rounds"])),
        Fact("model", Path(str(flat["model.name"])).name, f"trained: {flat['model.train']}"),
        Fact("data", base_names(str(flat["data.source"]))),
        Fact("runs", f"{len(done)} of {len(results)}", "that came to their end"),
        Fact("time", duration(time), "sum over the runs"),
    ]  # fmt: skip


def _advice(rows: Sequence[Row], metric: str) -> str:
    """Say which differences the seeds can tell from none."""
    told = [
        f"{row.scheme} on {row.partition} ({row.difference.mean:+.3f})"
        for row in rows
        if row.difference and row.difference.interval
        and not row.difference.interval[0] <= 0 <= row.difference.interval[1]
    ]  # fmt: skip
    if not any(row.difference and row.difference.interval for row in rows):
        return ""
    start = f"Differences to the first scheme in {metric} whose 95 % interval does not hold 0: "
    return start + (", ".join(told) if told else "none; these seeds tell no scheme apart") + "."


def _rows_table(comparison: Comparison, rows: Sequence[Row], metric: str) -> Table:
    names, cells = text_table(comparison.plan, rows, metric)
    body = [[Cell(text, _sort_key(text)) for text in row] for row in cells]
    return Table(names, body, frozenset(i for i, row in enumerate(rows) if row.failed))


def _chosen_table(asked: plan.Plan) -> Table:
    """Return what a grid chose, with the score of each point; without a grid no row."""
    points = list(asked.choices[0].scores) if asked.choices else []
    by = asked.choices[0].by if asked.choices else ""
    rows = [
        [
            Cell(choice.scheme, choice.scheme),
            Cell(choice.partition, choice.partition),
            Cell(choice.point, choice.point),
            *(
                Cell(MISSING if (s := choice.scores[point]) is None else f"{s:.3f}", s)
                for point in points
            ),
        ]
        for choice in asked.choices
    ]
    headers = ("scheme", "partition", "chosen", *(f"{by}: {point}" for point in points))
    return Table(headers, rows)


def _sort_key(text: str) -> float | str | None:
    """Return the number that a cell begins with, or its text; None for a missing value."""
    if text == MISSING:
        return None
    try:
        return float(text.split()[0])
    except (ValueError, IndexError):
        return text


def _runs_table(results: Sequence[Result], metric: str) -> Table:
    names = ("scheme", "partition", "seed", metric, "loss", "local accuracy", "sent up", "seconds")
    body = [[*_run_cells(result.cell), *_figure_cells(result.figures)] for result in results]
    return Table(names, body, frozenset(i for i, r in enumerate(results) if r.failure))


def _run_cells(cell: plan.Cell) -> list[Cell]:
    names = [Cell(cell.scheme, cell.scheme), Cell(cell.partition, cell.partition)]
    return [*names, Cell(str(cell.seed), cell.seed)]


def _figure_cells(figures: Figures | None) -> list[Cell]:
    if figures is None:
        return [Cell(MISSING)] * 5
    numbers = (figures.accuracy, figures.loss, figures.local_accuracy)
    return [
        *(Cell(MISSING if value is None else f"{value:.3f}", value) for value in numbers),
        Cell(human_bytes(figures.bytes_up_total), figures.bytes_up_total),
        Cell(f"{figures.seconds:.1f}", figures.seconds),
    ]


def _failures_table(comparison: Comparison, results: Sequence[Result]) -> Table:
    """Return the runs that failed, then the replies that were lost in the others."""
    rows = []
    for result in results:
        if result.failure:
            rows.append((result.cell.label, "run", result.failure))
        for number, who, reason in failures(comparison.lines.get(result.cell.key, ())):
            rows.append((result.cell.label, f"round {number}, {who}", reason))
    cells = [tuple(Cell(text, text) for text in row) for row in rows[:200]]
    return Table(("run", "who", "reason"), cells)


def _settings(comparison: Comparison) -> dict[str, Any]:
    """Return the settings that all federated runs share."""
    flats = [cell.flat for cell in comparison.plan.cells if cell.scheme != CENTRALISED]
    flats = flats or [cell.flat for cell in comparison.plan.cells]
    same = {
        key: value for key, value in flats[0].items() if all(f.get(key) == value for f in flats)
    }
    found = settings.compare(same, settings.defaults())
    return {"all_settings": found, "changed": [each for each in found if each.changed]}


def _differing(comparison: Comparison) -> Table:
    """Return for each scheme the settings that are not the same in all of them."""
    values: dict[str, dict[str, list[str]]] = {name: {} for name in comparison.plan.schemes}
    for cell in comparison.plan.cells:
        for key, value in cell.flat.items():
            known = values[cell.scheme].setdefault(key, [])
            if (text := write_value(value)) not in known:
                known.append(text)
    keys = dict.fromkeys(key for found in values.values() for key in found)
    different = [
        key for key in keys
        if key not in _NOT_OF_A_ROW
        and len({tuple(found.get(key, ())) for found in values.values()}) > 1
    ]  # fmt: skip
    rows = [
        (Cell(name, name), Cell("; ".join(
            f"{key} = {' or '.join(found[key])}" for key in different if key in found)))
        for name, found in values.items()
    ]  # fmt: skip
    return Table(("scheme", "settings"), rows if different else ())
