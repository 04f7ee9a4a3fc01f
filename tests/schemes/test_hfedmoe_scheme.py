"""HFedMoE's class: budgets, selection, and weights through the fold, by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fedmoe_app import (
    FedAvg,
    HFedMoE,
    LocalClient,
    ModelShape,
    RoutingStats,
    information_bottleneck,
    select_experts,
)
from fedmoe_app.moe.routing import RoutingRecorder
from tests.moe.test_routing import fixed_layer
from tests.toy import (
    assert_same,
    both_layers,
    diagnose_toy,
    fold_toy,
    numbers,
    own_update,
    plan_of,
    select,
    toy_client,
    toy_stats,
)


def client(number: int = 0, budget: int | None = None, experts: int = 8) -> LocalClient:
    return LocalClient(number, ModelShape(2, experts, 2, 4), budget, lambda n: toy_stats([]))


# -- selection ---------------------------------------------------------------------------------


def test_budgets_are_taken_in_turn_by_client_number() -> None:
    scheme = HFedMoE(budgets=(2, 0.5, 16))  # of 8 experts: 2, 4, and all of them
    assert [select(scheme).budget(client(i)) for i in range(7)] == [2, 4, 8, 2, 4, 8, 2]
    assert [select(scheme).budget(client(i, experts=3)) for i in range(3)] == [2, 1, 3]


def test_the_nodes_own_budget_wins() -> None:
    scheme = HFedMoE(budgets=(2, 4, 8))
    assert [select(scheme).budget(client(i, budget=5)) for i in range(3)] == [5, 5, 5]
    assert select(scheme).budget(client(1, budget=1)) == 1  # below the model's top-k


# Means [0.4, 0.2, 0.4] and peaks [0.7, 0.2, 0.7]: s = [0.55, 0.2, 0.55] at λ = 1/2.
# Information of experts 0 and 2: (0.7·ln 1.75 + 0.1·ln 0.25)/2 = 0.126551, of expert 1: 0.
PROBS = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.2, 0.7]])  # [T, E]
ALL = torch.ones(3, dtype=torch.bool)


def selected(routed: torch.Tensor, budget: int, **options: Any) -> list[bool]:
    scheme = HFedMoE(**options)
    return select(scheme).choose(PROBS, routed, toy_client(expert_budget=budget)).tolist()


def test_a_batch_trains_its_best_routed_experts() -> None:
    assert selected(ALL, 1, beta=0.0) == [True, False, False]  # a tie takes the lower index
    assert selected(ALL, 2, beta=0.0) == [True, False, True]
    assert selected(torch.tensor([False, True, True]), 1, beta=0.0) == [False, False, True]
    assert selected(torch.tensor([False, True, False]), 2, beta=0.0) == [False, True, False]
    assert selected(ALL, 3) == [True, True, True]


def test_beta_prefers_the_expert_that_is_used_evenly() -> None:
    # I = [0.55 − 3·0.126551, 0.2, same as first] = [0.170, 0.2, 0.170]
    assert selected(ALL, 1, beta=3.0) == [False, True, False]
    assert selected(ALL, 1, beta=2.5) == [True, False, False]  # 0.234 above 0.2


def recorded(logits: torch.Tensor) -> RoutingStats:
    """The histogram of all tokens, seen in batches of 16."""
    layer = fixed_layer()
    with RoutingRecorder([layer]) as recorder:
        for part in logits.split(16):
            recorder.mask(None)
            layer.router(part)
    return recorder.stats()


def chosen_for_a_round(logits: torch.Tensor, budget: int, **options: Any) -> list[int]:
    client = toy_client(lambda max_examples: recorded(logits), expert_budget=budget)
    (chosen,) = select(HFedMoE(selection="round", **options)).choose(client)
    return list(chosen)


@pytest.mark.parametrize(("lam", "beta"), [(0.5, 0.1), (1.0, 0.0), (0.0, 2.0), (0.3, 5.0)])
@pytest.mark.parametrize("budget", [1, 2, 3])
def test_the_choice_of_a_round_is_that_of_a_batch_of_all_tokens(
    lam: float, beta: float, budget: int
) -> None:
    """A histogram holds all that the score needs: mean, peak and information."""
    logits = torch.randn(40, 3, generator=torch.Generator().manual_seed(budget))
    scores = information_bottleneck(logits.softmax(dim=1), lam, beta)
    wanted = select_experts(scores, budget).nonzero().squeeze(1).tolist()
    assert chosen_for_a_round(logits, budget, lam=lam, beta=beta) == wanted


def test_beta_acts_in_the_choice_of_a_round() -> None:
    # As in a batch; top-2 of the fixed router reaches experts 0, 1 and 2 with these two tokens.
    assert chosen_for_a_round(PROBS.log(), 1, beta=3.0) == [1]
    assert chosen_for_a_round(PROBS.log(), 1, beta=2.5) == [0]


def test_experts_without_a_token_are_not_chosen_for_a_round() -> None:
    stats = toy_stats([], count=[[0, 5, 5], [5, 0, 0]])
    chosen = select(HFedMoE(selection="round")).choose(toy_client(lambda n: stats, 0, 3))
    assert chosen == [[1, 2], [0]]


def test_the_three_selections() -> None:
    asked: list[int] = []

    def usage(max_examples: int):  # noqa: ANN202
        asked.append(max_examples)
        return toy_stats([])

    for selection, per_batch in (("batch", True), ("none", False)):
        scheme = HFedMoE(selection=selection)
        assert not plan_of(scheme).chooses_once
        assert plan_of(scheme).selects_in_batch is per_batch
    assert asked == []  # counting the usage costs forward passes
    assert not plan_of(HFedMoE(selection="round")).selects_in_batch
    select(HFedMoE(selection="round", usage_examples=11)).choose(toy_client(usage))
    assert asked == [11]


# -- the server --------------------------------------------------------------------------------

# τ = 0.2: S_0 = {0, 1}, S_1 = {1, 2}, union of 3. λ = 0 makes s the peak.
# Preferences 0.5·1 + 0.3·0.5 = 0.65 and 0.3·1 + 0.6·0.5 = 0.6: α = [0.52, 0.48] of sum 1.25.
TAU = {"tau": 0.2, "lam": 0.0}
TRAINED = {(0, e): [float(e + 1)] * 3 for e in range(3)}
UPDATES = [
    own_update(
        0,
        1,
        TRAINED,
        gate=2.0,
        steps=4,
        prob=both_layers([0.5, 0.3, 0.1]),
        peak=both_layers([1.0, 0.5, 1.0]),
        trained=torch.tensor([[2, 0, 4], [0, 0, 0]]),
    ),
    own_update(
        1,
        3,
        {key: [-x for x in change] for key, change in TRAINED.items()},
        gate=-1.0,
        steps=2,
        prob=both_layers([0.1, 0.3, 0.6]),
        peak=both_layers([1.0, 1.0, 0.5]),
        trained=torch.tensor([[2, 1, 0], [0, 0, 2]]),
    ),
]


def test_experts_go_by_examples_over_the_clients_that_use_them() -> None:
    state = fold_toy(HFedMoE(**TAU), UPDATES)
    assert numbers(state, (0, 0)) == [2.0] * 3  # client 0 alone: 1 + 1
    assert numbers(state, (0, 1)) == pytest.approx([0.0] * 3)  # 1 + 1/4·2 − 3/4·2
    assert numbers(state, (0, 2)) == [-2.0] * 3  # client 1 alone: 1 − 3


def test_an_expert_and_a_gate_that_nobody_uses_stay() -> None:
    for normalise in (True, False):
        state = fold_toy(HFedMoE(tau=0.9, normalise=normalise), UPDATES)
        assert all(numbers(state, (0, e)) == [1.0] * 3 for e in range(3))
        assert all(gate["weight"].eq(1.0).all() for gate in state.gates.values())


def test_gates_go_by_preference() -> None:
    gate = fold_toy(HFedMoE(**TAU), UPDATES).gates[0]["weight"]
    torch.testing.assert_close(gate, torch.full((3, 2), 1 + 0.52 * 2 - 0.48 * 1))


def test_the_printed_form_shrinks_the_gate() -> None:
    # α = 0.65/3 and 0.6/3 of the clients' gates, which are 3 and 0.
    gate = fold_toy(HFedMoE(normalise=False, **TAU), UPDATES).gates[1]["weight"]
    torch.testing.assert_close(gate, torch.full((3, 2), 0.65 / 3 * 3 + 0.6 / 3 * 0))


def test_dense_tensors_go_by_examples() -> None:
    head = fold_toy(HFedMoE(**TAU), UPDATES).dense["head.weight"]
    assert head.tolist() == pytest.approx([1 + 2 / 4 - 3 / 4] * 2)


def test_weights_of_nodes_that_hold_some_experts() -> None:
    """Masked routers: client 0 holds experts 0 and 1, client 1 all; top-2, uniform routing."""
    thirds, halves = [1 / 3, 1 / 3, 1 / 3], [0.5, 0.5, 0.0]
    holds_two = own_update(
        0,
        1,
        {(0, 0): [1.0] * 3, (0, 1): [1.0] * 3},
        gate=2.0,
        prob=both_layers(halves),
        peak=both_layers(halves),
    )
    holds_all = own_update(
        1,
        3,
        {(0, e): [-1.0] * 3 for e in range(3)},
        gate=-1.0,
        prob=both_layers(thirds),
        peak=both_layers(thirds),
    )
    for tau in (0.0, 0.05):  # with τ = 0, too: only who trained an expert weighs in its mean
        state = fold_toy(HFedMoE(tau=tau), [holds_two, holds_all])
        assert numbers(state, (0, 0)) == pytest.approx([1 + 1 / 4 - 3 / 4] * 3)
        assert numbers(state, (0, 2)) == pytest.approx([0.0] * 3)  # client 1 alone
        # Σ u·s = 2·0.25 against 3/9: α = 0.6 and 0.4, the larger where fewer experts are held.
        gate = state.gates[0]["weight"]
        torch.testing.assert_close(gate, torch.full((3, 2), 1 + 0.6 * 2 - 0.4 * 1))


def test_one_client_gives_its_own_update() -> None:
    state = fold_toy(HFedMoE(tau=0.05), UPDATES[:1])
    assert [numbers(state, (0, e)) for e in range(3)] == [[2.0] * 3, [3.0] * 3, [4.0] * 3]
    assert state.gates[0]["weight"].eq(3.0).all()


def test_switched_off_it_is_fedavg_bit_for_bit() -> None:
    off = HFedMoE(usage_weights=False, importance_gates=False, normalise=False, **TAU)
    assert_same(fold_toy(off, UPDATES), fold_toy(FedAvg(), UPDATES))
    gates = fold_toy(HFedMoE(usage_weights=True, importance_gates=False, **TAU), UPDATES).gates
    assert gates[0]["weight"].eq(0.75).all()  # 1 + 2/4 − 3/4


def test_permuted_clients_change_nothing() -> None:
    scheme = HFedMoE(**TAU)
    assert_same(fold_toy(scheme, UPDATES[::-1]), fold_toy(scheme, UPDATES), 1e-6)


def test_diagnostics_tell_alpha_and_the_selection_ratio() -> None:
    found = diagnose_toy(HFedMoE(**TAU), UPDATES)
    assert found["gate_weights"].tolist() == [pytest.approx([0.52, 0.48])] * 2  # [L, N]
    # Client 0, layer 0: (1·2/4 + 0.5·0 + 1·4/4)/2.5; client 1: (1·2/2 + 1·1/2 + 0)/2.5
    assert found["selection_ratio"][0].tolist() == pytest.approx([0.6, 0.6])
    assert found["selection_ratio"][1].tolist() == pytest.approx([0.0, 0.2])  # 0.5·2/2 of 2.5
    assert found["expert_weights"][0][0] == [1.0, 0.0]
    assert found["expert_weights"][0][1] == [0.25, 0.75]
