"""What does a federated client's training step cost against plain transformers?

    python -m benchmarks.step_cost [--repeats 5] [--steps 4] [--families Qwen3Moe,Olmoe]

Both train the full tensors of the experts and the gates of one model, on the same batches, by AdamW
(fused), with the same loss and clipping. Plain transformers runs its ``grouped_mm`` experts on the
stacked parameters; the client runs this package's own training loop, with the parts of a round
switched on one after the other: nothing recorded, the routing histogram (FedAvg), then
FedAlign-MoE's regions and regulariser. Where a part of the experts is trained, plain transformers
must still train whole stacks and set the gradients of the others to zero.

Models: hidden 256, 4 layers of 16 experts (512 wide), top-2, random weights in float32; batches of
8 texts of 96 to 128 random tokens. One thread. A measurement is the CPU time of a few steps; the
kinds take turns, and medians are compared, without the first turn.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.cells import print_markdown, run_config
from fedmoe_app import (
    ModelShape,
    Plan,
    RunConfig,
    Scheme,
    find_moe_layers,
    make_scheme,
    parse_run_config,
)
from fedmoe_app.client.train import LocalRun, train, train_batches
from fedmoe_app.data.encoding import Row
from fedmoe_app.data.tokenizer import load_tokenizer
from fedmoe_app.moe.loading import PRESETS
from fedmoe_app.moe.routing import RoutingRecorder
from fedmoe_app.moe.training.adapt import Adaptation, adapt
from fedmoe_app.moe.training.trainable import Trainables
from fedmoe_app.schemes.fedalign import MEAN_PROB, REFERENCE
from fedmoe_app.schemes.parts import Signal
from fedmoe_app.tasks.causal_lm import CausalLM

SEED = 0
BATCH = 8
LENGTHS = (96, 128)  # tokens of a text
SIZES: dict[str, Any] = dict(
    hidden_size=256,
    num_hidden_layers=4,
    num_attention_heads=8,
    num_key_value_heads=8,
    num_experts=16,
    num_experts_per_tok=2,
    max_position_embeddings=LENGTHS[1],
    use_cache=False,
)
FAMILIES: dict[str, dict[str, Any]] = {
    "Qwen3Moe": dict(head_dim=32, moe_intermediate_size=512, intermediate_size=512),
    "Olmoe": dict(intermediate_size=512),
    "Mixtral": dict(intermediate_size=512),
}


class NothingRecorded(RoutingRecorder):
    """A recorder without hooks, to whom every expert counts as used."""

    def __enter__(self) -> NothingRecorded:
        return self

    def take_routed(self) -> Tensor:
        """Return true for every expert, ``[L, E]``."""
        return torch.ones(len(self._layers), self._layers[0].num_experts, dtype=torch.bool)


@dataclass(frozen=True)
class Kind:
    """One way to train: a row of the table."""

    name: str
    run: Callable[[], None]


@dataclass(frozen=True)
class Bench:
    """What all kinds of one family share."""

    family: str
    config: RunConfig
    tokenizer: PreTrainedTokenizerBase
    rows: Sequence[Row]

    def model(self) -> PreTrainedModel:
        """Return the model, the same each time, with experts and gates to be trained."""
        values = {**SIZES, **FAMILIES[self.family]}
        if self.family == "Mixtral":
            values["num_local_experts"] = values.pop("num_experts")
        config = getattr(transformers, f"{self.family}Config")(
            vocab_size=len(self.tokenizer), pad_token_id=self.tokenizer.pad_token_id, **values
        )
        torch.manual_seed(SEED)
        model: PreTrainedModel = getattr(transformers, f"{self.family}ForCausalLM")(config)
        adapt(model, find_moe_layers(model), Adaptation("experts", head=False), SEED)
        return model.train()

    def task(self) -> CausalLM:
        """Return instruction tuning."""
        return CausalLM(self.tokenizer, LENGTHS[1], encoder_decoder=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="in one measurement")
    parser.add_argument("--families", default="Qwen3Moe,Olmoe")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = load_tokenizer("qwen3moe-tiny", PRESETS)
    rows = _rows(BATCH * arguments.steps, len(tokenizer))
    for family in arguments.families.split(","):
        bench = Bench(family, _config(arguments.steps), tokenizer, rows)
        for experts in (None, 4):
            kinds = _kinds(bench, experts)
            medians = _measure(kinds, arguments.repeats, arguments.steps)
            of = "16 of 16" if experts is None else f"{experts} of 16"
            print_markdown((f"{family}, {of} experts trained", "ms a step", "ratio"), medians)
            print()


def _config(steps: int) -> RunConfig:
    overrides = {
        "scheme": "fedalign",
        "train.per-device-train-batch-size": BATCH,
        "train.max-steps": steps,
        "train.learning-rate": 1e-4,
    }
    return parse_run_config(run_config(overrides))


def _rows(number: int, vocabulary: int) -> list[Row]:
    """Return texts of random tokens; the last third of each is the response."""
    generator = torch.Generator().manual_seed(SEED)
    lengths = torch.randint(LENGTHS[0], LENGTHS[1] + 1, (number,), generator=generator).tolist()
    texts = [torch.randint(4, vocabulary, (n,), generator=generator).tolist() for n in lengths]
    return [
        Row(input_ids=ids, labels=[-100] * (len(ids) * 2 // 3) + ids[len(ids) * 2 // 3 :])
        for ids in texts
    ]


def _kinds(bench: Bench, experts: int | None) -> list[Kind]:
    fedavg = make_scheme(parse_run_config(run_config({"scheme": "fedavg"})))
    fedalign = make_scheme(bench.config)
    return [
        Kind("plain transformers, grouped_mm", _plain(bench, experts)),
        Kind("client, nothing recorded", _client(bench, experts, fedavg, NothingRecorded)),
        Kind("+ routing histogram (FedAvg)", _client(bench, experts, fedavg)),
        Kind("+ regions and regulariser (FedAlign-MoE)", _client(bench, experts, fedalign)),
    ]


def _plain(bench: Bench, experts: int | None) -> Callable[[], None]:
    model, task, config = bench.model(), bench.task(), bench.config.train
    model.set_experts_implementation("grouped_mm")
    trained = [p for p in model.parameters() if p.requires_grad]
    stacks = [p for p in trained if p.dim() == 3]

    def run() -> None:
        optimiser = torch.optim.AdamW(
            trained, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        for part in train_batches(bench.rows, config, SEED):
            batch = task.collate(part, model.device)
            optimiser.zero_grad(set_to_none=True)
            task.loss(model, batch).backward()
            _leave_out(stacks, experts)
            nn.utils.clip_grad_norm_(trained, config.max_grad_norm)
            optimiser.step()

    return run


def _leave_out(stacks: Sequence[nn.Parameter], experts: int | None) -> None:
    if experts is not None:
        for stack in stacks:
            assert stack.grad is not None
            stack.grad[experts:] = 0


def _client(
    bench: Bench,
    experts: int | None,
    scheme: Scheme,
    recorder_class: type[RoutingRecorder] = RoutingRecorder,
) -> Callable[[], None]:
    model = bench.model()
    layers = find_moe_layers(model)
    chosen = None if experts is None else [range(experts)] * len(layers)
    trainables = Trainables(model, layers, chosen)
    broadcast = _broadcast(len(layers), layers[0].num_experts)
    plan = Plan.of(scheme, ModelShape(len(layers), layers[0].num_experts, layers[0].top_k))
    terms: list[Any] = [(term, {}) for term in plan.client.terms]

    def run() -> None:
        recorder = recorder_class(
            layers, regions=plan.needs_regions, keep_probs=plan.needs_router_probs
        )
        with recorder:
            parts = LocalRun(
                model, trainables, recorder, bench.task(), {}, layers[0].top_k, terms, broadcast
            )
            train(parts, bench.rows, bench.config.train, SEED)

    return run


def _broadcast(layers: int, experts: int) -> Mapping[Signal, Tensor]:
    uniform = torch.full((layers, experts), 1 / experts)
    return {REFERENCE: uniform, MEAN_PROB: uniform}


def _measure(kinds: Sequence[Kind], repeats: int, steps: int) -> list[tuple[str, ...]]:
    times: dict[str, list[float]] = {kind.name: [] for kind in kinds}
    for repeat in range(repeats + 1):
        for kind in kinds:
            begin = time.thread_time()
            kind.run()
            if repeat:  # the first one warms up
                times[kind.name].append((time.thread_time() - begin) / steps)
    medians = {name: statistics.median(values) for name, values in times.items()}
    plain = medians[kinds[0].name]
    return [
        (name, f"{1000 * value:.0f}", f"{value / plain:.3f}") for name, value in medians.items()
    ]


if __name__ == "__main__":
    main()
