"""Comparisons for benchmarks: those of ``fedmoe compare``, whose folders have names.

Runs are kept in ``$FEDMOE_HOME/benchmarks/NAME``, so that a benchmark that was stopped goes on
where it was. Their key does not know the code: delete the folder after a change that matters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedmoe_app import default_run_config
from fedmoe_app.compare.compare import report, write_report
from fedmoe_app.compare.execute import Run, in_process, run_cells
from fedmoe_app.compare.folder import ComparisonFolder
from fedmoe_app.compare.plan import Partition, SchemeEntry, make_plan
from fedmoe_app.compare.summary import Result, Row
from fedmoe_app.compare.tables import failures, markdown_table
from fedmoe_app.config.overrides import Flat
from fedmoe_app.config.paths import home

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED_DATA = REPOSITORY.parent / "shared" / "data"


def measure(
    name: str,
    schemes: Sequence[SchemeEntry],
    partitions: Sequence[Partition],
    overrides: Mapping[str, Any],
    seeds: Sequence[int],
    clients: int,
    workers: int,
    centralised: bool = True,
) -> list[Row]:
    """Run a comparison, kept under ``name``; return its summary.

    Args:
        name: folder of the comparison in ``$FEDMOE_HOME/benchmarks``.
        schemes: the rows.
        partitions: the columns.
        overrides: flat run config over the app's defaults, for all rows.
        seeds: one run of every row and column for each.
        clients: simulated clients.
        workers: runs at a time.
        centralised: whether each seed gets a run of one client that holds all data.

    Raises:
        SystemExit: when a run failed: a table without it would mean something else.
    """
    _, rows = _measured(name, schemes, partitions, overrides, seeds, clients, workers, centralised)
    return rows


def measure_results(
    name: str,
    schemes: Sequence[SchemeEntry],
    partitions: Sequence[Partition],
    overrides: Mapping[str, Any],
    seeds: Sequence[int],
    clients: int,
    workers: int,
    centralised: bool = True,
    run: Run | None = None,
) -> list[Result]:
    """Do as :func:`measure`, but return what each cell came to; ``run`` runs a cell."""
    results, _ = _measured(
        name, schemes, partitions, overrides, seeds, clients, workers, centralised, run
    )
    return results


def _measured(
    name: str,
    schemes: Sequence[SchemeEntry],
    partitions: Sequence[Partition],
    overrides: Mapping[str, Any],
    seeds: Sequence[int],
    clients: int,
    workers: int,
    centralised: bool,
    run: Run | None = None,
) -> tuple[list[Result], list[Row]]:
    plan = make_plan(run_config(overrides), schemes, partitions, seeds, clients, None, centralised)
    with ComparisonFolder(home() / "benchmarks" / name) as folder:
        folder.write_plan(plan)
        outcomes = run_cells(plan.cells, folder, workers, run or in_process)
        results, rows, metric = report(plan, outcomes)
        write_report(folder.path, plan, results, rows, metric)
    if outcomes.failures:
        raise SystemExit("\n".join(failures(results)))
    return results, rows


def run_config(overrides: Mapping[str, Any]) -> Flat:
    """Return the app's flat default run config with overrides."""
    return default_run_config() | dict(overrides)


def print_markdown(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a Markdown table with aligned columns."""
    print("\n".join(markdown_table(headers, rows)))
