"""A whole comparison, from the options of the command line to tables and plots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from fedmoe_app.compare.execute import Outcomes, Run, in_process, run_cells, simulated
from fedmoe_app.compare.folder import ComparisonFolder
from fedmoe_app.compare.grid import Grid, Lines, choose, read_grid, tuned, tuning_cells
from fedmoe_app.compare.page import write_comparison_page
from fedmoe_app.compare.plan import (
    Cell,
    Plan,
    SchemeEntry,
    dirichlet,
    hash_of,
    make_plan,
    own_partition,
    read_alphas,
    read_schemes,
    read_seeds,
)
from fedmoe_app.compare.reading import running
from fedmoe_app.compare.summary import Result, Row, results_of, summarise
from fedmoe_app.compare.tables import (
    cells_csv,
    chosen,
    failures,
    markdown,
    print_summary,
    summary_csv,
)
from fedmoe_app.config.files import write_atomic
from fedmoe_app.config.names import WITH_TABLE as SCHEMES
from fedmoe_app.config.overrides import Flat, app_defaults, with_absolute_paths
from fedmoe_app.config.parse import parse_run_config
from fedmoe_app.config.paths import results_dir
from fedmoe_app.config.schema import DataConfig, ModelConfig
from fedmoe_app.launch.app_folder import app_folder, let_import
from fedmoe_app.launch.preflight import check_method, check_sources
from fedmoe_app.results.folder import read_metrics
from fedmoe_app.shown.terminal import say

__all__ = [
    "SCHEMES",
    "Request",
    "compare",
    "read_alphas",
    "read_grid",
    "read_schemes",
    "read_seeds",
]


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        app: folder of the Flower app, whose defaults are the base of every run config; where "."
            holds none, the installed app.
        schemes: the rows, the first of which the others are held against.
        seeds: one run of every row and column for each.
        alphas: Dirichlet concentrations, one a column; empty for the run config's own partition.
        clients: simulated clients.
        overrides: flat run config over the app's defaults, for all rows.
        rounds: federated rounds, over everything else; None for the run config's.
        output: result folder; None for one below ``$FEDMOE_HOME/results`` named by the plan.
        workers: runs at a time.
        simulation: run each through ``flwr run``, one at a time, instead of in process.
        centralised: whether each seed gets a run of one client that holds all data.
        grid: settings of which each row and column is given the best.
        command: the line that was typed, noted for captions; empty where none was.
    """

    app: Path
    schemes: tuple[SchemeEntry, ...]
    seeds: tuple[int, ...]
    alphas: tuple[float, ...]
    clients: int
    overrides: Flat
    rounds: int | None = None
    output: Path | None = None
    workers: int = 2
    simulation: bool = False
    centralised: bool = True
    grid: Grid = field(default_factory=Grid)
    command: str = ""


def compare(request: Request) -> bool:
    """Run what is not kept yet, write tables and plots, print the summary.

    Returns:
        whether every run came to its end with a final accuracy.

    Raises:
        ConfigError: for anything wrong that can be known before a run is started.
        ResultsError: when the output folder cannot be used.
        KeyboardInterrupt: when interrupted; the finished runs stay.
    """
    let_import(app_folder(request.app))
    plan = plan_of(request)
    for point in request.grid.points:
        plan_of(request, point)  # a wrong value is found before anything is run
    _check_sources(plan)
    died: list[str] = []
    with ComparisonFolder(folder_of(request, plan)) as folder:
        folder.write_plan(plan, request.command)
        say(f"comparison: {folder.path}")
        run = (
            partial(simulated, app_folder(request.app).absolute())
            if request.simulation
            else in_process
        )
        if request.grid.points:
            plan, died = _tune(request, folder, run)
            folder.write_plan(plan, request.command)
        outcomes = run_cells(plan.cells, folder, request.workers, run, here=request.simulation)
        results, rows, metric = report(plan, outcomes)
        write_report(folder.path, plan, results, rows, metric)
        write_comparison_page(folder.path, running(folder, plan, outcomes))
    say()
    print_summary(plan, rows, metric)
    for line in chosen(plan):
        say(line)
    for line in failures(results):
        say(line)
    say(f"results: {folder.path}")
    for line in died:
        say(f"not tried: {line}; the same command tries it again")
    return not outcomes.failures and not died


def folder_of(request: Request, plan: Plan | None = None) -> Path:
    """Return the folder that a comparison is written to."""
    if request.output:
        return request.output
    key = (plan or plan_of(request)).key
    return (
        results_dir()
        / f"compare-{hash_of([key, request.grid.points]) if request.grid.points else key}"
    )


def _tune(request: Request, folder: ComparisonFolder, run: Run) -> tuple[Plan, list[str]]:
    """Run every point of the grid with the tuning seeds.

    Returns:
        the plan with what was chosen, and the runs that left nothing behind: whether they would
        have been better is not known, unlike with those that diverged.
    """
    points = request.grid.points
    base = app_defaults(app_folder(request.app)) | request.overrides
    keep_best = str(base["keep-best"])
    scored: Flat = {"keep-best": keep_best or "accuracy"}  # also notes a score each round
    seeds = replace(request, seeds=request.grid.seeds)
    tried = tuning_cells([plan_of(seeds, point | scored) for point in points], points)
    say(f"tuning: {len(points)} points, seeds {', '.join(map(str, request.grid.seeds))}")
    cells = [cell for each in tried for cell in each]
    outcomes = run_cells(cells, folder, request.workers, run, here=request.simulation)

    def read(cell: Cell) -> Lines | None:
        failed = cell.key in outcomes.failures
        return None if failed else read_metrics(folder.cell_path(cell))

    choices = choose(tried, points, str(scored["keep-best"]), bool(keep_best), read)
    died = [cell.label for cell in cells if cell.key not in outcomes.figures]
    return tuned([plan_of(request, point) for point in points], points, choices), died


def _check_sources(plan: Plan) -> None:
    """Look once at each model, partition and method of the first seed, before a run is started."""
    seen: list[tuple[DataConfig, ModelConfig, int]] = []
    names: list[tuple[str, ...]] = []
    for cell in plan.cells:
        if cell.seed != plan.seeds[0]:
            continue
        config = parse_run_config(cell.flat)
        sources = (config.data, config.model, cell.clients)
        if sources not in seen:
            seen.append(sources)
            names.append(check_sources(config, cell.clients))
        check_method(config, names[seen.index(sources)])


def plan_of(request: Request, point: Flat | None = None) -> Plan:
    """Make the cells at a point of the grid; raises as :func:`compare` before a run."""
    shared = app_defaults(app_folder(request.app)) | request.overrides
    shared = with_absolute_paths(shared, Path.cwd())
    fixed: Flat = {} if request.rounds is None else {"num-server-rounds": request.rounds}
    fixed |= point or {}
    columns = dirichlet(request.alphas, shared) if request.alphas else [own_partition(shared)]
    return make_plan(
        shared,
        request.schemes,
        columns,
        request.seeds,
        request.clients,
        fixed,
        request.centralised,
    )


def report(plan: Plan, outcomes: Outcomes) -> tuple[list[Result], list[Row], str]:
    """Return the results of the cells, the summary, and what accuracy means for the task."""
    results = results_of(plan, outcomes)
    metric = next((r.figures.metric for r in results if r.figures), "accuracy")
    return results, summarise(plan, results), metric


def write_report(
    folder: Path, plan: Plan, results: Sequence[Result], rows: Sequence[Row], metric: str
) -> None:
    """Write CSV files, the Markdown page and the plots."""
    from fedmoe_app.compare.plots import plot_comparison

    write_atomic(folder / "comparison.csv", cells_csv(results))
    write_atomic(folder / "summary.csv", summary_csv(rows))
    write_atomic(folder / "comparison.md", markdown(plan, rows, results, metric))
    plot_comparison(folder, plan, results, metric)
