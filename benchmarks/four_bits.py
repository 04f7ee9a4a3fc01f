"""What do four and eight bits save, and what do they cost?

    python -m benchmarks.four_bits [--steps 5]

An OLMoE of 16 layers, 32 experts, hidden 256 and random weights, about 400 MB in 16 bits, is saved
in shards of 50 MB, with one tensor an expert (as on the hub) and with stacked experts. Each way of
loading runs in a process of its own, which samples its anonymous memory (Linux: RssAnon) every
millisecond; the bound is the loaded tensors plus one shard. A QLoRA step (rank 8 on every expert,
gates trained, AdamW, 4 texts of 64 tokens, one thread) is timed on a model of 4 such layers, the
kinds in turn, and the medians are compared.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
from transformers import OlmoeConfig, OlmoeForCausalLM, PreTrainedModel

from benchmarks.cells import print_markdown
from fedmoe_app import find_moe_layers
from fedmoe_app.moe.quantised.packed import KINDS, packed_stacks
from fedmoe_app.moe.quantised.quantise import quantise
from fedmoe_app.moe.quantised.quantisers import quantization_config
from fedmoe_app.moe.training.adapt import Adaptation, adapt
from fedmoe_app.moe.training.trainable import Trainables

SHARD = 50 * 10**6  # bytes
MIB = 2**20
SEED = 0
FORMATS = {"one tensor an expert": True, "stacked": False}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--load", nargs=2, metavar=("FOLDER", "KIND"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.load:
        print(json.dumps(_load(*arguments.load)))
        return
    print_markdown(("experts in", "MiB", "against 16 bits"), _expert_memory())
    print_markdown(
        ("checkpoint", "kind", "tensors MiB", "peak of loading MiB", "bound MiB", "seconds"),
        _loading(),
    )
    print_markdown(("base", "ms a step", "against bfloat16"), _steps(arguments.steps))


def _model(layers: int, dtype: torch.dtype) -> PreTrainedModel:
    torch.manual_seed(SEED)
    config = OlmoeConfig(
        vocab_size=1024,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        num_experts=32,
        num_experts_per_tok=2,
        use_cache=False,
    )
    # transformers' own to() is typed as one of several kinds of callables.
    return torch.nn.Module.to(OlmoeForCausalLM(config), dtype)


def _expert_memory() -> list[tuple[str, ...]]:
    sizes: dict[str, int] = {}
    for kind in ("bfloat16", *KINDS):
        model = _model(4, torch.bfloat16)
        if kind in KINDS:
            quantise(model, kind)
        experts = [layer.experts_module for layer in find_moe_layers(model)]
        sizes[kind] = sum(p.nbytes for module in experts for p in module.parameters())
        stacks = [stack for module in experts for stack in packed_stacks(module).values()]
        sizes[kind] += sum(stack.nbytes() for stack in stacks)
    return [
        (kind, f"{size / MIB:.1f}", f"{size / sizes['bfloat16']:.3f}")
        for kind, size in sizes.items()
    ]


def _loading() -> list[tuple[str, ...]]:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        model = _model(16, torch.bfloat16)
        for name, original in FORMATS.items():
            path = Path(folder) / name.replace(" ", "-")
            model.save_pretrained(path, max_shard_size=SHARD, save_original_format=original)
        del model
        gc.collect()
        for name in FORMATS:
            for kind in KINDS:
                rows.append(_loading_row(Path(folder) / name.replace(" ", "-"), name, kind))
    return rows


def _loading_row(folder: Path, name: str, kind: str) -> tuple[str, ...]:
    command = [sys.executable, "-m", "benchmarks.four_bits", "--load", str(folder), kind]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result = json.loads(done.stdout.splitlines()[-1])
    sizes = (result["tensors"], result["peak"], result["tensors"] + SHARD)
    return name, kind, *(f"{size / MIB:.0f}" for size in sizes), f"{result['seconds']:.1f}"


def _load(folder: str, kind: str) -> dict[str, float]:
    """Load in this process; return bytes of the tensors, peak of anonymous memory, seconds."""
    start, peak, done = _anonymous(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.001):
            peak = max(peak, _anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    begin = time.perf_counter()
    model = OlmoeForCausalLM.from_pretrained(
        folder,
        dtype=torch.bfloat16,
        quantization_config=quantization_config(kind, torch.bfloat16),
        device_map={"": "cpu"},
    )
    seconds = time.perf_counter() - begin
    done.set()
    watcher.join()
    tensors = sum(t.nbytes for t in [*model.parameters(), *model.buffers()])
    return {"tensors": tensors, "peak": peak - start, "seconds": seconds}


def _anonymous() -> int:
    """Return this process's anonymous memory in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def _steps(count: int) -> list[tuple[str, ...]]:
    kinds = {
        "bfloat16": torch.bfloat16,
        "nf4, bfloat16": torch.bfloat16,
        "int8, bfloat16": torch.bfloat16,
        "float32": torch.float32,
        "nf4, float32": torch.float32,
    }
    runs = {name: _prepare(name.partition(",")[0], dtype) for name, dtype in kinds.items()}
    times: dict[str, list[float]] = {name: [] for name in kinds}
    for step in range(count + 1):
        for name, run in runs.items():
            seconds = _step(*run)
            if step:  # the first one warms up
                times[name].append(seconds)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return [
        (name, f"{1000 * value:.0f}", f"{value / medians['bfloat16']:.2f}")
        for name, value in medians.items()
    ]


def _prepare(kind: str, dtype: torch.dtype) -> tuple[Any, ...]:
    model = _model(4, dtype)
    if kind in KINDS:
        quantise(model, kind)
    layers = find_moe_layers(model)
    adapt(model, layers, Adaptation("expert-lora", head=False), SEED)
    trainables = Trainables(model.train(), layers)
    optimiser = torch.optim.AdamW(trainables.named_parameters().values(), lr=1e-3)
    ids = torch.randint(0, 1024, (4, 64), generator=torch.Generator().manual_seed(SEED))
    return model, optimiser, {"input_ids": ids, "labels": ids}


def _step(model: Any, optimiser: Any, batch: dict[str, torch.Tensor]) -> float:
    begin = time.perf_counter()
    optimiser.zero_grad(set_to_none=True)
    model(**batch).loss.backward()
    optimiser.step()
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
