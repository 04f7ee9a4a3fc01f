"""The baselines on real text: centralised, alone, FedAvg, FedProx, FedMoE.

    python -m benchmarks.baselines [--data embedded ag_news clinc150] [--workers 2] [--seeds 3]

10 clients; partitions IID, Dirichlet 0.5 and 0.1; accuracy of the global model on the server's
test set after the last round, mean and standard deviation over the seeds. A seed fixes partition,
head, batches and order. "Centralised" is one client with all the data and the same number of
epochs; "alone" is the mean over clients that each train alone, scored on the same test set.
Hyper-parameters are the defaults of ``pyproject.toml`` but for the table ``DATA`` below; nothing
was tuned per scheme.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.cells import SHARED_DATA, measure, print_markdown
from fedmoe_app.compare.plan import ALONE, CENTRALISED, NO_PARTITION, Partition, read_schemes
from fedmoe_app.compare.summary import Row
from fedmoe_app.compare.tables import mean_and_std
from fedmoe_app.results.table import MISSING, human_bytes

CLIENTS = 10
FEDERATED = ("fedavg", "fedprox", "fedmoe")
COLUMNS = (CENTRALISED, ALONE, *FEDERATED)
PARTITIONS = (
    Partition("IID", {"data.partition": "iid"}),
    Partition("Dirichlet 0.5", {"data.partition": "dirichlet", "data.alpha": 0.5}),
    Partition("Dirichlet 0.1", {"data.partition": "dirichlet", "data.alpha": 0.1}),
)
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
        print_tables(data, rows_of(data, options.seeds, options.workers))


def rows_of(data: str, seeds: int, workers: int) -> list[Row]:
    """Run everything on one data set."""
    schemes = read_schemes(",".join([*FEDERATED, ALONE]))
    every = range(1, seeds + 1)
    settings = settings_of(data)
    return measure(f"baselines-{data}", schemes, PARTITIONS, settings, every, CLIENTS, workers)


def settings_of(data: str) -> dict[str, Any]:
    """Return what differs from the default run config on a data set."""
    if data == "embedded":
        return DATA[data]
    folder = SHARED_DATA / data
    return DATA[data] | {
        "data.source": str(folder / "train.jsonl.gz"),
        "data.test-source": str(folder / "test.jsonl.gz"),
    }


def print_tables(data: str, rows: Sequence[Row]) -> None:
    """Print accuracy by partition and scheme, then bytes up per round likewise."""
    shown: dict[str, Callable[[Row], str]] = {
        "accuracy": lambda row: mean_and_std(row.accuracy),
        "bytes up a round": lambda row: human_bytes(row.bytes_up) if row.bytes_up else MISSING,
    }
    for name, show in shown.items():
        print(f"\n{data}, {DATA[data]['num-server-rounds']} rounds, {CLIENTS} clients: {name}")
        print_markdown(
            ("partition", *COLUMNS),
            [
                (partition.name, *(_cell(rows, partition.name, column, show) for column in COLUMNS))
                for partition in PARTITIONS
            ],
        )


def _cell(rows: Sequence[Row], partition: str, scheme: str, show: Callable[[Row], str]) -> str:
    """Return what is shown of a row; the centralised one stands on every partition."""
    found = (r for r in rows if r.scheme == scheme and r.partition in (partition, NO_PARTITION))
    return next((show(row) for row in found), MISSING)


if __name__ == "__main__":
    main()
