"""The page of one run, out of its config, its metrics lines and its samples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedmoe_app.report import facts, maps, settings
from fedmoe_app.report.classes import CUBE
from fedmoe_app.report.classes import part_of as classes_part
from fedmoe_app.report.heat import page_map
from fedmoe_app.report.page import State, render, write_page
from fedmoe_app.report.run_charts import charts_of, clients_chart, diagnostic_charts
from fedmoe_app.results.best import ended_early
from fedmoe_app.results.classes import kept_classes
from fedmoe_app.results.folder import ResultsError, read_rounds
from fedmoe_app.results.values import Line

# Seconds after which the page of a run that goes on is loaded again.
REFRESH = 15
MAX_DOTS = 100  # clients in the chart of single clients


def write_run_page(folder: Path) -> Path:
    """Write ``report.html`` of a run that is over, or was interrupted; return its path.

    Raises:
        ResultsError: when config or metrics are missing or broken, or there is no round yet.
    """
    flat, lines = settings.read_settings(folder), read_rounds(folder)
    if not lines:
        raise ResultsError(f"{folder}: metrics.jsonl is empty; there is nothing to report yet")
    return write_page(folder, run_page(folder, flat, lines, state_of(flat, lines)))


def state_of(flat: dict[str, Any], lines: Sequence[Line]) -> State:
    """Tell from the lines alone whether a run came to its end."""
    done, asked = lines[-1]["round"], flat["num-server-rounds"]
    if ended_early(lines):
        return State("complete", f"{done} of {asked} rounds: no better one came")
    if done == asked:
        return State("complete", f"{asked} rounds")
    return State("incomplete", f"after round {done} of {asked}: stopped, or still running")


def run_page(folder: Path, flat: dict[str, Any], lines: Sequence[Line], state: State) -> str:
    """Return the page of a run.

    Args:
        folder: of the run; names the page, and may hold samples.
        flat: its flat run config.
        lines: its metrics lines so far, at least one.
        state: how far it is; a running one makes the browser load the page again.
    """
    try:
        return _page(folder, flat, lines, state)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        kind = type(error).__name__
        raise ResultsError(f"{folder}: metrics or config lack figures ({kind}: {error})") from error


def _page(folder: Path, flat: dict[str, Any], lines: Sequence[Line], state: State) -> str:
    metric = next((str(line["metric"]) for line in lines if line.get("metric")), "accuracy")
    clients = facts.last_of_clients(lines)
    cubes = maps.cubes_of(lines)
    charts, curves = charts_of(lines, metric), diagnostic_charts(lines)
    scored = kept_classes(folder, lines)
    classes = classes_part(scored) if scored is not None else None
    by_client = clients_chart(clients[:MAX_DOTS], metric)
    routing, inside = (
        {name: page_map(each, cubes[each.cube]) for name, each in maps.maps_for(of, cubes).items()}
        for of in (maps.ROUTING, maps.DIAGNOSTICS)
    )
    all_settings = settings.compare(flat, settings.defaults())
    failures, failures_left = facts.failures_table(lines)
    samples_round, samples = facts.last_samples(folder)
    left_out = f" The first {MAX_DOTS} of {len(clients)} clients."
    content = {
        "metric": metric,
        "summary": [*facts.summary(flat, lines, metric), *(classes.facts if classes else ())],
        "classes": classes,
        "classes_round": scored.round if scored is not None else None,
        "scored": facts.where_scored(lines),
        "rounds": facts.rounds_table(lines, metric),
        "clients": facts.clients_table(clients, metric),
        "charts": charts,
        "by_client": by_client,
        "dots_remark": left_out if len(clients) > MAX_DOTS else "",
        "routing": routing,
        "curves": curves,
        "inside": inside,
        "remarks": {name: cube.remark for name, cube in cubes.items()},
        "failures": failures,
        "failures_left": failures_left,
        "samples_round": samples_round,
        "samples": samples,
        "all_settings": all_settings,
        "changed": [each for each in all_settings if each.changed],
        "notable": [each for each in all_settings if settings.is_notable(each)],
    }
    drawn = charts | {"by-client": by_client} | routing | curves | inside
    if classes is not None:
        drawn["confusion"] = classes.chart
        cubes = {**cubes, CUBE: classes.cube}
    data = {
        "charts": {name: chart.to_json() for name, chart in drawn.items() if chart.spec},
        "cubes": {name: cube.to_json() for name, cube in cubes.items()},
    }
    refresh = REFRESH if state.kind == "running" else 0
    return render("run", folder.name, state, content, data, refresh)
