"""Cells that train nothing: a run writes made-up metrics lines. Importable by other processes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedmoe_app.compare.execute import RESULTS, Outcomes
from fedmoe_app.compare.figures import Figures, figures_of
from fedmoe_app.compare.plan import CENTRALISED, FEDERATED, NO_PARTITION, Cell, Plan
from fedmoe_app.results.folder import RunFolder

# What a fake run does instead of writing metrics, by the seed of its cell.
RAISES, DIES, INTERRUPTS, TEARS, LOSES, REJECTS = 90, 91, 92, 93, 94, 95


def line(number: int, accuracy: float | None, own: Sequence[float | None] = ()) -> dict[str, Any]:
    """A metrics line with 10 bytes up a client."""
    clients = [{"client": i, "local_accuracy": value} for i, value in enumerate(own)]
    return {
        "round": number,
        "status": "ok",
        "loss": 2.0 - number,
        "accuracy": accuracy,
        "metric": "accuracy",
        "bytes_up": 10 * len(clients),
        "clients": clients,
        "seconds": {"round": 1.5},
    }


def lines(*accuracies: float | None, own: Sequence[float | None] = (0.5, 0.7)) -> list[Any]:
    """The metrics lines of a run whose global model had these accuracies."""
    return [line(i, value, own if i else ()) for i, value in enumerate(accuracies)]


def rejecting(entries: list[Any], **reasons: str) -> list[Any]:
    """The lines of a run that rejected these clients in every round."""
    failures = [{"who": who, "reason": why} for who, why in reasons.items()]
    return [entry | {"failures": failures if entry["round"] else []} for entry in entries]


def last_failed(entries: list[Any]) -> list[Any]:
    """The lines of a run whose last round failed: no evaluation, and no client's figures."""
    last = entries[-1]
    failures = [*last.get("failures", []), {"who": "round", "reason": "1 usable\nreply of 2"}]
    lost = {"status": "failed", "accuracy": None, "loss": None, "clients": []}
    return [*entries[:-1], last | lost | {"failures": failures}]


def fake_run(cell: Cell, draft: Path) -> Path:
    """Write metrics, a config, a plot and a model; each call is counted beside the draft."""
    with (draft.parents[1] / "calls.txt").open("a") as calls:
        calls.write(f"{cell.label}\n")
    os.write(1, b"hello from a run\n")  # a test may have replaced sys.stdout
    if cell.seed == RAISES:
        raise ValueError("no such\nclient")
    if cell.seed == DIES:
        os._exit(9)
    if cell.seed == INTERRUPTS:
        os.kill(os.getppid(), signal.SIGINT)
        time.sleep(60)
    folder = RunFolder(draft / RESULTS)
    folder.write_config(cell.flat | {"output-dir": str(draft)})
    (folder.path / "model").mkdir()
    (folder.path / "accuracy.png").touch()
    entries = lines(*[0.1 * i for i in range(cell.rounds if cell.seed == TEARS else 3)])
    if cell.seed == REJECTS:
        entries = rejecting(entries, c1="NaN")
    for entry in last_failed(entries) if cell.seed == LOSES else entries:
        folder.append(entry)
    return folder.path


def calls(folder: Path) -> list[str]:
    """The labels of the cells that were run, in order."""
    file = folder / "calls.txt"
    return file.read_text().splitlines() if file.is_file() else []


def cell(scheme: str = "fedavg", partition: str = "iid", seed: int = 1, **flat: Any) -> Cell:
    """A cell of two rounds."""
    own = {"num-server-rounds": 2, "seed": seed, "scheme": scheme, "data.partition": partition}
    return Cell(scheme, partition, seed, 2, own | flat, FEDERATED)


def plan_and_outcomes(
    runs: dict[tuple[str, str, int], list[Any] | str],
) -> tuple[Plan, Outcomes]:
    """A plan of these cells, by (scheme, partition, seed), with metrics lines or a failure."""
    outcomes = Outcomes()
    cells = []
    for (scheme, partition, seed), result in runs.items():
        cells.append(cell(scheme, partition, seed))
        if isinstance(result, str):
            outcomes.failures[cells[-1].key] = result
        else:
            outcomes.add(cells[-1], figures(result))
    schemes = tuple(dict.fromkeys(key[0] for key in runs))
    partitions = tuple(dict.fromkeys(key[1] for key in runs if key[1] != NO_PARTITION))
    seeds = tuple(dict.fromkeys(key[2] for key in runs))
    return Plan(schemes, partitions, seeds, 2, tuple(cells)), outcomes


def broken() -> tuple[Plan, Outcomes]:
    """FedAvg with three seeds that reject clients; the last round of the second fails."""
    runs: dict[tuple[str, str, int], list[Any] | str] = {
        ("fedavg", "iid", 1): rejecting(lines(0.1, 0.5, 0.6), c1="NaN"),
        ("fedavg", "iid", 2): last_failed(rejecting(lines(0.1, 0.5, 0.6), c1="NaN")),
        ("fedavg", "iid", 3): lines(0.1, 0.5, 0.8),
    }
    runs["fedavg", "iid", 3][1]["failures"] = [{"who": "c2", "reason": "late"}]  # type: ignore[index]
    return plan_and_outcomes(runs)


def figures(entries: list[Any]) -> Figures:
    return figures_of(entries, entries[-1]["round"])


def example() -> tuple[Plan, Outcomes]:
    """Two schemes and the reference, two seeds; FedProx fails with seed 2 on the second column."""
    runs: dict[tuple[str, str, int], list[Any] | str] = {
        (CENTRALISED, NO_PARTITION, 1): lines(0.1, 0.4, 0.8, own=(0.6,)),
        (CENTRALISED, NO_PARTITION, 2): lines(0.1, 0.4, 1.0, own=(0.6,)),
        ("fedavg", "iid", 1): lines(0.1, 0.5, 0.6),
        ("fedprox", "iid", 1): lines(0.1, 0.73, 0.77),
        ("fedavg", "iid", 2): lines(0.1, 0.5, 0.7),
        ("fedprox", "iid", 2): lines(0.1, 0.5, 0.8, own=(0.2, None)),
        ("fedavg", "dirichlet 0.1", 1): lines(0.1, 0.2, 0.3),
        ("fedprox", "dirichlet 0.1", 1): lines(0.1, 0.2, 0.4),
        ("fedavg", "dirichlet 0.1", 2): lines(0.1, 0.2, 0.3),
        ("fedprox", "dirichlet 0.1", 2): "ValueError: a | b",
    }
    return plan_and_outcomes(runs)
