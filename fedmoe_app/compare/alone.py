"""The row ``alone``: every client trains by itself, and nothing is ever averaged.

It answers whether federating is worth it. A client is a whole run of its own, with FedAvg over one
client: its partition, rounds, epochs, seeds and initial weights are those of the federated rows.
What is kept is one run's worth of lines: each figure is a mean over the clients' runs.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedmoe_app.compare.plan import Cell
from fedmoe_app.config.overrides import Flat
from fedmoe_app.results.best import kept_line
from fedmoe_app.results.classes import Classes, kept_classes
from fedmoe_app.results.folder import RunFolder, read_metrics

Line = Mapping[str, Any]


def train_alone(cell: Cell, flat: Flat, draft: Path, results: str) -> Path:
    """Run each client of a cell alone; return the folder with the means, below ``draft``.

    Args:
        cell: what to run.
        flat: its run config.
        draft: an empty folder for the runs.
        results: name of the folder with the means.

    Raises:
        RunFailedError: a client's run came to no end; so do all other errors of a run.
    """
    from fedmoe_app.compare.in_process import run_in_process

    runs = []
    for client in range(cell.clients):
        place = {"output-dir": str(draft), "run-name": f"client-{client}"}
        node = {"partition-id": client, "num-partitions": cell.clients}
        runs.append(run_in_process(flat | place, 1, [node]))
    folder = RunFolder(draft / results)
    for line in mean_lines([read_metrics(run) for run in runs], cell.rounds):
        folder.append(line)
    kept = [classes for run in runs if (classes := kept_classes(run, read_metrics(run)))]
    if kept:
        folder.append_classes(together(kept, cell.rounds).line())
    return folder.path


def mean_lines(runs: Sequence[Sequence[Line]], rounds: int) -> list[dict[str, Any]]:
    """Return one line a round: figures are means over the runs of one client each.

    The last line is of the models that the runs keep, which may be those of earlier rounds
    (``keep-best``); a run that ended early stands with its last line until then.

    Args:
        runs: metrics lines of each client's run.
        rounds: number of the last round.
    """
    lines = []
    for number in range(rounds + 1):
        here = [run[min(number, len(run) - 1)] for run in runs]
        lines.append(_mean_line(number, here if number < rounds else [*map(kept_line, runs)]))
    return lines


def together(clients: Sequence[Classes], rounds: int) -> Classes:
    """Add up the clients' confusion matrices ``[C, C]``: all answers to the same test rows."""
    total = np.sum([classes.confusion for classes in clients], axis=0)
    return Classes(rounds, clients[0].names, total)


def _mean_line(number: int, lines: Sequence[Line]) -> dict[str, Any]:
    """Return the line of a round; nothing is sent, and the seconds of all runs add up."""
    seconds: Counter[str] = Counter()
    for line in lines:
        seconds["round"] += line["seconds"].get("round", 0.0)
    failures = [failure for line in lines for failure in line.get("failures") or ()]
    checked = [line["validation"] for line in lines if line.get("validation")]
    return {
        "round": number,
        "status": "ok" if all(line["status"] == "ok" for line in lines) else "failed",
        "loss": _mean([line["loss"] for line in lines]),
        "accuracy": _mean([line["accuracy"] for line in lines]),
        "metric": lines[0]["metric"],
        "num_clients": len(lines),
        "bytes_up": 0,
        "bytes_down": 0,
        "clients": [client for line in lines for client in line["clients"]],
        "failures": failures,
        **({"validation": _means(checked)} if len(checked) == len(lines) else {}),
        "seconds": dict(seconds),
    }


def _means(scores: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {key: _mean([score[key] for score in scores]) for key in scores[0]}


def _mean(values: Sequence[float | None]) -> float | None:
    """Return the mean; None where one is missing: a mean of the others would be another figure."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known and len(known) == len(values) else None
