"""How much memory does a node need that holds b of E experts?

    python -m benchmarks.expert_memory [--experts 16] [--rank 4]

An OLMoE of 3 layers, hidden and inner size 1024, top-2, random float32 weights (604 MB of experts
at E = 16) is saved with one tensor an expert, as on the hub, and with stacked experts. For each of
b = E, E/2, E/4, E/8 a fresh process does what a node does: it chooses its experts (all experts run,
read from the files one by one), then, in another fresh process, trains a round with LoRA of rank r
on the experts (AdamW, 8 steps of 4 texts of 32 tokens, one thread) and encodes its reply. Every
millisecond it samples its anonymous memory (Linux: RssAnon), minus what it had after its imports.

"peak of the round" is the largest sample of the whole round: reading, scoring, choosing for the
next round, training, reply. It includes activations, adapters with gradients and moments, and
message buffers. The bound is (dense + (b/E)·experts) + 10%. Frozen dense parts stay mapped from the
file and are not anonymous; "with dense" adds them as if they were. "estimate" is what the node's
memory-budget reckons with, less its allowance for the process.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from transformers import OlmoeConfig, OlmoeForCausalLM

from benchmarks.cells import print_markdown
from fedmoe_app import ModelState, RunConfig, default_run_config, find_moe_layers, parse_run_config
from fedmoe_app.client import round as local_round
from fedmoe_app.client.memory import PROCESS, estimate
from fedmoe_app.config.node import Node
from fedmoe_app.data.tokenizer import load_tokenizer
from fedmoe_app.moe.fingerprint import checkpoint_fingerprint
from fedmoe_app.moe.loading import PRESETS
from fedmoe_app.wire.records import TrainTask, encode_update

LAYERS, HIDDEN, TOP_K, ROWS = 3, 1024, 2, 36
MIB = 2**20
FORMATS = {"one tensor an expert": True, "stacked": False}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--experts", type=int, default=16)
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--node", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.node:
        folder, what, budget = arguments.node
        print(json.dumps(_node(Path(folder), what, int(budget), arguments)))
        return
    rows = []
    with tempfile.TemporaryDirectory() as root:
        for name, original in FORMATS.items():
            folder = Path(root) / name.replace(" ", "-")
            sizes = _save(folder, arguments.experts, original)
            budgets = [arguments.experts // part for part in (1, 2, 4, 8)]
            rows += [_row(folder, name, sizes, budget, arguments) for budget in budgets]
    print_markdown(
        (
            "checkpoint", "b of E", "choosing MiB", "reading MiB", "peak of the round MiB",
            "bound MiB", "ratio", "ratio with dense", "estimate MiB",
        ),
        rows,
    )  # fmt: skip


def _save(folder: Path, experts: int, original: bool) -> tuple[int, int]:
    """Save the model, its tokenizer and texts; return the bytes of dense parts and of experts."""
    torch.manual_seed(0)
    tokenizer = load_tokenizer("olmoe-tiny", PRESETS)
    config = OlmoeConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        num_key_value_heads=8,
        num_experts=experts,
        num_experts_per_tok=TOP_K,
        max_position_embeddings=512,
        use_cache=False,
    )
    model = OlmoeForCausalLM(config)
    model.save_pretrained(folder, save_original_format=original, max_shard_size="200MB")
    tokenizer.save_pretrained(folder)
    line = '{{"instruction": "Count on from number {0}.", "response": "{0} and then one more."}}\n'
    (folder / "rows.jsonl").write_text("".join(line.format(i) for i in range(ROWS)))
    special = [p for layer in find_moe_layers(model) for p in layer.expert_parameters()]
    total, inside = (sum(p.nbytes for p in ps) for ps in (model.parameters(), special))
    return total - inside, inside


def _row(
    folder: Path, name: str, sizes: tuple[int, int], budget: int, arguments: argparse.Namespace
) -> tuple[str, ...]:
    dense, experts = sizes
    chosen = _run(folder, "choose", budget, arguments)
    trained = _run(folder, "train", budget, arguments)
    bound = 1.1 * (dense + budget / arguments.experts * experts)
    peak = trained["peak"]
    sizes_shown = (chosen["peak"], trained["reading"], peak, bound)
    return (
        name,
        f"{budget} of {arguments.experts}",
        *(f"{size / MIB:.0f}" for size in sizes_shown),
        f"{peak / bound:.2f}",
        f"{(peak + dense) / bound:.2f}",
        f"{trained['estimate'] / MIB:.0f}",
    )


def _run(folder: Path, what: str, budget: int, arguments: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.expert_memory", "--node", str(folder), what]
    command += [str(budget), "--experts", str(arguments.experts), "--rank", str(arguments.rank)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _node(folder: Path, what: str, budget: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Do one step of a node in this process; return the peaks of its anonymous memory."""
    config = _config(folder, arguments.experts, arguments.rank)
    node = Node(0, 0, 1, str(folder / "rows.jsonl"), expert_budget=budget)
    task = TrainTask(1, ModelState(), base_fingerprint=checkpoint_fingerprint(str(folder)))
    memory = Memory()
    if what == "choose":
        with memory.watched():
            local_round.choose_for_client(config, node, task)
        return {"peak": memory.peak}
    for key in [(layer, e) for layer in range(LAYERS) for e in range(budget)]:
        task.state.experts[key] = _adapter(arguments.rank)
    results: dict[str, Any] = {}

    def load(*arguments: Any) -> Any:
        setup = load_setup(*arguments)
        results["reading"] = memory.peak
        results["estimate"] = estimate(setup, config).total(budget) - PROCESS
        return setup

    load_setup = local_round.load_setup
    with memory.watched(), mock.patch.object(local_round, "load_setup", load):
        encode_update(local_round.train_client(config, node, task))
    return results | {"peak": memory.peak}


def _config(folder: Path, experts: int, rank: int) -> RunConfig:
    flat = default_run_config() | {
        "scheme": "fedmoe",
        "fedmoe.experts-per-client": experts,
        "model.name": str(folder),
        "model.train": "expert-lora",
        "model.lora-rank": rank,
        "model.gates": False,
        "model.experts-in-memory": "chosen",
        "data.source": str(folder / "rows.jsonl"),
        "data.task": "causal-lm",
        "data.partition": "iid",
        "data.max-length": 32,
        "train.per-device-train-batch-size": 4,
        "train.per-device-eval-batch-size": 4,
    }
    return parse_run_config(flat)


def _adapter(rank: int) -> dict[str, torch.Tensor]:
    """Return one expert's LoRA as a server sends it."""
    shapes = {"gate_up_proj": (2 * HIDDEN, HIDDEN), "down_proj": (HIDDEN, HIDDEN)}
    adapter = {}
    for name, (rows, columns) in shapes.items():
        adapter[f"{name}.lora_A"] = 0.01 * torch.randn(rank, columns)
        adapter[f"{name}.lora_B"] = torch.zeros(rows, rank)
    return adapter


class Memory:
    """Peak of this process's anonymous memory above what it is at the start, in bytes."""

    def __init__(self) -> None:
        self._start = _anonymous()
        self.peak = 0

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Sample every millisecond."""
        done = threading.Event()

        def watch() -> None:
            while not done.wait(0.001):
                self.peak = max(self.peak, _anonymous() - self._start)

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()


def _anonymous() -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


if __name__ == "__main__":
    main()
