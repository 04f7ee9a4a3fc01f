"""FedAlign-MoE's class: gates, reference, regulariser and experts, by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fedmoe_app import ClientUpdate, FedAlignMoE, FedAvg, LocalStep, ModelState
from fedmoe_app.schemes.base import signals_of
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
    told_by,
    toy_state,
)
from tests.toy import loss_of as term_of

PLAIN = {"experts": "index"}  # for tests of the gates, which need no regions

# s = prob·margin: [0.35, 0, 0] and [0.02, 0.18, 0]; expert 2 has no margin and goes by prob.
# ω = [[35/37, 0, 1/2], [2/37, 1, 1/2]]
GATES = [
    own_update(
        0,
        1,
        {},
        gate=2.0,
        prob=both_layers([0.7, 0.2, 0.1]),
        margin=both_layers([0.5, 0.0, 0.0]),
    ),
    own_update(
        1,
        3,
        {},
        gate=-1.0,
        prob=both_layers([0.2, 0.7, 0.1]),
        margin=both_layers([0.1, 9 / 35, 0.0]),
    ),
]


# -- gates -------------------------------------------------------------------------------------


@pytest.mark.parametrize("gates", ["consistency", "private"])
def test_rows_of_the_gates_go_by_consistency(gates: str) -> None:
    state = fold_toy(FedAlignMoE(gates=gates, **PLAIN), GATES)
    rows = torch.tensor([1 + 35 / 37 * 2 - 2 / 37, 1 - 1, 1 + 2 / 2 - 1 / 2])
    for gate in state.gates.values():
        torch.testing.assert_close(gate["weight"], rows.unsqueeze(1).expand(3, 2))


def test_average_and_uniform_gates() -> None:
    by_examples = fold_toy(FedAlignMoE(gates="average", **PLAIN), GATES)
    assert by_examples.gates[0]["weight"].eq(0.75).all()  # 1 + 2/4 − 3/4
    uniform = FedAlignMoE(gates="consistency", uniform_weights=True, **PLAIN)
    assert fold_toy(uniform, GATES).gates[0]["weight"].eq(1.5).all()  # 1 + 2/2 − 1/2


def test_a_gate_row_that_no_client_uses_stays() -> None:
    update = own_update(0, 1, {}, gate=2.0, prob=both_layers([1.0, 0.0, 0.0]))
    rows = fold_toy(FedAlignMoE(**PLAIN), [update]).gates[0]["weight"][:, 0]
    assert rows.tolist() == [3.0, 1.0, 1.0]


def test_private_gates_come_back_as_they_were_trained() -> None:
    scheme = FedAlignMoE()
    received = toy_state()
    kept = keep(scheme, received, GATES[0].changes)
    assert set(kept) == {"layers.0.gate.weight", "layers.1.gate.weight"}
    assert kept["layers.0.gate.weight"].eq(3.0).all()  # 1 + 2

    later = fold_toy(FedAvg(), GATES)  # whatever the server sends next
    started = start(scheme, later, kept)
    assert all(gate["weight"].eq(3.0).all() for gate in started.gates.values())
    assert started.dense is later.dense
    assert started.experts is later.experts
    assert later.gates[0]["weight"].eq(0.75).all()  # not written to


def test_the_servers_gate_is_the_omega_mean_of_the_clients_own() -> None:
    """Also when the clients train from gates of their own: changes are against the server's."""
    generator = torch.Generator().manual_seed(0)
    scheme, server = FedAlignMoE(**PLAIN), toy_state()
    own = [{"weight": torch.randn(3, 2, generator=generator)} for _ in GATES]
    updates = [
        ClientUpdate(u.client, u.num_examples, between(server, gate), u.routing, u.metrics)
        for u, gate in zip(GATES, own, strict=True)
    ]
    kept = [keep(scheme, server, update.changes)["layers.1.gate.weight"] for update in updates]
    for mine, gate in zip(kept, own, strict=True):
        torch.testing.assert_close(mine, gate["weight"])
    omega = torch.tensor([[35 / 37, 0.0, 0.5], [2 / 37, 1.0, 0.5]])  # [N, E]
    wanted = sum(w.unsqueeze(1) * g["weight"] for w, g in zip(omega, own, strict=True))
    torch.testing.assert_close(fold_toy(scheme, updates).gates[1]["weight"], wanted)


def between(server: ModelState, gate: dict[str, Tensor]) -> ModelState:
    """Changes that lead from the server's gates to ``gate``, in both layers."""
    changes = GATES[0].changes
    gates = {layer: {"weight": gate["weight"] - g["weight"]} for layer, g in server.gates.items()}
    return ModelState(changes.dense, gates, {})


def test_only_private_gates_are_kept() -> None:
    assert plan_of(FedAlignMoE()).keeps_state
    assert not plan_of(FedAlignMoE(gates="consistency")).keeps_state
    assert not plan_of(FedAlignMoE(gates="average")).keeps_state


# -- the reference and the regulariser ---------------------------------------------------------


def test_the_broadcast_is_the_reference_and_the_mean() -> None:
    sent = told_by(FedAlignMoE(), GATES)
    # Σ_i ω_i·prob_i = [35/37·0.7 + 2/37·0.2, 0.7, 0.1] = [24.9, 25.9, 3.7]/37, sum 54.5/37
    row = [24.9 / 54.5, 25.9 / 54.5, 3.7 / 54.5]
    torch.testing.assert_close(sent["reference"], both_layers(row))  # [L, E]
    torch.testing.assert_close(sent["mean-prob"], both_layers([0.45, 0.45, 0.1]))


def test_without_the_regulariser_nothing_is_sent_or_asked_for() -> None:
    assert plan_of(FedAlignMoE()).needs_router_probs
    assert not plan_of(FedAlignMoE(lam=0.0)).needs_router_probs
    assert told_by(FedAlignMoE(lam=0.0), GATES) == {}


REFERENCE = {
    "reference": torch.tensor([[0.5, 0.3, 0.2]]),  # [L, E], one layer
    "mean-prob": torch.tensor([[0.5, 0.4, 0.1]]),
}


def loss_of(scheme: FedAlignMoE, probs: list[Tensor], broadcast: Any = REFERENCE) -> Tensor | None:
    return term_of(scheme, LocalStep({}, {}, probs, signals_of(broadcast), top_k=1))


TOKEN = torch.tensor([[0.7, 0.2, 0.1]])  # [T, E]


def test_no_loss_in_the_first_round_and_with_lambda_zero() -> None:
    assert loss_of(FedAlignMoE(), [TOKEN], {}) is None
    assert loss_of(FedAlignMoE(lam=0.0), [TOKEN]) is None


def test_the_loss_of_one_token_by_hand() -> None:
    # Expert 0 is the best of both: 0.7·ln(0.7/0.5) = 0.235531, times λ = 0.1.
    plain = loss_of(FedAlignMoE(adaptive=False), [TOKEN])
    assert plain is not None and plain.item() == pytest.approx(0.0235531, abs=1e-7)
    # Overlap 0.7·0.5 = 0.35: sigmoid(0.35 − 0.1) = 0.562177
    adaptive = loss_of(FedAlignMoE(), [TOKEN])
    assert adaptive is not None and adaptive.item() == pytest.approx(0.0132410, abs=1e-7)


def test_the_losses_of_the_layers_add_up() -> None:
    twice = {name: tensor.expand(2, 3) for name, tensor in REFERENCE.items()}
    both = loss_of(FedAlignMoE(adaptive=False), [TOKEN, TOKEN], twice)
    assert both is not None and both.item() == pytest.approx(2 * 0.0235531, abs=1e-7)


def test_the_gradient_reaches_the_routers_logits() -> None:
    logits = TOKEN.log().requires_grad_()
    loss = loss_of(FedAlignMoE(adaptive=False), [logits.softmax(dim=1)])
    assert loss is not None
    loss.backward()
    # λ·(ln 1.4 + 1) = 0.1336472, times ∂p_0/∂logits = 0.7·[0.3, −0.2, −0.1]
    assert logits.grad is not None
    assert logits.grad[0].tolist() == pytest.approx([0.0280659, -0.0187106, -0.0093553], abs=1e-6)


# -- experts -----------------------------------------------------------------------------------

REGIONS = ([1.0, 0.0], [2.0, 0.0], [0.0, 3.0])  # of three clients, [D]
CHANGES = ([1.0, 1.0, 0.0], [2.0, 2.0, 0.0], [0.1, 0.1, 0.0])


def with_regions(*clients: tuple[list[float], list[float]]) -> list[ClientUpdate]:
    """Updates of expert (0, 0): its region and its change, by client."""
    return [
        own_update(i, i + 1, {(0, 0): change}, region=both_layers([region] * 3))
        for i, (region, change) in enumerate(clients)
    ]


THREE = with_regions(*zip(REGIONS, CHANGES, strict=True))


def test_semantic_weights_through_the_fold() -> None:
    # Weights 0.347420, 0.347420, 0.305161 (test_fedalign_experts.py), whatever the examples are:
    # 0.347420·(1 + 2) + 0.305161·0.1 = 1.072776
    state = fold_toy(FedAlignMoE(), THREE)
    assert numbers(state, (0, 0)) == pytest.approx([2.072776, 2.072776, 1.0], abs=1e-5)


def test_a_fixed_threshold_and_a_temperature() -> None:
    # γ is 1 at S = 1 and 0 at S = 0: votes 2, 2, 1
    scheme = FedAlignMoE(adaptive_threshold=False, threshold=0.5, temperature=1e-3)
    assert numbers(fold_toy(scheme, THREE), (0, 0))[0] == pytest.approx(1 + 0.4 + 0.8 + 0.02)


def test_experts_by_index_go_by_examples_over_their_members() -> None:
    state = fold_toy(FedAlignMoE(**PLAIN), THREE[1:])  # 2 and 3 examples
    assert numbers(state, (0, 0)) == pytest.approx([1 + 2 * 0.4 + 0.1 * 0.6] * 2 + [1.0])
    assert plan_of(FedAlignMoE()).needs_regions
    assert not plan_of(FedAlignMoE(**PLAIN)).needs_regions


def test_without_the_direction_opposed_changes_vote_for_each_other() -> None:
    # One region; D = [[1, 1, −1], [1, 1, −1], [−1, −1, 1]]: votes 2, 2, 1 with D, 3, 3, 3 without.
    clients = [
        ([1.0, 0.0], change) for change in ([1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [-1.0, 0.0, 0.0])
    ]
    updates = with_regions(*clients)
    assert numbers(fold_toy(FedAlignMoE(), updates), (0, 0))[0] == pytest.approx(1 + 0.8 - 0.2)
    off = fold_toy(FedAlignMoE(direction=False), updates)
    assert numbers(off, (0, 0))[0] == pytest.approx(1 + 1 / 3)


def test_regions_of_zeros_and_one_client() -> None:
    updates = with_regions(*((([0.0, 0.0]), change) for change in CHANGES))
    # Zero vectors agree with nobody but themselves: uniform weights.
    assert numbers(fold_toy(FedAlignMoE(), updates), (0, 0))[0] == pytest.approx(1 + 3.1 / 3)
    assert numbers(fold_toy(FedAlignMoE(), THREE[1:2]), (0, 0)) == [3.0, 3.0, 1.0]


def test_diagnostics_tell_similarity_agreement_and_threshold() -> None:
    clients = ([1.0, 0.0], [1.0, 0.0, 0.0]), ([0.0, 1.0], [0.6, 0.8, 0.0])
    found = diagnose_toy(FedAlignMoE(), with_regions(*clients))
    assert found["similarity"][0][0] == [[1.0, 0.0], [0.0, 1.0]]
    assert found["similarity_mean"][0][0] == 0.0
    assert found["agreement"][0][0][0] == pytest.approx([1.0, 0.6])
    assert found["agreement_mean"][0][0] == pytest.approx(0.6)
    assert found["threshold"][0][0] == pytest.approx(0.0)  # mean 1/2 less deviation 1/2
    assert found["similarity"][1][2] is None
    assert "similarity" not in diagnose_toy(FedAlignMoE(**PLAIN), with_regions(*clients))


def test_diagnostics_tell_omega_and_the_distance_to_the_reference() -> None:
    found = diagnose_toy(FedAlignMoE(**PLAIN), GATES)
    torch.testing.assert_close(
        found["omega"][0], torch.tensor([[35 / 37, 0.0, 0.5], [2 / 37, 1.0, 0.5]])
    )
    entropy = found["omega_entropy"][1].tolist()  # of expert 2: ln 2
    assert entropy[1:] == pytest.approx([0.0, 0.693147], abs=1e-6)
    # |0.7 − 24.9/54.5| + |0.2 − 25.9/54.5| + |0.1 − 3.7/54.5| = 0.550459, halved
    assert found["reference_distance"][0].tolist()[0] == pytest.approx(0.275229, abs=1e-6)


# -- identities --------------------------------------------------------------------------------

TRAINED = {(layer, e): [0.3 * e, -1.0, 2.0] for layer in range(2) for e in range(3)}


def test_switched_off_it_is_fedavg_where_all_train_all() -> None:
    off = FedAlignMoE(lam=0.0, gates="average", experts="index")
    updates = [own_update(0, 2, TRAINED, gate=0.3), own_update(1, 5, TRAINED, gate=-0.7)]
    assert_same(fold_toy(off, updates), fold_toy(FedAvg(), updates))


def test_permuted_clients_change_nothing() -> None:
    order = [THREE[i] for i in (2, 0, 1)]
    assert_same(fold_toy(FedAlignMoE(), order), fold_toy(FedAlignMoE(), THREE), 1e-6)
