"""Comparisons for benchmarks: those of ``fedmoe compare``, with "local-only" as one more row.

Runs are kept in ``$FEDMOE_HOME/benchmarks/NAME``, so that a benchmark that was stopped goes on
where it was. Their key does not know the code: delete the folder after a change that matters.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedmoe_app import default_run_config, parse_run_config
from fedmoe_app.compare.compare import report, write_report
from fedmoe_app.compare.execute import Run, config_in, in_process, run_cells
from fedmoe_app.compare.folder import ComparisonFolder
from fedmoe_app.compare.plan import Cell, Partition, SchemeEntry, make_plan
from fedmoe_app.compare.summary import Result, Row
from fedmoe_app.compare.tables import failures, markdown_table
from fedmoe_app.config.overrides import Flat
from fedmoe_app.config.paths import home
from fedmoe_app.results.folder import RunFolder

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED_DATA = REPOSITORY.parent / "shared" / "data"
LOCAL_ONLY = "local-only"  # every client trains alone
LOCAL_ONLY_ROW = SchemeEntry(LOCAL_ONLY, {"scheme": "fedavg"}, LOCAL_ONLY)


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
        outcomes = run_cells(plan.cells, folder, workers, run or run_federated_or_alone)
        results, rows, metric = report(plan, outcomes)
        write_report(folder.path, plan, results, rows, metric)
    if outcomes.failures:
        raise SystemExit("\n".join(failures(results)))
    return results, rows


def run_config(overrides: Mapping[str, Any]) -> Flat:
    """Return the app's flat default run config with overrides."""
    return default_run_config() | dict(overrides)


def run_federated_or_alone(cell: Cell, draft: Path) -> Path:
    """Run a cell in this process, whatever its kind."""
    return local_only(cell, draft) if cell.kind == LOCAL_ONLY else in_process(cell, draft)


def local_only(cell: Cell, draft: Path) -> Path:
    """Train every client alone for all rounds; score each on the global test set.

    The line that it leaves behind is that of a run's last round; ``accuracy`` is the mean over the
    clients.
    """
    import torch

    torch.set_num_threads(1)
    started = time.monotonic()
    scores = [_train_alone(cell, draft, client) for client in range(cell.clients)]
    line = {
        "round": cell.rounds,
        "accuracy": statistics.fmean(score["accuracy"] for score in scores),
        "loss": statistics.fmean(score["loss"] for score in scores),
        "metric": "accuracy",
        "bytes_up": 0,
        "clients": scores,
        "seconds": {"round": time.monotonic() - started},
    }
    folder = RunFolder(draft / LOCAL_ONLY)
    folder.append(line)
    return folder.path


def _train_alone(cell: Cell, draft: Path, client: int) -> dict[str, Any]:
    from fedmoe_app import FedAvg, ModelState, Plan
    from fedmoe_app.aggregation.aggregate import aggregate
    from fedmoe_app.aggregation.streaming import round_info
    from fedmoe_app.client.round import train_client
    from fedmoe_app.config.node import Node
    from fedmoe_app.moe.layers import read_state, write_state
    from fedmoe_app.tasks.base import evaluate
    from fedmoe_app.tasks.setup import load_setup, server_data
    from fedmoe_app.wire.records import TrainTask

    config = parse_run_config(config_in(cell, draft))
    data = server_data(config.data)
    setup = load_setup(config, data.label_names)
    state = read_state(setup.model, setup.layers)
    plan = Plan.of(FedAvg(), setup.shape)
    node = Node(client, client, cell.clients, None)
    for server_round in range(1, cell.rounds + 1):
        task = TrainTask(server_round, state, data.label_names, data.fingerprint)
        update = train_client(config, node, task)
        # Of one client FedAvg is that client's own values.
        found = aggregate(state, [update], plan, round_info(server_round, [update]))
        state = ModelState()
        for key, tensor in found.tensors:
            state.insert(key, tensor)
    write_state(setup.model, setup.layers, state)
    batch_size = config.train.per_device_eval_batch_size
    score = evaluate(setup.model, setup.task, setup.task.encode(data.test), batch_size)
    return {
        "client": client,
        "accuracy": score.accuracy,
        "loss": score.mean_loss,
        "local_accuracy": update.metrics.get("local-accuracy"),
    }


def print_markdown(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a Markdown table with aligned columns."""
    print("\n".join(markdown_table(headers, rows)))
