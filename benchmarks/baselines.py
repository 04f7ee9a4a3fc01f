"""The baselines on real text: centralised, local-only, FedAvg, FedProx, FedMoE.

    python -m benchmarks.baselines [--data embedded ag_news clinc150] [--workers 2] [--seeds 3]

10 clients; partitions IID, Dirichlet 0.5 and 0.1; accuracy of the global model on the server's
test set after the last round, mean and standard deviation over the seeds. A seed fixes partition,
head, batches and order. "Centralised" is one client with all the data and the same number of
epochs; "local-only" is the mean over clients that each train alone, scored on the same test set.
Hyper-parameters are the defaults of ``pyproject.toml`` but for the table ``DATA`` below; nothing
was tuned per scheme.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.cells import (
    CENTRALISED,
    LOCAL_ONLY,
    SHARED_DATA,
    Cell,
    Measured,
    by_row,
    mean_and_std,
    print_markdown,
    run_cells,
)
from fedmoe_app.report.table import human_bytes

CLIENTS = 10
SCHEMES = (CENTRALISED, LOCAL_ONLY, "fedavg", "fedprox", "fedmoe")
PARTITIONS: dict[str, dict[str, Any]] = {
    "IID": {"data.partition": "iid"},
    "Dirichlet 0.5": {"data.partition": "dirichlet", "data.alpha": 0.5},
    "Dirichlet 0.1": {"data.partition": "dirichlet", "data.alpha": 0.1},
}
DATA: dict[str, dict[str, Any]] = {
    "embedded": {"num-server-rounds": 8, "data.max-train-examples": 4800},
    "ag_news": {
        "num-server-rounds": 8,
        "data.max-train-examples": 4800,
        "data.max-test-examples": 2000,
    },
    "clinc150": {
        "num-server-rounds": 10,
        "data.max-length": 24,
        "data.max-train-examples": 7500,
        "data.max-test-examples": 2000,
    },
}


def cells_of(data: str, seeds: int) -> list[Cell]:
    """Return all runs on one data set."""
    settings = dict(DATA[data])
    if data != "embedded":
        folder = SHARED_DATA / data
        settings |= {
            "data.source": str(folder / "train.jsonl.gz"),
            "data.test-source": str(folder / "test.jsonl.gz"),
        }
    return [
        Cell(
            (data, partition, scheme),
            seed,
            scheme,
            1 if scheme == CENTRALISED else CLIENTS,
            settings | chosen,
        )
        for scheme in SCHEMES
        for partition, chosen in _partitions(scheme).items()
        for seed in range(1, seeds + 1)
    ]


def _partitions(scheme: str) -> dict[str, dict[str, Any]]:
    return {"-": {}} if scheme == CENTRALISED else PARTITIONS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    for data in options.data:
        if data != "embedded" and not (SHARED_DATA / data).is_dir():
            print(f"{data}: left out, {data}/train.jsonl.gz is not beside the repository")
            continue
        print_tables(data, run_cells(cells_of(data, options.seeds), options.workers))


def print_tables(data: str, figures: Sequence[Measured]) -> None:
    """Print accuracy by partition and scheme, then bytes up per round likewise."""
    settings = DATA[data]
    for name, shown in (("accuracy", mean_and_std), ("bytes_up", _mean_bytes)):
        rows = by_row(figures, name)
        print(f"\n{data}, {settings['num-server-rounds']} rounds, {CLIENTS} clients: {name}")
        print_markdown(
            ("partition", *SCHEMES),
            [
                (partition, *(_cell(rows, data, partition, scheme, shown) for scheme in SCHEMES))
                for partition in PARTITIONS
            ],
        )


def _cell(
    rows: Mapping[tuple[str, ...], Sequence[float]],
    data: str,
    partition: str,
    scheme: str,
    shown: Callable[[Sequence[float]], str],
) -> str:
    values = rows.get((data, partition, scheme)) or rows.get((data, "-", scheme))
    return shown(values) if values else ""


def _mean_bytes(values: Sequence[float]) -> str:
    return human_bytes(statistics.fmean(values)) if any(values) else "-"


if __name__ == "__main__":
    main()
