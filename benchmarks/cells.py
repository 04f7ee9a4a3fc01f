"""Run many federated fine-tunings side by side, keep the finished ones, and tabulate them.

A cell is one run with one seed. It runs in a process of its own with one torch thread, through the
real ServerApp and ClientApps in process. Its figures are kept in ``$FEDMOE_HOME/benchmarks``, so
that a benchmark that was stopped goes on where it was.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fedmoe_app.config import default_run_config, parse_run_config
from fedmoe_app.paths import home
from fedmoe_app.report.log import read_metrics, write_atomic
from fedmoe_app.report.progress import duration

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED_DATA = REPOSITORY.parent / "shared" / "data"
LOCAL_ONLY = "local-only"  # every client trains alone; a pseudo scheme
CENTRALISED = "centralised"  # one client holds all data; a pseudo scheme


@dataclass(frozen=True)
class Cell:
    """One run: a row of a table and a seed, with what differs from the default run config."""

    row: tuple[str, ...]
    seed: int
    scheme: str
    clients: int
    overrides: dict[str, Any]

    @property
    def key(self) -> str:
        """Hash of everything that decides on the figures but the code: delete the kept ones
        (``$FEDMOE_HOME/benchmarks``) after a change that matters."""
        inputs = [self.flat(Path("/")), self.scheme, self.clients]
        return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:20]

    def flat(self, output: Path) -> dict[str, Any]:
        """Return the cell's flat run config."""
        scheme = "fedavg" if self.scheme in (LOCAL_ONLY, CENTRALISED) else self.scheme
        only_once = {"evaluate-every": self.overrides["num-server-rounds"]}
        own = {"scheme": scheme, "seed": self.seed, "output-dir": str(output)}
        if self.scheme == CENTRALISED:
            own |= {"min-clients": 1, "data.partition": "iid"}
        default = default_run_config(REPOSITORY / "pyproject.toml")
        return default | only_once | self.overrides | own


Measured = tuple[Cell, dict[str, float]]


def run_cells(cells: Sequence[Cell], workers: int) -> list[Measured]:
    """Run the cells that have no kept figures yet; return the figures of all, in order."""
    figures = {cell.key: json.loads(_kept(cell).read_text()) for cell in cells if _is_kept(cell)}
    todo = {cell.key: cell for cell in cells if cell.key not in figures}
    print(f"{len(cells)} runs, {len(todo)} of them to do, {workers} at a time", flush=True)
    context = multiprocessing.get_context("spawn")
    started = time.monotonic()
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        futures = {pool.submit(run_cell, cell): key for key, cell in todo.items()}
        for done, future in enumerate(as_completed(futures), start=1):
            key = futures[future]
            figures[key] = future.result()
            left = (time.monotonic() - started) / done * (len(todo) - done)
            shown = {name: round(value, 4) for name, value in figures[key].items()}
            print(
                f"[{done}/{len(todo)}] {todo[key].row} seed {todo[key].seed}: {shown}; "
                f"about {duration(left)} left",
                flush=True,
            )
    return [(cell, figures[cell.key]) for cell in cells]


def run_cell(cell: Cell) -> dict[str, float]:
    """Run one cell and keep its figures; called in a process of its own."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch

    torch.set_num_threads(1)
    started = time.monotonic()
    with TemporaryDirectory() as output, contextlib.redirect_stdout(io.StringIO()):
        logging.getLogger("fedmoe").addHandler(logging.NullHandler())
        run = _local_only if cell.scheme == LOCAL_ONLY else _federated
        figures = run(cell, Path(output))
    figures["seconds"] = time.monotonic() - started
    _kept(cell).parent.mkdir(parents=True, exist_ok=True)
    write_atomic(_kept(cell), json.dumps(figures))
    return figures


def _federated(cell: Cell, output: Path) -> dict[str, float]:
    from fedmoe_app.inprocess import run_in_process

    lines = read_metrics(run_in_process(cell.flat(output), cell.clients))
    last = lines[-1]
    own = [c["local_accuracy"] for c in last["clients"] if c["local_accuracy"] is not None]
    return {
        "accuracy": last["accuracy"],
        "loss": last["loss"],
        "local_accuracy": statistics.fmean(own),
        "bytes_up": statistics.fmean(line["bytes_up"] for line in lines[1:]),
        "dense_bytes": float(last["bytes_down"]),
    }


def _local_only(cell: Cell, output: Path) -> dict[str, float]:
    """Train every client alone for all rounds; score each on the global test set."""
    from fedmoe_app.local.node import Node
    from fedmoe_app.local.round import train_client
    from fedmoe_app.local.setup import load_setup, server_data
    from fedmoe_app.local.tasks import evaluate
    from fedmoe_app.moe.layers import read_state, write_state
    from fedmoe_app.schemes.fedavg import FedAvg
    from fedmoe_app.schemes.fold import fold, round_info
    from fedmoe_app.wire.records import TrainTask

    config = parse_run_config(cell.flat(output))
    data = server_data(config)
    setup = load_setup(config, data.label_names)
    initial = read_state(setup.model, setup.layers)
    test = setup.task.encode(data.test)
    accuracies = []
    for client in range(cell.clients):
        state, node = initial, Node(client, client, cell.clients, None)
        for server_round in range(1, config.num_server_rounds + 1):
            task = TrainTask(server_round, state, data.label_names, data.fingerprint)
            update = train_client(config, node, task)
            state = fold(state, [update], FedAvg(), round_info(server_round, [update]))
        write_state(setup.model, setup.layers, state)
        batch_size = config.train.per_device_eval_batch_size
        accuracies.append(evaluate(setup.model, setup.task, test, batch_size).accuracy)
    return {"accuracy": statistics.fmean(accuracies), "bytes_up": 0.0}


def _kept(cell: Cell) -> Path:
    return home() / "benchmarks" / f"{cell.key}.json"


def _is_kept(cell: Cell) -> bool:
    return _kept(cell).is_file()


def by_row(figures: Sequence[Measured], name: str) -> dict[tuple[str, ...], list[float]]:
    """Collect one figure over the seeds, by row, in the order of the cells."""
    rows: dict[tuple[str, ...], list[float]] = {}
    for cell, values in figures:
        if name in values:
            rows.setdefault(cell.row, []).append(values[name])
    return rows


def mean_and_std(values: Sequence[float]) -> str:
    """Return ``0.712 ± 0.010`` (sample standard deviation)."""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.3f} ± {spread:.3f}"


def print_markdown(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a Markdown table with aligned columns."""
    table = [headers, *rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(headers))]
    line: Callable[[Sequence[str]], str] = lambda row: (  # noqa: E731
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |"
    )
    print(line(headers))
    print("| " + " | ".join("-" * width for width in widths) + " |")
    for row in rows:
        print(line(row))
