"""Count what a training step asks of a GPU: operators, and waits for their results.

    python -m benchmarks.step_operators [--layers 4] [--experts 64] [--rank 8]

Needs no GPU: PyTorch's operators are counted on the CPU below autograd, where each would be a
kernel or more on a GPU, in one optimiser step of a client's loop (two steps less one, so that what
is done once a round is left out). A wait is whatever a GPU would have to finish for: a number read
by Python, a copy to the host, or an operator whose result's size depends on values. Grouped
products count as one operator, as on a card where they are one (compute capability 9.0 or 10.0,
bfloat16). The same counts for plain loops in transformers and PEFT (``target_parameters``), with
the same batch, loss, clipping and AdamW.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import OlmoeConfig, OlmoeForCausalLM, PreTrainedModel

from benchmarks.cells import print_markdown, run_config
from fedmoe_app import find_moe_layers, parse_run_config
from fedmoe_app.client.train import LocalRun, train, train_batches
from fedmoe_app.config.schema import TrainConfig
from fedmoe_app.data.encoding import Row
from fedmoe_app.data.tokenizer import load_tokenizer
from fedmoe_app.moe.loading import PRESETS
from fedmoe_app.moe.routing import RoutingRecorder
from fedmoe_app.moe.training.adapt import Adaptation, adapt
from fedmoe_app.moe.training.trainable import Trainables
from fedmoe_app.tasks.causal_lm import CausalLM

SEED = 0
TEXTS, LENGTHS = 4, (20, 32)  # in a batch, and tokens of each
_WAITS = {"_local_scalar_dense", "nonzero", "bincount", "masked_select", "_unique2"}
_TO_HOST = {"tolist", "cpu", "numpy"}
_INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}


@dataclass
class Counts:
    """Of one optimiser step, and of what the optimiser gets."""

    operators: int = 0
    waits: int = 0
    tensors: int = 0

    def less(self, other: Counts) -> Counts:
        """Return this without another's, with this one's number of tensors."""
        operators, waits = self.operators - other.operators, self.waits - other.waits
        return Counts(operators, waits, self.tensors)


class _Operators(TorchDispatchMode):
    """Count operators below autograd."""

    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self._counts = counts

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        name = func.overloadpacket.__name__
        self._counts.operators += 1
        self._counts.waits += name in _WAITS or (name in _INDEXED and _by_flags(args[1]))
        return func(*args, **(kwargs or {}))


class _Reads(TorchFunctionMode):
    """Count what Python reads without an operator."""

    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self._counts = counts

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        self._counts.waits += getattr(func, "__name__", "") in _TO_HOST
        return func(*args, **(kwargs or {}))


def _by_flags(indices: Sequence[Tensor | None]) -> bool:
    return any(index is not None and index.dtype == torch.bool for index in indices)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--experts", type=int, default=64)
    parser.add_argument("--rank", type=int, default=8)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sizes = (arguments.layers, arguments.experts)
    for lora in (True, False):
        ways = _ways(sizes, arguments.rank if lora else 0)
        counts = {name: count(run) for name, run in ways.items()}
        plain = next(iter(counts.values()))
        rows = [
            (
                name,
                f"{c.operators:,}",
                f"{c.operators / plain.operators:.2f}",
                str(c.waits),
                str(c.tensors),
            )
            for name, c in counts.items()
        ]
        what = "LoRA on experts" if lora else "experts themselves"
        head = f"{sizes[0]} layers of {sizes[1]} experts, {what}"
        print_markdown((head, "operators a step", "ratio", "waits", "optimiser's tensors"), rows)
        print()


def count(run: Callable[[int], int]) -> Counts:
    """Return the counts of one step of ``run(steps)``, which returns the optimiser's tensors."""
    run(1)  # what is made once
    found = []
    for steps in (3, 2):
        counts = Counts()
        with _Reads(counts), _Operators(counts):
            counts.tensors = run(steps)
        found.append(counts)
    return found[0].less(found[1])


def _ways(sizes: tuple[int, int], rank: int) -> dict[str, Callable[[int], int]]:
    some = range(sizes[1] // 4)
    return {
        "transformers + PEFT" if rank else "transformers": _plain(sizes, rank),
        "a client, one by one (CPU)": _client(sizes, rank, None, stacked=False),
        "a client, stacked (GPU)": _client(sizes, rank, None, stacked=True),
        f"a client, stacked, {len(some)} chosen": _client(sizes, rank, some, stacked=True),
    }


def _model(sizes: tuple[int, int], vocabulary: int) -> PreTrainedModel:
    torch.manual_seed(SEED)
    config = OlmoeConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=sizes[0],
        num_attention_heads=4,
        num_key_value_heads=4,
        num_experts=sizes[1],
        num_experts_per_tok=8,
        max_position_embeddings=LENGTHS[1],
        use_cache=False,
    )
    return OlmoeForCausalLM(config).train()


def _config(steps: int) -> TrainConfig:
    overrides = {"train.per-device-train-batch-size": TEXTS, "train.max-steps": steps}
    return parse_run_config(run_config({"scheme": "fedavg", **overrides})).train


def _task() -> tuple[CausalLM, list[Row], int]:
    """Return the task, texts of random tokens whose second half is learnt, and the vocabulary."""
    tokenizer = load_tokenizer("qwen3moe-tiny", PRESETS)
    generator = torch.Generator().manual_seed(SEED)
    lengths = torch.randint(LENGTHS[0], LENGTHS[1] + 1, (4 * TEXTS,), generator=generator).tolist()
    texts = [torch.randint(4, 256, (n,), generator=generator).tolist() for n in lengths]
    rows = [
        Row(input_ids=ids, labels=[-100] * (len(ids) // 2) + ids[len(ids) // 2 :]) for ids in texts
    ]
    return CausalLM(tokenizer, LENGTHS[1], encoder_decoder=False), rows, len(tokenizer)


def _plain(sizes: tuple[int, int], rank: int) -> Callable[[int], int]:
    task, rows, vocabulary = _task()
    model: Any = _model(sizes, vocabulary)
    if rank:
        targets = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_parameters=targets)
        model = get_peft_model(model, config)
    else:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(".experts." in name)
    model.set_experts_implementation("grouped_mm")
    trained = [p for p in model.parameters() if p.requires_grad]

    def run(steps: int) -> int:
        options = _config(steps)
        optimiser = torch.optim.AdamW(trained, lr=options.learning_rate, fused=True)
        for examples in train_batches(rows, options, SEED):
            batch = task.collate(examples, torch.device("cpu"))
            optimiser.zero_grad(set_to_none=True)
            task.loss(model, batch).backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimiser.step()
        return len(trained)

    return run


def _client(
    sizes: tuple[int, int], rank: int, chosen: Sequence[int] | None, *, stacked: bool
) -> Callable[[int], int]:
    task, rows, vocabulary = _task()
    model = _model(sizes, vocabulary)
    layers = find_moe_layers(model)
    what = "expert-lora" if rank else "experts"
    adapt(model, layers, Adaptation(what, False, False, rank=rank or 1, alpha=2 * rank), SEED)
    experts = None if chosen is None else [chosen] * len(layers)
    trainables = Trainables(model, layers, experts, stacked=stacked)

    def run(steps: int) -> int:
        with RoutingRecorder(layers) as recorder:
            parts = LocalRun(model, trainables, recorder, task, {}, layers[0].top_k)
            train(parts, rows, _config(steps), SEED)
        return len(trainables.leaves())

    return run


if __name__ == "__main__":
    main()
