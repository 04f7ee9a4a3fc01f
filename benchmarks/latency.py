"""What a round costs beside training, in deployments on loopback and in simulation.

Run: ``python -m benchmarks.latency`` (some minutes). The two kinds of SuperNode take turns, so that
whatever else the machine does falls on both. Printed are the medians over rounds of the wall
seconds of a round, of the slowest client's training, and of the parts of what is left, for the
client whose reply came last; and the CPU seconds of a client, which other programs do not stretch.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fedmoe_app import read_metrics
from fedmoe_app.launch.flower import Output, Simulation, run_simulation
from tests.conftest import REPOSITORY
from tests.end_to_end.processes import FLOWER_SUPERNODE, WARM_SUPERNODE, deployment

CLIENTS = 3
CONFIG = {"min-clients": CLIENTS, "data.max-train-examples": 480, "data.max-test-examples": 200}
# Of the client whose reply came last; their sum with the server's two is the round.
CLIENT_PARTS = ("download", "start", "load", "data", "apply", "evaluate", "encode", "upload")
SERVER_PARTS = ("server fold", "server evaluate")
COLUMNS = ("round", "slowest training", "overhead", *CLIENT_PARTS, *SERVER_PARTS, "cpu of a client")

Runner = Callable[[Path, int], list[dict[str, Any]]]


def in_deployment(supernode: tuple[str, ...]) -> Runner:
    """Return a runner over gRPC on loopback with SuperNodes of this kind."""

    def run(folder: Path, rounds: int) -> list[dict[str, Any]]:
        with deployment(folder, CLIENTS, supernode=supernode) as flower:
            outcome = flower.run(REPOSITORY, _overrides(folder, rounds))
        assert outcome.completed, flower.lines[-20:]
        flower.assert_nothing_left()
        return read_metrics(folder / "run")

    return run


def simulated(folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Run on simulated nodes."""
    with ExitStack() as stack:
        log = stack.enter_context((folder / "log").open("w"))
        output = Output(log, lambda line: None)
        outcome = run_simulation(
            REPOSITORY, _overrides(folder, rounds), Simulation(CLIENTS), output
        )
    assert outcome.completed, outcome
    return read_metrics(folder / "run")


def _overrides(folder: Path, rounds: int) -> dict[str, Any]:
    return CONFIG | {"num-server-rounds": rounds, "output-dir": str(folder), "run-name": "run"}


RUNNERS: Mapping[str, Runner] = {
    "flower-supernode": in_deployment(FLOWER_SUPERNODE),
    "fedmoe supernode": in_deployment(WARM_SUPERNODE),
    "simulation": simulated,
}


def parts(line: Mapping[str, Any]) -> dict[str, float]:
    """Split a round's wall seconds.

    Args:
        line: of ``metrics.jsonl``, of round 1 or later.
    """
    seconds = line["seconds"]
    clients = seconds["clients"]
    last = max(clients, key=lambda client: client["total"])
    training = max(client["train"] for client in clients)
    return {
        "round": seconds["round"],
        "slowest training": training,
        "overhead": seconds["round"] - training,
        **{name: last[name] for name in CLIENT_PARTS},
        "server fold": seconds["train"] - last["total"],
        "server evaluate": seconds["round"] - seconds["train"],
        "cpu of a client": statistics.fmean(client["cpu"] for client in clients),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="of a run")
    parser.add_argument("--repeats", type=int, default=2, help="runs of each kind, taking turns")
    parser.add_argument("--only", choices=tuple(RUNNERS), action="append")
    given = parser.parse_args()
    # The first round also builds the nodes' caches: corpus, tokenizer, encoded rows.
    found: dict[str, list[dict[str, float]]] = {name: [] for name in given.only or RUNNERS}
    for _ in range(given.repeats):
        for name, rounds in found.items():
            with tempfile.TemporaryDirectory() as folder:
                lines = RUNNERS[name](Path(folder), given.rounds)
            rounds += [parts(line) for line in lines[1:]]
            load = os.getloadavg()[0]
            print(f"{name}: overhead of the rounds", *_overheads(rounds), f"(load {load:.1f})")
    _print(found)


def _overheads(rounds: list[dict[str, float]]) -> list[float]:
    return [round(figures["overhead"], 1) for figures in rounds]


def _print(found: Mapping[str, list[dict[str, float]]]) -> None:
    table = Table(title="seconds, medians over rounds", box=None)
    table.add_column("")
    for name in found:
        table.add_column(name, justify="right")
    for column in COLUMNS:
        medians = (statistics.median(f[column] for f in rounds) for rounds in found.values())
        table.add_row(column, *(f"{median:.2f}" for median in medians))
    Console().print(table)


if __name__ == "__main__":
    main()
