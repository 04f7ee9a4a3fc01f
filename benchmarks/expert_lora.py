"""LoRA on each expert: this package against PEFT's ``target_parameters``, at the same rank.

    python -m benchmarks.expert_lora [--repeats 5] [--steps 3] [--experts 16,32,64] [--rank 8]

An OLMoE of random weights in float32 (hidden 256, 4 layers, experts 512 wide, top-2) is frozen and
gets LoRA on both maps of every expert; AdamW (fused) trains it on batches of 16 texts of 64 random
tokens, one thread. Every way runs in processes of its own, which take turns: medians of CPU time a
step are compared, and of added memory, the peak of anonymous memory (Linux: RssAnon, sampled every
millisecond) during the steps over that of the loaded model, activations included. "frozen" trains
the gates alone: what a step costs whatever is done for the experts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import OlmoeConfig, OlmoeForCausalLM, PreTrainedModel

from benchmarks.cells import print_markdown
from benchmarks.memory import MIB, PeakMemory
from fedmoe_app.moe.adapt import Adaptation, adapt
from fedmoe_app.moe.layers import find_moe_layers
from fedmoe_app.moe.trainable import Trainables

SEED = 0
BATCH = (16, 64)
WAYS = ("frozen", "PEFT", "fedmoe")
VOCABULARY = 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="in one process, after one")
    parser.add_argument("--experts", default="16,32,64")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        found = measure(arguments.way, int(arguments.experts), arguments.rank, arguments.steps)
        print(json.dumps(found))
        return
    rows = []
    for experts in map(int, arguments.experts.split(",")):
        rows += _compare(experts, arguments)
    print_markdown(
        ("experts", "way", "ms a step", "against PEFT", "added MiB", "against PEFT"), rows
    )


def _compare(experts: int, arguments: argparse.Namespace) -> list[tuple[str, ...]]:
    """Run every way in turn; return its rows."""
    options = ["--experts", str(experts), "--rank", str(arguments.rank)]
    options += ["--steps", str(arguments.steps)]
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(arguments.repeats):
        for way in WAYS:
            command = [sys.executable, "-m", "benchmarks.expert_lora", "--way", way, *options]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found[way].append(json.loads(done.stdout.splitlines()[-1]))
    seconds = {way: statistics.median(run["seconds"] for run in found[way]) for way in WAYS}
    added = {way: statistics.median(run["added"] for run in found[way]) for way in WAYS}
    return [
        (
            str(experts),
            way,
            f"{1000 * seconds[way]:.0f}",
            f"{seconds['PEFT'] / seconds[way]:.2f} x faster",
            f"{added[way] / MIB:.0f}",
            f"{added[way] / added['PEFT']:.2f}",
        )
        for way in WAYS
    ]


def measure(way: str, experts: int, rank: int, steps: int) -> dict[str, float]:
    """Train in this process; return the median seconds of a step and the added bytes."""
    torch.set_num_threads(1)
    model = _model(experts)
    with PeakMemory() as memory:
        model, parameters = _adapted(model, way, rank)
        optimiser = torch.optim.AdamW(parameters, lr=1e-3, fused=True)
        times = [_step(model, optimiser) for _ in range(steps + 1)]
    return {"seconds": statistics.median(times[1:]), "added": memory.added}


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


def _adapted(model: Any, way: str, rank: int) -> tuple[Any, Sequence[nn.Parameter]]:
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
    return model, list(Trainables(model, layers).named_parameters().values())


def _step(model: Any, optimiser: torch.optim.Optimizer) -> float:
    ids = torch.randint(0, VOCABULARY, BATCH, generator=torch.Generator().manual_seed(SEED))
    begin = time.thread_time()
    optimiser.zero_grad(set_to_none=True)
    model(input_ids=ids, labels=ids).loss.backward()
    optimiser.step()
    return time.thread_time() - begin


if __name__ == "__main__":
    main()
