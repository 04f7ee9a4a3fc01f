"""Does the language-model warm-up of the presets raise the federated accuracy?

    python -m benchmarks.warm_up [--workers 2]

FedAvg on the embedded task, 10 clients, Dirichlet 0.5, 8 rounds, 3 seeds, two learning rates,
with and without the warm-up. Prints the accuracy on the server's test set after the last round.
"""

from __future__ import annotations

import argparse

from benchmarks.cells import Cell, by_row, mean_and_std, print_markdown, run_cells

SEEDS = (1, 2, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=2)
    workers = parser.parse_args().workers
    cells = [
        Cell(
            (f"{rate:g}", "warmed up" if warm else "random"),
            seed,
            "fedavg",
            10,
            {
                "num-server-rounds": 8,
                "data.max-train-examples": 4800,
                "train.learning-rate": rate,
                "model.warm-up": warm,
            },
        )
        for rate in (1e-3, 2e-3)
        for warm in (False, True)
        for seed in SEEDS
    ]
    accuracy = by_row(run_cells(cells, workers), "accuracy")
    print_markdown(
        ("learning rate", "initial weights", "accuracy (mean ± std, 3 seeds)"),
        [(*row, mean_and_std(values)) for row, values in accuracy.items()],
    )


if __name__ == "__main__":
    main()
