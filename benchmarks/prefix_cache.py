"""What is saved by computing the frozen layers below the first trained one once.

    python -m benchmarks.prefix_cache [--data FOLDER] [--rounds 3]

Two runs in one process that differ in train.prefix-cache alone: the preset smollm2-moe (26 of 30
layers frozen), LoRA on its experts, CLINC150 (150 classes; ``train.jsonl.gz`` and ``test.jsonl.gz``
in the folder), 4 clients, Dirichlet 0.5, texts of at most 24 tokens, batches of 16, float32, one
thread. Round 1 fills the cache. Seconds are CPU time of this process in a round, of all clients and
the server; "training" is what the clients say of their own (wall time).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.cells import SHARED_DATA, print_markdown, run_config
from fedmoe_app import run_in_process
from fedmoe_app.client import prefix
from fedmoe_app.moe.prefix.states import HiddenStates
from fedmoe_app.server.round import Round
from fedmoe_app.server.rounds import RoundLoop

CLIENTS = 4


@dataclass
class Measured:
    """One run: CPU seconds and training seconds by round, and what its clients kept."""

    cpu: list[float]
    training: list[float]
    losses: list[float]
    accuracies: list[float]
    texts: int = 0
    size: int = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=SHARED_DATA / "clinc150")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--examples", type=int, default=480)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    off, on = (_run(arguments, cache) for cache in ("off", "on"))
    rows = [
        (
            str(number),
            f"{plain:.1f}",
            f"{cached:.1f}",
            f"{plain / cached:.1f}",
            f"{off.training[number - 1] / on.training[number - 1]:.1f}",
            f"{off.losses[number]:.6f} / {on.losses[number]:.6f}",
            f"{off.accuracies[number]:.3f} / {on.accuracies[number]:.3f}",
        )
        for number, (plain, cached) in enumerate(zip(off.cpu, on.cpu, strict=True), start=1)
    ]
    print_markdown(
        (
            "round",
            "CPU s, off",
            "CPU s, on",
            "ratio",
            "ratio, training",
            "test loss, off / on",
            "accuracy, off / on",
        ),
        rows,
    )
    print(f"\nkept: {on.size / on.texts / 1000:.1f} kB a text, {on.size / 2**20:.1f} MiB in all")


def _run(arguments: argparse.Namespace, cache: str) -> Measured:
    found = Measured([], [], [], [])
    with tempfile.TemporaryDirectory() as folder, _watched(found):
        settings: dict[str, Any] = {
            "num-server-rounds": arguments.rounds,
            "output-dir": folder,
            "data.source": str(arguments.data / "train.jsonl.gz"),
            "data.test-source": str(arguments.data / "test.jsonl.gz"),
            "data.label-field": "label_name",
            "data.max-train-examples": arguments.examples,
            "data.max-test-examples": 120,
            "data.max-length": 24,
            "model.name": "smollm2-moe",
            "model.train": "expert-lora",
            "head.closed-form": "before",
            "train.learning-rate": 5e-4,
            "train.prefix-cache": cache,
        }
        results = run_in_process(run_config(settings), CLIENTS)
        for text in (results / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
            line = json.loads(text)
            found.losses.append(line["loss"])
            found.accuracies.append(line["accuracy"])
            clients = line["seconds"].get("clients", [])
            if line["round"]:
                found.training.append(sum(client["train"] for client in clients))
    return found


class _watched:
    """Note the CPU seconds of each round, and the size of what each client keeps."""

    def __init__(self, found: Measured) -> None:
        self._found = found
        self._sizes: dict[Path, HiddenStates] = {}

    def __enter__(self) -> None:
        run_round, save = RoundLoop.run_round, prefix._Files.save

        def timed(loop: RoundLoop, now: Round, *rest: Any) -> None:
            started = time.process_time()
            run_round(loop, now, *rest)
            self._found.cpu.append(time.process_time() - started)

        def sized(files: prefix._Files, states: HiddenStates) -> bool:
            self._sizes[files._store.folder] = states
            return save(files, states)

        self._patches: list[Any] = [
            mock.patch.object(RoundLoop, "run_round", timed),
            mock.patch.object(prefix._Files, "save", sized),
        ]
        for each in self._patches:
            each.start()

    def __exit__(self, *exc_info: object) -> None:
        for each in self._patches:
            each.stop()
        self._found.texts = sum(len(states) for states in self._sizes.values())
        self._found.size = sum(states.size for states in self._sizes.values())


if __name__ == "__main__":
    main()
