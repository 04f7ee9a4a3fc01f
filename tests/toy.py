"""A toy global state of three numbers an expert, for schemes, wire and strategy."""

from __future__ import annotations

from collections.abc import Callable

import torch

from fedmoe_app.moe.routing import RoutingStats
from fedmoe_app.moe.state import ModelState
from fedmoe_app.schemes.base import LocalClient, ModelShape
from fedmoe_app.wire.update import ClientUpdate

NUM_LAYERS, NUM_EXPERTS = 2, 3


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


def toy_client(
    usage: Callable[[int], RoutingStats] = lambda max_examples: toy_stats([]),
    client: int = 0,
    expert_budget: int | None = None,
) -> LocalClient:
    """A client of the toy model, top-2, whose data are routed as ``usage`` says."""
    return LocalClient(client, ModelShape(NUM_LAYERS, NUM_EXPERTS, 2, 4), expert_budget, usage)
