"""``report.html`` of a comparison: curves and final figures with intervals, tables, failures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedmoe_app.compare import plan
from fedmoe_app.compare.figures import Figures
from fedmoe_app.compare.plan import CENTRALISED
from fedmoe_app.compare.reading import Comparison, Lines
from fedmoe_app.compare.summary import Estimate, Result, Row, estimate, results_of, summarise
from fedmoe_app.compare.tables import first_scheme, headers, legend, shown
from fedmoe_app.config.lists import base_names
from fedmoe_app.report.html import charts, settings
from fedmoe_app.report.html.cubes import short
from fedmoe_app.report.html.facts import Cell, Fact, Table, failures
from fedmoe_app.report.html.page import State, render, write_page
from fedmoe_app.results.table import MISSING, human_bytes
from fedmoe_app.shown.duration import duration

# The first scheme is black; grey is left to the centralised reference.
COLOURS = (
    charts.BLACK, charts.BLUE, charts.ORANGE, charts.GREEN, charts.PURPLE, charts.SKY,
    charts.YELLOW,
)  # fmt: skip
DASHES = ("", "7 4", "2 3", "9 3 2 3")


def write_comparison_page(folder: Path, comparison: Comparison) -> Path:
    """Write ``report.html`` of a comparison into ``folder`` and return its path."""
    return write_page(folder, comparison_page(folder.name, comparison))


def comparison_page(title: str, comparison: Comparison) -> str:
    """Return the page of a comparison."""
    results = results_of(comparison.plan, comparison.outcomes)
    rows = summarise(comparison.plan, results)
    metric = next((r.figures.metric for r in results if r.figures), "accuracy")
    columns = [name for name in comparison.plan.partitions if name != plan.NO_PARTITION]
    drawn: dict[str, charts.Chart] = {}
    parts = []
    for number, partition in enumerate(columns):
        found = _charts(comparison, results, partition, metric)
        names = {name: f"{name}-{number}" for name in found}
        drawn |= {names[name]: chart for name, chart in found.items()}
        parts.append({"title": partition, **names})
    content = {
        "metric": metric,
        "summary": _summary(comparison, results),
        "advice": _advice(rows, metric),
        "partitions": parts,
        "rows": _rows_table(comparison, rows, metric),
        "runs": _runs_table(results, metric),
        "legend": legend(metric),
        "failures": _failures_table(comparison, results),
        **_settings(comparison),
    }
    failed = sum(bool(result.failure) for result in results)
    state = State("failed", f"{failed} of {len(results)} runs") if failed else State(
        "complete", f"{len(results)} runs"
    )  # fmt: skip
    return render("comparison", title, state, content, {"charts": drawn, "cubes": {}, "maps": {}})


def _charts(
    comparison: Comparison, results: Sequence[Result], partition: str, metric: str
) -> dict[str, charts.Chart]:
    """Return the charts of one partition; the centralised reference stands in each."""
    names = [name for name in comparison.plan.schemes if name != CENTRALISED]
    groups = {
        name: [r for r in results if r.finished and r.cell.scheme == name
               and (name == CENTRALISED or r.cell.partition == partition)]
        for name in (*names, CENTRALISED)
    }  # fmt: skip
    lines = {
        name: [comparison.lines[r.cell.key] for r in group if r.cell.key in comparison.lines]
        for name, group in groups.items()
    }
    return {
        "accuracy": _over_rounds(lines, "accuracy", y=metric, format="share", low=0, most=1),
        "loss": _over_rounds(lines, "loss", y="loss (nats)", format="number", low=0),
        "final": _final_chart(groups, metric),
        "bytes": _bytes_chart(groups),
    }


def _over_rounds(lines: Mapping[str, Sequence[Lines]], key: str, **axes: Any) -> charts.Chart:
    """Return the mean over the seeds with its interval, a line a scheme."""
    series = [
        charts.line_series(name, _mean_points(runs, key), **_style(number, name), mark=number)
        for number, (name, runs) in enumerate(lines.items())
    ]
    return charts.chart("lines", series, [], **axes)


def _mean_points(runs: Sequence[Lines], key: str) -> charts.Points:
    by_round: dict[int, list[float]] = {}
    for line in (line for lines in runs for line in lines):
        if line.get(key) is not None:
            by_round.setdefault(line["round"], []).append(line[key])
    found = ((number, estimate(values)) for number, values in sorted(by_round.items()))
    return [[number, *_with_ends(point)] for number, point in found if point]


def _with_ends(point: Estimate) -> list[float | None]:
    """Return the mean, and the ends of its interval where it has one."""
    ends = point.interval or ()
    return [short(value) for value in (point.mean, *ends)]


def _final_chart(groups: Mapping[str, Sequence[Result]], metric: str) -> charts.Chart:
    """Return global and local accuracy after the last round, with the seeds of the global one."""
    values: dict[str, list[float]] = {}
    local: dict[str, list[float]] = {}
    for name, group in groups.items():
        figures = [result.finished for result in group if result.finished]
        values[name] = [f.accuracy for f in figures if f.accuracy is not None]
        local[name] = [f.local_accuracy for f in figures if f.local_accuracy is not None]
    names = [name for name, found in values.items() if found]
    means = [estimate(values[name]) for name in names]
    locals_ = [estimate(local[name]) for name in names]
    series = [
        {"name": "global model, mean over the seeds", "colour": charts.BLUE,
         "values": [point and point.mean for point in means],
         "ends": [point and point.interval for point in means]},
        {"name": "one seed", "colour": charts.BLUE, "mark": 0, "small": True,
         "values": [values[name] for name in names]},
        {"name": "after local training, mean over clients and seeds", "colour": charts.ORANGE,
         "mark": 1, "values": [point and point.mean for point in locals_]},
    ]  # fmt: skip
    return _dots(names, series, f"{metric} after the last round", "share", high=1)


def _bytes_chart(groups: Mapping[str, Sequence[Result]]) -> charts.Chart:
    found = {
        name: estimate([result.finished.bytes_up for result in group if result.finished])
        for name, group in groups.items()
        if name != CENTRALISED  # it sends nothing over a network
    }
    names = [name for name, point in found.items() if point]
    values = [point.mean for point in found.values() if point]
    series = [{"name": "bytes up a round", "colour": charts.BLUE, "values": values}]
    return _dots(names, series, "bytes up a round, all clients", "bytes")


def _dots(
    rows: list[str], series: list[charts.Series], x: str, form: str, high: float | None = None
) -> charts.Chart:
    shown_series = series if rows else []
    return {"kind": "dots", "rows": rows, "series": shown_series, "x": x, "format": form, "low": 0,
            "high": high, "joined": False}  # fmt: skip


def _style(number: int, name: str) -> dict[str, Any]:
    if name == CENTRALISED:
        return {"colour": charts.GREY, "dash": "2 4", "faint": True}
    dash = DASHES[number // 2 % len(DASHES)]
    return {"colour": COLOURS[number % len(COLOURS)], "dash": dash, "faint": True}


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
    names = headers(first_scheme(comparison.plan), metric)
    body = [[Cell(text, _sort_key(text)) for text in shown(row)] for row in rows]
    return Table(names, body, frozenset(i for i, row in enumerate(rows) if row.failed))


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
