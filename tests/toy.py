"""A toy global state of three numbers an expert, and toy texts, for the whole suite."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedmoe_app import (
    ClientUpdate,
    LocalClient,
    LocalStep,
    ModelShape,
    ModelState,
    Plan,
    RoundInfo,
    RoutingStats,
    Scheme,
)
from fedmoe_app.aggregation.aggregate import aggregate
from fedmoe_app.aggregation.diagnostics import Diagnostics
from fedmoe_app.aggregation.streaming import RunningSums, round_info
from fedmoe_app.client.parts import ClientParts
from fedmoe_app.moe.state import ExpertKey, flatten
from fedmoe_app.results.callbacks import Callback
from fedmoe_app.results.metrics import RoundRecord

NUM_LAYERS, NUM_EXPERTS = 2, 3


class Records(list[RoundRecord], Callback):
    """The records of a run, round 0 first."""

    def on_round(self, record: RoundRecord) -> None:
        self.append(record)


TOPICS = {
    "sea": "the boat sails over the waves to the harbour",
    "kitchen": "boil the rice and add salt and butter",
    "music": "the choir sings a song in a minor key",
    "garden": "plant the roses and water the lawn",
}


def toy_state() -> ModelState:
    """Two layers of three experts with two tensors each; every value is 1."""
    return ModelState(
        dense={"head.weight": torch.ones(2)},
        gates={layer: {"weight": torch.ones(NUM_EXPERTS, 2)} for layer in range(NUM_LAYERS)},
        experts={
            (layer, expert): {"up": torch.ones(2), "down": torch.ones(1)}
            for layer in range(NUM_LAYERS)
            for expert in range(NUM_EXPERTS)
        },
    )


def toy_stats(trained: list[tuple[int, int]], count: list[list[int]] | None = None) -> RoutingStats:
    """Routing statistics in which exactly these (layer, expert) pairs were trained."""
    shape = (NUM_LAYERS, NUM_EXPERTS)
    steps = torch.zeros(shape, dtype=torch.int64)
    for key in trained:
        steps[key] = 1
    counts = torch.ones(shape, dtype=torch.int64) if count is None else torch.tensor(count)
    third = torch.full(shape, 1 / 3)
    return RoutingStats(
        count=counts,
        prob=third.clone(),
        margin=third.clone() / 2,
        peak=third.clone(),
        kl=torch.zeros(shape),
        trained=steps,
        tokens=counts.sum(1),
    )


def toy_update(
    client: int, num_examples: int, change: float, trained: list[tuple[int, int]]
) -> ClientUpdate:
    """An update that changes every tensor it may change by ``change``."""
    state = toy_state()
    changes = ModelState(
        dense={name: torch.full_like(t, change) for name, t in state.dense.items()},
        gates={
            layer: {name: torch.full_like(t, change) for name, t in gate.items()}
            for layer, gate in state.gates.items()
        },
        experts={
            key: {name: torch.full_like(t, change) for name, t in state.experts[key].items()}
            for key in trained
        },
    )
    metrics = {"train-loss": 1.0 + change}
    return ClientUpdate(client, num_examples, changes, toy_stats(trained), metrics)


def own_update(
    client: int,
    num_examples: int,
    experts: Mapping[ExpertKey, Sequence[float]],
    *,
    gate: float = 0.0,
    steps: float = 1.0,
    **stats: torch.Tensor,
) -> ClientUpdate:
    """An update with three numbers an expert; ``gate`` for the other tensors; own statistics."""
    update = toy_update(client, num_examples, gate, list(experts))
    for key, (first, second, third) in experts.items():
        change = {"up": torch.tensor([first, second]), "down": torch.tensor([third])}
        update.changes.experts[key] = change
    metrics = update.metrics | {"num-steps": steps}
    return replace(update, routing=replace(update.routing, **stats), metrics=metrics)


def both_layers(row: Sequence[Any]) -> torch.Tensor:
    """The same statistics in both layers, ``[L, E]`` (``[L, E, D]`` of a list of vectors)."""
    return torch.tensor([row, row])


def plan_of(scheme: Scheme) -> Plan:
    """Both halves of a scheme on the toy model."""
    return Plan.of(scheme, ModelShape(NUM_LAYERS, NUM_EXPERTS, 2, 4))


def fold(
    state: ModelState,
    updates: Sequence[ClientUpdate],
    scheme: Scheme,
    info: RoundInfo | None = None,
    diagnostics: Diagnostics | None = None,
    sums: RunningSums | None = None,
    root: ModelState | None = None,
) -> ModelState:
    """The next global state; ``state`` stays as it is."""
    info, folded = info or round_info(1, updates), ModelState()
    plan = plan_of(scheme)
    if plan.needs_root and root is None:
        root = toy_update(0, 1, 0.5, [*toy_state().experts]).changes
    found = aggregate(state, updates, plan, info, sums=sums, diagnostics=diagnostics, root=root)
    for key, tensor in found.tensors:
        folded.insert(key, tensor)
    return folded


def told_by(scheme: Scheme, updates: Sequence[ClientUpdate]) -> dict[str, Any]:
    """What the clients are told after a round, by the signal's name."""
    told = aggregate(toy_state(), updates, plan_of(scheme), round_info(1, updates)).told
    return {signal.name: value for signal, value in told.items()}


def keep(scheme: Scheme, received: ModelState, changes: ModelState) -> dict[str, Tensor]:
    """What a client's parts keep."""
    return ClientParts(plan_of(scheme)).keep(received, changes)


def start(scheme: Scheme, received: ModelState, kept: Mapping[str, Tensor]) -> ModelState:
    """What a client's training starts from."""
    return ClientParts(plan_of(scheme)).start(received, kept)


def loss_of(scheme: Scheme, step: LocalStep) -> Tensor | None:
    """The one term of a scheme's loss, if there is one and it says something."""
    (*_, term) = (None, *plan_of(scheme).client.terms)
    return None if term is None else term.loss(step)  # type: ignore[attr-defined]


def select(scheme: Scheme) -> Any:
    """The part that chooses experts."""
    return plan_of(scheme).client.select


def fold_toy(
    scheme: Scheme, updates: Sequence[ClientUpdate], state: ModelState | None = None
) -> ModelState:
    """Fold updates, in the order given, into the toy state or another."""
    return fold(state or toy_state(), updates, scheme)


def diagnose_toy(scheme: Scheme, updates: Sequence[ClientUpdate]) -> dict[str, Any]:
    """Return what a fold into the toy state says of itself."""
    diagnostics, info = Diagnostics(NUM_LAYERS, NUM_EXPERTS), round_info(1, updates)
    fold(toy_state(), updates, scheme, info, diagnostics)
    return diagnostics.result(plan_of(scheme).server, info)


def numbers(state: ModelState, key: ExpertKey) -> list[float]:
    """The three numbers of an expert."""
    return flatten(state.experts[key], toy_state().experts[key]).tolist()


def assert_same(left: ModelState, right: ModelState, tolerance: float = 0.0) -> None:
    """The same tensors by the same names; bit for bit, or within a tolerance."""
    mine, other = dict(left.named()), dict(right.named())
    assert mine.keys() == other.keys()
    for name, tensor in mine.items():
        torch.testing.assert_close(tensor, other[name], rtol=tolerance, atol=tolerance, msg=name)


def toy_client(
    usage: Callable[[int], RoutingStats] = lambda max_examples: toy_stats([]),
    client: int = 0,
    expert_budget: int | None = None,
) -> LocalClient:
    """A client of the toy model, top-2, whose data are routed as ``usage`` says."""
    return LocalClient(client, ModelShape(NUM_LAYERS, NUM_EXPERTS, 2, 4), expert_budget, usage)


def write_topics(path: Path, number: int) -> Path:
    """Write ``number`` texts a topic, easy to tell apart."""
    rows = [
        {"text": f"{number * i} {' '.join(words.split()[i % 3 :])} {i}", "label": label}
        for label, words in TOPICS.items()
        for i in range(number)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
