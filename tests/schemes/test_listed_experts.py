"""Experts of two tensors (Switch: wi, wo) against the same numbers in one tensor.

Compared are the folds: a scheme sees an expert as one vector, so that its weights and the folded
numbers must be the same, bit for bit, however the family stores its experts. That both kinds are
trained alike is shown in ``tests/moe/test_switch_and_fused.py``.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fedmoe_app import ClientUpdate, FCMoE, FedAlignMoE, FedAvg, FedMoE, HFedMoE, ModelState, Scheme
from fedmoe_app.aggregation.diagnostics import Diagnostics
from fedmoe_app.aggregation.streaming import round_info
from fedmoe_app.moe.state import Tensors, flatten
from tests.toy import (
    NUM_EXPERTS,
    NUM_LAYERS,
    assert_same,
    fold,
    keep,
    plan_of,
    start,
    toy_state,
    toy_update,
)

D, F = 3, 4  # hidden and inner size: wi [F, D], wo [D, F]
KEYS = [(layer, e) for layer in range(NUM_LAYERS) for e in range(NUM_EXPERTS)]
SCHEMES: dict[str, Scheme] = {
    "fedavg": FedAvg(),
    "fedmoe": FedMoE(),
    "hfedmoe": HFedMoE(tau=0.3),
    "fcmoe": FCMoE(),
    "fedalign": FedAlignMoE(),
}


def listed(vector: Tensor) -> Tensors:
    wi, wo = vector.split([F * D, D * F])
    return {"wi.weight": wi.view(F, D).clone(), "wo.weight": wo.view(D, F).clone()}


def fused(vector: Tensor) -> Tensors:
    return {"weights": vector.clone()}


def random_round(seed: int = 0) -> tuple[dict, list[tuple[ClientUpdate, dict]]]:
    """Values by expert, and for each of four clients an update with changes by expert."""
    generator = torch.Generator().manual_seed(seed)
    values = {key: torch.randn(2 * F * D, generator=generator) for key in KEYS}
    clients = []
    for client in range(4):
        trained = [key for key in KEYS if torch.rand(1, generator=generator) < 0.8]
        changes = {key: torch.randn(2 * F * D, generator=generator) * 1e-2 for key in trained}
        update = toy_update(client, client + 1, 0.1, trained)
        stats = replace(
            update.routing,
            count=torch.randint(1, 50, (NUM_LAYERS, NUM_EXPERTS), generator=generator),
            prob=torch.randn(NUM_LAYERS, NUM_EXPERTS, generator=generator).softmax(dim=1),
            region=torch.randn(NUM_LAYERS, NUM_EXPERTS, D, generator=generator),
        )
        clients.append((replace(update, routing=stats), changes))
    return values, clients


def as_stored(store, values: dict, clients: list) -> tuple[ModelState, list[ClientUpdate]]:  # noqa: ANN001
    plain = toy_state()
    state = ModelState(plain.dense, plain.gates, {k: store(v) for k, v in values.items()})
    updates = []
    for update, changes in clients:
        experts = {key: store(change) for key, change in changes.items()}
        whole = ModelState(update.changes.dense, update.changes.gates, experts)
        updates.append(replace(update, changes=whole))
    return state, updates


def folded(scheme: Scheme, state: ModelState, updates: list[ClientUpdate]) -> tuple:
    diagnostics, info = Diagnostics(NUM_LAYERS, NUM_EXPERTS), round_info(1, updates)
    new = fold(state, updates, scheme, info, diagnostics)
    return new, diagnostics.result(plan_of(scheme).server, info)


@pytest.mark.parametrize("name", SCHEMES)
def test_a_fold_does_not_depend_on_how_experts_are_stored(name: str) -> None:
    values, clients = random_round()
    scheme = SCHEMES[name]
    (one, told), (two, said) = (
        folded(scheme, *as_stored(store, values, clients)) for store in (fused, listed)
    )
    assert_same(ModelState(one.dense, one.gates), ModelState(two.dense, two.gates))
    moved = 0
    for key, tensors in two.experts.items():
        vector = flatten(tensors, tensors)
        assert torch.equal(vector, one.experts[key]["weights"]), key
        moved += not torch.equal(vector, values[key])
    assert moved >= len(KEYS) - 1
    assert told["expert_weights"] == said["expert_weights"]
    assert told["conflict"] == said["conflict"]


@pytest.mark.parametrize("mode", ["paper", "filtered"])
def test_retention_does_not_depend_on_it_either(mode: str) -> None:
    values, clients = random_round(seed=1)
    scheme = FCMoE(retention=mode)
    started = []
    for store in (fused, listed):
        state, updates = as_stored(store, values, clients)
        kept = keep(scheme, state, updates[0].changes)
        new = fold(state, updates, scheme)
        started.append(start(scheme, new, kept))
    one, two = started
    for key, tensors in two.experts.items():
        assert torch.equal(flatten(tensors, tensors), one.experts[key]["weights"])


def test_the_order_of_the_tensors_in_an_update_does_not_matter() -> None:
    values, clients = random_round(seed=2)
    state, updates = as_stored(listed, values, clients)
    for update in updates:
        for key, tensors in update.changes.experts.items():
            update.changes.experts[key] = dict(reversed(tensors.items()))
    plain_state, plain = as_stored(listed, values, clients)
    for scheme in SCHEMES.values():
        assert_same(folded(scheme, state, updates)[0], folded(scheme, plain_state, plain)[0])
