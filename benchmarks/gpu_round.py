"""A QLoRA round of full-size MoE models on one GPU: memory, tokens a second, bytes.

    python -m benchmarks.gpu_round [--models olmoe-1b-7b,qwen1.5-moe-a2.7b] [--data dolly15k]
    python -m benchmarks.gpu_round --limits 12,24   (GB of the GPU that each model may use)
    python -m benchmarks.gpu_round --scale 0.1      (small models, for a machine without a GPU)

A checkpoint of the published architecture with random weights in bfloat16 is written to the disk
(14 GB for OLMoE-1B-7B, 29 GB for Qwen1.5-MoE-A2.7B, 31 GB for DeepSeek-V2-Lite) and removed again.
It is loaded in NF4, and one client does one round on Dolly: LoRA of rank 8 on every expert, gates
trained, bfloat16, gradient checkpointing, texts of at most 512 tokens in batches of 4, hold-out
scored before and after. The tokenizer is the small one of the presets, which changes no memory.

"Tensors" is the peak of what tensors took, "reserved" of what PyTorch's allocator had taken for
them, "device" adds what CUDA itself holds: what a card must have (on a CPU all are RssAnon over the
start). Tokens a second are of training alone, padding not counted. "Full reply" is what FedAvg over
all parameters would send, in float32 as this program sends everything.

With ``--limits`` PyTorch gets no more than so many GB less what CUDA holds: a model that needs more
fails with "out of memory".
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch

from benchmarks.cells import SHARED_DATA, print_markdown, run_config
from benchmarks.clock import TICKS
from benchmarks.memory import PeakMemory
from benchmarks.random_checkpoint import ARCHITECTURES, full_size_config, write_checkpoint
from fedmoe_app import ClientUpdate, RunConfig, parse_run_config
from fedmoe_app.client.round import train_client
from fedmoe_app.config.node import Node
from fedmoe_app.data.tokenizer import load_tokenizer
from fedmoe_app.moe.layers import read_state
from fedmoe_app.moe.loading import PRESETS
from fedmoe_app.moe.quantised.packed import packed_stacks
from fedmoe_app.tasks.setup import Setup, device, load_setup, server_data
from fedmoe_app.wire.records import (
    TrainTask,
    decode_state,
    encode_state,
    encode_update,
    record_bytes,
)

GB = 10**9
NODES = 8  # partitions of the data, of which the client has one
ROUND = ("model", "parameters", "load s", "round s", "step s", "tokens/s", "twice the same")
SENT = ("model", "MB up", "full reply MB", "share")
MEMORY = (
    "model",
    "experts GB in 16 bits",
    "in NF4",
    "loading: device GB",
    "round: tensors",
    "reserved",
    "device",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--models", default="olmoe-1b-7b,qwen1.5-moe-a2.7b", help=_names())
    parser.add_argument("--data", type=Path, default=SHARED_DATA / "dolly15k")
    parser.add_argument("--scale", type=float, help="share of every size; needs no GPU")
    parser.add_argument("--steps", type=int, default=8, help="optimiser steps of 4 batches")
    parser.add_argument(
        "--folder", type=Path, help="for the checkpoint; a temporary one if left out"
    )
    parser.add_argument(
        "--twice", action="store_true", help="train again and compare the replies bit for bit"
    )
    parser.add_argument("--limits", help="GB of the GPU by model, separated by commas")
    arguments = parser.parse_args()
    _check(arguments)
    names = arguments.models.split(",")
    limits = map(float, arguments.limits.split(",")) if arguments.limits else [0.0] * len(names)
    tables = [_measure(name, limit, arguments) for name, limit in zip(names, limits, strict=True)]
    for headers, rows in zip((MEMORY, ROUND, SENT), zip(*tables, strict=True), strict=True):
        print_markdown(headers, rows)
        print()
    print(f"on {_device_name()}, torch {torch.__version__}, scale {arguments.scale or 1:g}")


def _names() -> str:
    return f"from {', '.join(ARCHITECTURES)}"


def _check(arguments: argparse.Namespace) -> None:
    if not torch.cuda.is_available() and arguments.scale is None:
        raise SystemExit(
            "no CUDA device: the full-size models need one; --scale 0.1 runs small ones anywhere"
        )
    if arguments.scale is not None and not 0 < arguments.scale <= 1:
        raise SystemExit(f"--scale {arguments.scale:g}: must be above 0 and at most 1")
    if arguments.limits and not torch.cuda.is_available():
        raise SystemExit("--limits: no CUDA device")
    if unknown := set(arguments.models.split(",")) - set(ARCHITECTURES):
        raise SystemExit(f"--models {', '.join(sorted(unknown))}: unknown; choose {_names()}")
    if not (arguments.data / "train.jsonl.gz").is_file():
        raise SystemExit(f"--data {arguments.data}: holds no train.jsonl.gz of Dolly")


def _measure(name: str, limit: float, arguments: argparse.Namespace) -> list[tuple[str, ...]]:
    """Return a row of each table."""
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        path = Path(folder)
        tokenizer = load_tokenizer("qwen3moe-tiny", PRESETS)
        config = full_size_config(name, arguments.scale or 1.0, len(tokenizer))
        parameters = write_checkpoint(config, tokenizer, path, str(device()))
        _free()
        if limit:
            _limit(limit)
        run = _run_config(path, arguments)
        task, loading, sizes = _load(run)
        print(f"{name}: loaded in {loading.seconds:.0f} s", file=sys.stderr)
        update, training = _train(run, task)
        step, speed = _step_seconds(update), _tokens_per_second(update)
        print(f"{name}: {step:.2f} s a step, {training.device / GB:.2f} GB", file=sys.stderr)
        same = _same(update, _train(run, task)[0]) if arguments.twice else "–"
    sent = record_bytes(encode_update(update))
    return [
        (
            name,
            *_gb(*sizes),
            *_gb(loading.device, training.tensors, training.reserved, training.device),
        ),
        (
            name,
            f"{parameters / 1e6:,.0f} M",
            f"{loading.seconds:.0f}",
            f"{training.seconds:.0f}",
            f"{step:.2f}",
            f"{speed:.0f}",
            same,
        ),
        (
            name,
            f"{sent / 1e6:.1f}",
            f"{4 * parameters / 1e6:.0f}",
            f"{sent / (4 * parameters):.4f}",
        ),
    ]


def _limit(gigabytes: float) -> None:
    """Let PyTorch take what is left of so many GB beside what CUDA holds."""
    left = gigabytes * GB - _beside()
    torch.cuda.set_per_process_memory_fraction(left / torch.cuda.mem_get_info()[1])


def _gb(*sizes: int) -> list[str]:
    return [f"{size / GB:.2f}" for size in sizes]


def _run_config(model: Path, arguments: argparse.Namespace) -> RunConfig:
    return parse_run_config(
        run_config(
            {
                "scheme": "benchmarks.clock:Clock",
                "model.name": str(model),
                "model.train": "expert-lora",
                "model.quantization": "nf4",
                "model.dtype": "bfloat16",
                "model.lora-rank": 8,
                "data.source": str(arguments.data / "train.jsonl.gz"),
                "data.task": "causal-lm",
                "data.context-field": "context",
                "data.partition": "iid",
                "data.max-length": 512,
                "data.max-train-examples": 200 * arguments.steps,
                "data.local-test-fraction": 0.05,
                "train.learning-rate": 1e-4,
                "train.per-device-train-batch-size": 4,
                "train.per-device-eval-batch-size": 4,
                "train.gradient-accumulation-steps": 4,
                "train.gradient-checkpointing": True,
                "train.max-steps": arguments.steps,
            }
        )
    )


def _load(run: RunConfig) -> tuple[TrainTask, Meter, tuple[int, int]]:
    """Do the server's part: load, and say what the client starts from and what experts take."""
    data = server_data(run.data)
    with Meter() as meter:
        setup = load_setup(run, data.label_names)
    sizes = _expert_bytes(setup)
    state = decode_state(encode_state(read_state(setup.model, setup.layers)))
    fingerprint = setup.base_fingerprint
    del setup
    _free()
    task = TrainTask(1, state, data.label_names, data.fingerprint, base_fingerprint=fingerprint)
    return task, meter, sizes


def _expert_bytes(setup: Setup) -> tuple[int, int]:
    """Return what the experts' maps take in 16 bits, and what they take as they are."""
    full = packed = 0
    for layer in setup.layers:
        for name, stack in packed_stacks(layer.experts_module).items():
            experts, outputs = layer.experts_module.get_parameter(name).shape[:2]
            full += 2 * experts * outputs * stack.in_features
            packed += stack.nbytes()
    return full, packed


def _train(run: RunConfig, task: TrainTask) -> tuple[ClientUpdate, Meter]:
    TICKS.clear()
    with Meter() as meter:
        update = train_client(run, Node(0, 0, NODES, None), task)
    _free()
    return update, meter


def _same(one: ClientUpdate, other: ClientUpdate) -> str:
    """Return "yes", or how many of the tensors differ."""
    first, second = dict(one.changes.named()), dict(other.changes.named())
    both = first.keys() & second.keys()
    every = first.keys() | second.keys()  # an expert that no token reached sends nothing
    same = sum(torch.equal(first[key], second[key]) for key in both)
    return "yes" if same == len(every) else f"{len(every) - same} of {len(every)} differ"


def _tokens_per_second(update: ClientUpdate) -> float:
    """Return the tokens of the batches between the first and the last tick, by their time."""
    share = (len(TICKS) - 1) / len(TICKS)  # as if all batches had equally many
    return float(update.routing.tokens.max()) * share / (TICKS[-1] - TICKS[0])


def _step_seconds(update: ClientUpdate) -> float:
    """Return the mean seconds of an optimiser step with all its batches."""
    batch = (TICKS[-1] - TICKS[0]) / (len(TICKS) - 1)
    return batch * len(TICKS) / update.metrics["num-steps"]


@dataclass
class Meter(AbstractContextManager["Meter"]):
    """Seconds, and peaks of memory in bytes; on a CPU all three are the same."""

    seconds: float = 0.0
    tensors: int = 0
    reserved: int = 0
    device: int = 0

    def __enter__(self) -> Meter:
        # Its thread would take time from one that has a GPU to keep busy.
        self._memory = None if torch.cuda.is_available() else PeakMemory()
        if self._memory is None:
            torch.cuda.reset_peak_memory_stats()
        else:
            self._memory.__enter__()
        self._begin = time.perf_counter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._memory is None:
            torch.cuda.synchronize()
        self.seconds = time.perf_counter() - self._begin
        if self._memory is None:
            self.tensors = torch.cuda.max_memory_allocated()
            self.reserved = torch.cuda.max_memory_reserved()
            self.device = self.reserved + _beside()
        else:
            self._memory.__exit__(kind, error, trace)
            self.tensors = self.reserved = self.device = self._memory.added


def _beside() -> int:
    """Return the bytes of the GPU that are taken, but not by PyTorch's allocator."""
    free, total = torch.cuda.mem_get_info()
    return total - free - torch.cuda.memory_reserved()


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "a CPU"


if __name__ == "__main__":
    main()
