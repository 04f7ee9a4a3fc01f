"""A training step on one GPU: tokens a second against transformers + PEFT, and memory in NF4.

    python -m benchmarks.gpu_step                (one GPU of 80 GB, under 10 minutes)
    python -m benchmarks.gpu_step --scale 0.02   (small models, for a machine without a GPU)

OLMoE-1B-7B of random weights in bfloat16, LoRA of rank 8 on every expert, texts of 512 random
tokens in batches of 4 or 16, gradient checkpointing, AdamW: a client's training loop, and a plain
loop over the model with PEFT's ``target_parameters`` and grouped products. The ways take turns,
each with a model of its own; medians over the turns, after one that warms up. Then a client's step
with the experts of gpt-oss-20b's sizes in NF4: peak memory of the step, and of its tensors.

No download, no data: models and texts are made here.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, GptOssConfig, PreTrainedConfig, PreTrainedModel

from benchmarks.cells import print_markdown, run_config
from benchmarks.random_checkpoint import full_size_config
from fedmoe_app import find_moe_layers, parse_run_config
from fedmoe_app.client.train import LocalRun, train, train_batches
from fedmoe_app.config.schema import TrainConfig
from fedmoe_app.data.encoding import Row
from fedmoe_app.data.tokenizer import load_tokenizer
from fedmoe_app.moe.loading import PRESETS
from fedmoe_app.moe.quantised.quantise import quantise
from fedmoe_app.moe.routing import RoutingRecorder
from fedmoe_app.moe.training.adapt import Adaptation, adapt
from fedmoe_app.moe.training.trainable import Trainables
from fedmoe_app.tasks.causal_lm import CausalLM

SEED, RANK = 0, 8
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# From the published config.json of gpt-oss-20b.
GPT_OSS: Mapping[str, Any] = dict(
    vocab_size=201088,
    hidden_size=2880,
    intermediate_size=2880,
    num_hidden_layers=24,
    num_local_experts=32,
    num_experts_per_tok=4,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="share of every size")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4, help="in a turn")
    parser.add_argument("--batches", default="4,16", help="texts in a batch")
    arguments = parser.parse_args()
    length = 512 if arguments.scale == 1 else 32
    name = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "a CPU"
    print(f"{name}, PyTorch {torch.__version__}\n")
    vocabulary = len(load_tokenizer("qwen3moe-tiny", PRESETS))
    olmoe = full_size_config("olmoe-1b-7b", arguments.scale, vocabulary)
    for batch in map(int, arguments.batches.split(",")):
        _print_speed(olmoe, batch, length, arguments)
    _print_memory(_gpt_oss(arguments.scale, vocabulary), length)


def _print_speed(
    config: PreTrainedConfig, batch: int, length: int, arguments: argparse.Namespace
) -> None:
    makers = {"transformers + PEFT": _peft, "a client": _client}
    runs = {name: make(_model(config), batch, length) for name, make in makers.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(arguments.turns + 1):
        for name, run in runs.items():
            _wait()
            begin = time.perf_counter()
            run(arguments.steps)
            _wait()
            if turn:  # the first one warms up
                seconds[name].append((time.perf_counter() - begin) / arguments.steps)
    base = statistics.median(seconds["transformers + PEFT"])
    rows = [
        (
            name,
            f"{batch * length / statistics.median(found):,.0f}",
            f"{min(found) * 1000:.0f} to {max(found) * 1000:.0f}",
            f"{base / statistics.median(found):.2f}",
        )
        for name, found in seconds.items()
    ]
    headers = (f"{batch} texts of {length} tokens", "tokens/s", "ms a step", "times as fast")
    print_markdown(headers, rows)
    print(flush=True)
    del runs
    _free()


def _print_memory(config: PreTrainedConfig, length: int) -> None:
    model = _model(config)
    quantise(model, "nf4")
    _free()
    run = _client(model, 4, length)
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    run(2)
    tensors = reserved = 0
    if DEVICE.type == "cuda":
        tensors, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    row = ("gpt-oss-20b's sizes, NF4, 4 texts", f"{tensors / 1e9:.2f}", f"{reserved / 1e9:.2f}")
    print_markdown(("a client's step", "peak of tensors GB", "reserved GB"), [row])


def _gpt_oss(scale: float, vocabulary: int) -> PreTrainedConfig:
    if scale == 1:
        return GptOssConfig(**GPT_OSS)
    small = dict(hidden_size=64, intermediate_size=64, num_hidden_layers=2, head_dim=16)
    heads = dict(num_attention_heads=4, num_key_value_heads=4, vocab_size=vocabulary)
    return GptOssConfig(**{**GPT_OSS, **small, **heads, "num_local_experts": 4})


def _model(config: PreTrainedConfig) -> PreTrainedModel:
    """Return it with random weights in bfloat16, made where it runs."""
    torch.manual_seed(SEED)
    config.use_cache = False
    with DEVICE:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    checked: PreTrainedModel = model.train()
    return checked


def _checkpointed(model: PreTrainedModel) -> None:
    model.gradient_checkpointing_enable({"use_reentrant": False})


def _options(batch: int, steps: int) -> TrainConfig:
    overrides = {"train.per-device-train-batch-size": batch, "train.max-steps": steps}
    return parse_run_config(run_config({"scheme": "fedavg", **overrides})).train


def _texts(batch: int, length: int) -> tuple[CausalLM, list[Row]]:
    """Return the task, and texts of random tokens whose second half is learnt."""
    tokenizer = load_tokenizer("qwen3moe-tiny", PRESETS)
    generator = torch.Generator().manual_seed(SEED)
    ids = torch.randint(4, 256, (4 * batch, length), generator=generator).tolist()
    half = length // 2
    rows = [Row(input_ids=text, labels=[-100] * half + text[half:]) for text in ids]
    return CausalLM(tokenizer, length, encoder_decoder=False), rows


def _peft(model: PreTrainedModel, batch: int, length: int) -> Callable[[int], None]:
    task, rows = _texts(batch, length)
    _checkpointed(model)
    targets = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    lora = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_parameters=targets)
    adapted: Any = get_peft_model(model, lora)
    adapted.set_experts_implementation("grouped_mm")
    trained = [p for p in adapted.parameters() if p.requires_grad]

    def run(steps: int) -> None:
        options = _options(batch, steps)
        optimiser = torch.optim.AdamW(trained, lr=options.learning_rate, fused=True)
        for examples in train_batches(rows, options, SEED):
            optimiser.zero_grad(set_to_none=True)
            task.loss(adapted, task.collate(examples, DEVICE)).backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimiser.step()

    return run


def _client(model: PreTrainedModel, batch: int, length: int) -> Callable[[int], None]:
    task, rows = _texts(batch, length)
    layers = find_moe_layers(model)
    adapt(model, layers, Adaptation("expert-lora", False, False, rank=RANK, alpha=2 * RANK), SEED)
    _checkpointed(model)
    trainables = Trainables(model, layers, stacked=True)

    def run(steps: int) -> None:
        with RoutingRecorder(layers) as recorder:
            parts = LocalRun(model, trainables, recorder, task, {}, layers[0].top_k)
            train(parts, rows, _options(batch, steps), SEED)

    return run


def _wait() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def _free() -> None:
    gc.collect()
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
