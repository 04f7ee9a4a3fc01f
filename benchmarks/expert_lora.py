"""LoRA on each expert: this package against PEFT's ``target_parameters``, at the same rank.

    python -m benchmarks.expert_lora [--repeats 5] [--steps 3] [--experts 16,32,64] [--rank 8]

An OLMoE of random weights in float32 (hidden 256, 4 layers, experts 512 wide, top-2) is frozen and
gets LoRA on both maps of every expert; AdamW (fused) trains it on batches of 16 texts of 64 random
tokens, one thread. CPU time: the ways take turns in one process, step by step, and medians are
compared. Added memory: the peak of anonymous memory (Linux: RssAnon, sampled every millisecond)
during some steps over that of the loaded model, activations included, each way in processes of its
own. "frozen" trains the gates alone: what a step costs whatever is done for the experts.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import OlmoeConfig, OlmoeForCausalLM, PreTrainedModel

from benchmarks.cells import print_markdown
from benchmarks.memory import MIB, PeakMemory
from fedmoe_app import find_moe_layers
from fedmoe_app.moe.training.adapt import Adaptation, adapt
from fedmoe_app.moe.training.trainable import Trainables

SEED = 0
BATCH = (16, 64)
WAYS = ("frozen", "PEFT", "fedmoe")
VOCABULARY = 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="in a process that measures memory")
    parser.add_argument("--memory-repeats", type=int, default=5, help="processes a way")
    parser.add_argument("--experts", default="16,32,64")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        print(added(arguments.way, int(arguments.experts), arguments.rank, arguments.steps))
        return
    torch.set_num_threads(1)
    for experts in map(int, arguments.experts.split(",")):
        headers = (f"{experts} experts", "ms a step", "against PEFT", "added MiB", "against PEFT")
        print_markdown(headers, _compare(experts, arguments))
        print(flush=True)


def _compare(experts: int, arguments: argparse.Namespace) -> list[tuple[str, ...]]:
    """Return the row of every way."""
    seconds = _seconds(experts, arguments.rank, arguments.repeats)
    memory = _memory(experts, arguments)
    return [
        (
            way,
            f"{1000 * seconds[way]:.0f}",
            f"{seconds['PEFT'] / seconds[way]:.2f} x faster",
            f"{memory[way] / MIB:.0f}",
            f"{memory[way] / memory['PEFT']:.2f}",
        )
        for way in WAYS
    ]


def _seconds(experts: int, rank: int, repeats: int) -> dict[str, float]:
    """Return the median CPU time of a step; the ways take turns."""
    runs = {way: _prepare(_model(experts), way, rank) for way in WAYS}
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    for repeat in range(repeats + 1):
        for way, run in runs.items():
            seconds = _step(*run)
            if repeat:  # the first one warms up
                times[way].append(seconds)
    return {way: statistics.median(values) for way, values in times.items()}


def _memory(experts: int, arguments: argparse.Namespace) -> dict[str, float]:
    """Return the median of the added bytes."""
    options = ["--experts", str(experts), "--rank", str(arguments.rank)]
    options += ["--steps", str(arguments.steps)]
    found: dict[str, list[int]] = {way: [] for way in WAYS}
    for _ in range(arguments.memory_repeats):
        for way in WAYS:
            command = [sys.executable, "-m", "benchmarks.expert_lora", "--way", way, *options]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found[way].append(int(done.stdout.splitlines()[-1]))
    return {way: statistics.median(values) for way, values in found.items()}


def added(way: str, experts: int, rank: int, steps: int) -> int:
    """Train in this process; return the bytes at the peak over those of the model."""
    torch.set_num_threads(1)
    model = _model(experts)
    with PeakMemory() as memory:
        run = _prepare(model, way, rank)
        for _ in range(steps):
            _step(*run)
    return memory.added


def _prepare(model: Any, way: str, rank: int) -> tuple[Any, torch.optim.Optimizer]:
    """Return the model with its adapters, and their optimiser."""
    adapted, parameters = _adapted(model, way, rank)
    return adapted, torch.optim.AdamW(parameters, lr=1e-3, fused=True)


def _model(experts: int) -> PreTrainedModel:
    torch.manual_seed(SEED)
    config = OlmoeConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=8,
        num_experts=experts,
        num_experts_per_tok=2,
        max_position_embeddings=BATCH[1],
        use_cache=False,
    )
    return OlmoeForCausalLM(config).train()


def _adapted(model: Any, way: str, rank: int) -> tuple[Any, Sequence[torch.Tensor]]:
    """Return the model with its adapters, and what is trained."""
    if way == "PEFT":
        targets = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_parameters=targets)
        wrapped: Any = get_peft_model(model, config)
        wrapped.set_experts_implementation("grouped_mm")
        return wrapped, [p for p in wrapped.parameters() if p.requires_grad]
    layers = find_moe_layers(model)
    if way == "frozen":
        model.requires_grad_(False)
        for layer in layers:
            layer.router.requires_grad_(True)
        model.set_experts_implementation("grouped_mm")
        return model, [p for p in model.parameters() if p.requires_grad]
    lora = Adaptation("expert-lora", gates=False, head=False, rank=rank, alpha=2 * rank)
    adapt(model, layers, lora, SEED)
    return model, [*Trainables(model, layers).named_parameters().values()]


def _step(model: Any, optimiser: torch.optim.Optimizer) -> float:
    ids = torch.randint(0, VOCABULARY, BATCH, generator=torch.Generator().manual_seed(SEED))
    begin = time.thread_time()
    optimiser.zero_grad(set_to_none=True)
    model(input_ids=ids, labels=ids).loss.backward()
    optimiser.step()
    return time.thread_time() - begin


if __name__ == "__main__":
    main()
