"""FC-MoE through the fold, and its retention, on two clients by hand."""

from __future__ import annotations

import pytest
import torch

from fedmoe_app import ClientUpdate, FCMoE, ModelState
from fedmoe_app.moe.state import Tensors
from tests.toy import (
    assert_same,
    both_layers,
    diagnose_toy,
    fold_toy,
    keep,
    numbers,
    own_update,
    plan_of,
    start,
    toy_state,
)

PLAIN = {"retention": "none"}
# Expert 0: ‖Δ‖ = 5 and 1 by counts 2 and 10, so w = 1/2 each and Δ̄ = [1, 2, 0], ‖Δ̄‖² = 5.
# ⟨Δ_1, Δ̄⟩ = −1 conflicts: Δ_1 becomes [−1, 0, 0] + Δ̄/5, and the sum 1.1·Δ̄ (κ = 1/2·1/5).
# Expert 1: client 1 alone. Expert 2: both trained it, neither changed it. Layer 1: nobody.
ZERO = [0.0, 0.0, 0.0]
UPDATES = [
    own_update(0, 1, {(0, 0): [3.0, 4.0, 0.0], (0, 2): ZERO}, count=both_layers([2, 7, 1])),
    own_update(
        1,
        3,
        {(0, 0): [-1.0, 0.0, 0.0], (0, 1): [0.5, -0.5, 2.0], (0, 2): ZERO},
        count=both_layers([10, 1, 1]),
    ),
]


def random_updates(clients: int, seed: int) -> list[ClientUpdate]:
    generator = torch.Generator().manual_seed(seed)
    return [
        own_update(
            client,
            client + 1,
            {(0, e): (torch.randn(3, generator=generator) * 1e-3).tolist() for e in range(3)},
            count=torch.randint(1, 90, (2, 3), generator=generator),
        )
        for client in range(clients)
    ]


def zeros() -> ModelState:
    """A state of zeros: what is folded into it is the change, without rounding."""
    state = toy_state()
    for _, tensor in state.named():
        tensor.zero_()
    return state


# -- the server --------------------------------------------------------------------------------


def test_experts_go_by_importance_and_projection() -> None:
    state = fold_toy(FCMoE(**PLAIN), UPDATES)
    assert numbers(state, (0, 0)) == pytest.approx([1 + 1.1, 1 + 2.2, 1.0])
    assert numbers(state, (0, 1)) == [1.5, 0.5, 3.0]  # its one member's own change
    assert numbers(state, (0, 2)) == [1.0, 1.0, 1.0]  # 0/0 is no NaN
    assert all(numbers(state, (1, e)) == [1.0, 1.0, 1.0] for e in range(3))


def test_without_projection_the_consensus_is_the_mean() -> None:
    state = fold_toy(FCMoE(projection=False, **PLAIN), UPDATES)
    assert numbers(state, (0, 0)) == pytest.approx([2.0, 3.0, 1.0])


def test_without_importance_members_go_by_examples() -> None:
    # 1/4·[3, 4, 0] + 3/4·[−1, 0, 0] = [0, 1, 0]; no dot product is negative.
    state = fold_toy(FCMoE(importance=False, **PLAIN), UPDATES)
    assert numbers(state, (0, 0)) == pytest.approx([1.0, 2.0, 1.0])
    assert numbers(state, (0, 1)) == [1.5, 0.5, 3.0]  # over S_e: not 3/4 of it


def test_gates_and_dense_tensors_go_by_examples() -> None:
    updates = [own_update(0, 1, {}, gate=2.0), own_update(1, 3, {}, gate=6.0)]
    state = fold_toy(FCMoE(), updates)
    assert state.dense["head.weight"].tolist() == [6.0, 6.0]  # 1 + 2/4 + 18/4
    assert all(gate["weight"].eq(6.0).all() for gate in state.gates.values())


@pytest.mark.parametrize("seed", range(8))
def test_the_projection_changes_the_length_alone(seed: int) -> None:
    updates = random_updates(5, seed)
    projected = fold_toy(FCMoE(**PLAIN), updates, zeros())
    mean = fold_toy(FCMoE(projection=False, **PLAIN), updates, zeros())
    kappa = diagnose_toy(FCMoE(**PLAIN), updates)["kappa"]
    for e in range(3):
        found, wanted = (
            torch.tensor(numbers(s, (0, e)), dtype=torch.float64) for s in (projected, mean)
        )
        wanted = (1 + kappa[0][e]) * wanted
        assert float((found - wanted).norm()) <= 1e-6 * float(wanted.norm())


def test_some_of_these_updates_conflict() -> None:
    kappas = [diagnose_toy(FCMoE(), random_updates(5, seed))["kappa"][0] for seed in range(8)]
    assert sum(kappa > 0 for row in kappas for kappa in row) >= 4


def test_permuted_clients_change_nothing() -> None:
    updates = random_updates(5, seed=1)
    order = [updates[i] for i in (3, 0, 4, 2, 1)]
    assert_same(fold_toy(FCMoE(), order), fold_toy(FCMoE(), updates), 1e-6)


def test_diagnostics_tell_kappa_conflict_and_weights() -> None:
    found = diagnose_toy(FCMoE(), UPDATES)
    assert found["kappa"][0] == pytest.approx([0.1, 0.0, 0.0])
    assert found["conflict"][0] == [0.5, 0.0, 0.0]
    assert found["expert_weights"][0][0] == pytest.approx([0.5, 0.5])
    assert found["expert_weights"][0][1] == [None, 1.0]
    assert found["kappa"][1] == [None, None, None]
    # κ is told without the projection, too: what it would have done.
    assert diagnose_toy(FCMoE(projection=False), UPDATES)["kappa"][0][0] == pytest.approx(0.1)


# -- retention ---------------------------------------------------------------------------------


def state_with(values: list[float]) -> ModelState:
    """The toy state with other numbers in expert (0, 0)."""
    state = toy_state()
    up, down = torch.tensor(values[:2]), torch.tensor(values[2:])
    state.experts[0, 0] = {"up": up, "down": down}
    return state


def kept_by(scheme: FCMoE, update: ClientUpdate, received: ModelState | None = None) -> Tensors:
    return keep(scheme, received or toy_state(), update.changes)


def test_the_own_changes_and_what_they_started_from_are_kept() -> None:
    kept = kept_by(FCMoE(), UPDATES[1], state_with([3.0, 4.0, 5.0]))
    assert {name.partition(".")[2] for name in kept} == {
        f"layers.0.experts.{e}.{tensor}" for e in range(3) for tensor in ("up", "down")
    }
    assert kept["change.layers.0.experts.1.up"].tolist() == [0.5, -0.5]
    assert kept["change.layers.0.experts.1.down"].tolist() == [2.0]
    assert kept["start.layers.0.experts.0.up"].tolist() == [3.0, 4.0]
    assert kept["start.layers.0.experts.0.down"].tolist() == [5.0]


def test_filtered_retention_gives_back_half_of_what_was_removed() -> None:
    scheme = FCMoE(retention="filtered")
    new = fold_toy(scheme, UPDATES)  # expert (0, 0) is [2.1, 3.2, 1]
    # Removed: [−1, 0, 0] − [−0.8, 0.4, 0] = [−0.2, −0.4, 0]; half of it is added.
    started = start(scheme, new, kept_by(scheme, UPDATES[1]))
    assert numbers(started, (0, 0)) == pytest.approx([2.0, 3.0, 1.0])
    # Client 0 did not conflict, and nothing was removed of expert 1.
    assert numbers(start(scheme, new, kept_by(scheme, UPDATES[0])), (0, 0)) == numbers(new, (0, 0))
    assert numbers(started, (0, 1)) == numbers(new, (0, 1))


def test_paper_retention_projects_on_the_new_expert() -> None:
    # (⟨[−1, 0, 0], [3, 4, 0]⟩/25)·[3, 4, 0] = [−0.36, −0.48, 0]; half of it is added.
    scheme = FCMoE(retention="paper")
    started = start(scheme, state_with([3.0, 4.0, 0.0]), kept_by(scheme, UPDATES[1]))
    assert numbers(started, (0, 0)) == pytest.approx([2.82, 3.76, 0.0])


def test_lambda_scales_what_is_retained() -> None:
    scheme = FCMoE(retention="paper", lam=1.0)
    started = start(scheme, state_with([3.0, 4.0, 0.0]), kept_by(scheme, UPDATES[1]))
    assert numbers(started, (0, 0)) == pytest.approx([2.64, 3.52, 0.0])


def test_only_the_experts_of_the_last_round_start_elsewhere() -> None:
    scheme = FCMoE(retention="paper")
    received = toy_state()
    started = start(scheme, received, kept_by(scheme, UPDATES[0]))
    assert started.dense is received.dense
    assert started.gates is received.gates
    untouched = [(0, 1), *((1, e) for e in range(3))]
    assert all(started.experts[key] is received.experts[key] for key in untouched)
    assert_same(received, toy_state())  # not written to


def test_without_retention_nothing_is_kept() -> None:
    assert plan_of(FCMoE()).keeps_state
    assert plan_of(FCMoE(retention="filtered")).keeps_state
    assert not plan_of(FCMoE(lam=0.0)).keeps_state
    assert not plan_of(FCMoE(retention="none")).keeps_state
