"""A QLoRA round of full-size MoE models on one GPU: memory, tokens a second, bytes.

    python -m benchmarks.gpu_round [--models olmoe-1b-7b,qwen1.5-moe-a2.7b] [--data dolly15k]
    python -m benchmarks.gpu_round --scale 0.1      (small models, for a machine without a GPU)

A checkpoint of the published architecture with random weights in bfloat16 is written to the disk
(14 GB for OLMoE-1B-7B, 29 GB for Qwen1.5-MoE-A2.7B, 31 GB for DeepSeek-V2-Lite) and removed again.
It is loaded in NF4, and one client does one round on Dolly: LoRA of rank 8 on every expert, gates
trained, bfloat16, gradient checkpointing, texts of at most 512 tokens in batches of 4, hold-out
scored before and after. The tokenizer is the small one of the presets, which changes no memory.

Peaks are those of PyTorch's allocator (on a CPU: RssAnon over the start). Tokens a second are of
training alone, padding not counted. "Full reply" is what FedAvg over all parameters would send, in
float32 as this program sends everything.
"""

from __future__ import annotations

import argparse
import gc
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
from fedmoe_app.config import RunConfig, parse_run_config
from fedmoe_app.data.tokenizer import load_tokenizer
from fedmoe_app.local.node import Node
from fedmoe_app.local.round import train_client
from fedmoe_app.local.setup import device, load_setup, server_data
from fedmoe_app.moe.layers import read_state
from fedmoe_app.moe.loading import PRESETS
from fedmoe_app.wire.records import (
    TrainTask,
    decode_state,
    encode_state,
    encode_update,
    record_bytes,
)
from fedmoe_app.wire.update import ClientUpdate

GIB = 2**30
NODES = 8  # partitions of the data, of which the client has one
HEADERS = (
    "model",
    "parameters",
    "load s",
    "load peak GiB",
    "round s",
    "round peak GiB",
    "tokens/s",
    "MB up",
    "full reply MB",
    "share",
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
    arguments = parser.parse_args()
    _check(arguments)
    rows = [_measure(name, arguments) for name in arguments.models.split(",")]
    print_markdown(HEADERS, rows)
    print(f"\non {_device_name()}, torch {torch.__version__}, scale {arguments.scale or 1:g}")


def _names() -> str:
    return f"from {', '.join(ARCHITECTURES)}"


def _check(arguments: argparse.Namespace) -> None:
    if not torch.cuda.is_available() and arguments.scale is None:
        raise SystemExit(
            "no CUDA device: the full-size models need one; --scale 0.1 runs small ones anywhere"
        )
    if arguments.scale is not None and not 0 < arguments.scale <= 1:
        raise SystemExit(f"--scale {arguments.scale:g}: must be above 0 and at most 1")
    if unknown := set(arguments.models.split(",")) - set(ARCHITECTURES):
        raise SystemExit(f"--models {', '.join(sorted(unknown))}: unknown; choose {_names()}")
    if not (arguments.data / "train.jsonl.gz").is_file():
        raise SystemExit(f"--data {arguments.data}: holds no train.jsonl.gz of Dolly")


def _measure(name: str, arguments: argparse.Namespace) -> tuple[str, ...]:
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        path = Path(folder)
        tokenizer = load_tokenizer("qwen3moe-tiny", PRESETS)
        config = full_size_config(name, arguments.scale or 1.0, len(tokenizer))
        parameters = write_checkpoint(config, tokenizer, path, str(device()))
        run = _run_config(path, arguments)
        task, loading = _load(run)
        update, training = _train(run, task)
    sent = record_bytes(encode_update(update))
    return (
        name,
        f"{parameters / 1e6:,.0f} M",
        f"{loading.seconds:.0f}",
        f"{loading.peak / GIB:.2f}",
        f"{training.seconds:.0f}",
        f"{training.peak / GIB:.2f}",
        f"{_tokens_per_second(update):.0f}",
        f"{sent / 1e6:.1f}",
        f"{4 * parameters / 1e6:.0f}",
        f"{sent / (4 * parameters):.4f}",
    )


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


def _load(run: RunConfig) -> tuple[TrainTask, Meter]:
    """Do the server's part: load, and say what the client starts from."""
    data = server_data(run)
    with Meter() as meter:
        setup = load_setup(run, data.label_names)
    state = decode_state(encode_state(read_state(setup.model, setup.layers)))
    fingerprint = setup.base_fingerprint
    del setup
    _free()
    return TrainTask(
        1, state, data.label_names, data.fingerprint, base_fingerprint=fingerprint
    ), meter


def _train(run: RunConfig, task: TrainTask) -> tuple[ClientUpdate, Meter]:
    TICKS.clear()
    with Meter() as meter:
        update = train_client(run, Node(0, 0, NODES, None), task)
    _free()
    return update, meter


def _tokens_per_second(update: ClientUpdate) -> float:
    """Return the tokens of the batches between the first and the last tick, by their time."""
    share = (len(TICKS) - 1) / len(TICKS)  # as if all batches had equally many
    return float(update.routing.tokens.max()) * share / (TICKS[-1] - TICKS[0])


@dataclass
class Meter(AbstractContextManager["Meter"]):
    """Seconds, and peak of memory in bytes."""

    seconds: float = 0.0
    peak: int = 0

    def __enter__(self) -> Meter:
        self._memory = PeakMemory()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self._memory.__enter__()
        self._begin = time.perf_counter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.seconds = time.perf_counter() - self._begin
        self._memory.__exit__(kind, error, trace)
        self.peak = self._memory.added
        if torch.cuda.is_available():
            self.peak = torch.cuda.max_memory_reserved()


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "a CPU"


if __name__ == "__main__":
    main()
