"""What follows from the parts of a scheme beside the weights."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fedmoe_app import (
    Combination,
    ConfigError,
    FedAlignMoE,
    FedProx,
    HFedMoE,
    ModelShape,
    ModelState,
    Run,
)
from tests.toy import diagnose_toy, fold, plan_of, select, toy_client, toy_state, toy_update

EVERY = [(layer, e) for layer in range(2) for e in range(3)]
OF_THE_ROUND = {"gate_weights", "selection_ratio", "omega", "omega_entropy", "reference"}


@pytest.mark.parametrize(
    ("scheme", "found"),
    [
        (Combination(selection=HFedMoE()), {"selection_ratio"}),
        (Combination(gates=HFedMoE()), {"gate_weights"}),
        (Combination(experts=HFedMoE()), set()),
        (Combination(loss=FedAlignMoE()), {"reference"}),
        (Combination(gates=FedAlignMoE()), {"omega", "omega_entropy"}),
    ],
    ids=["selection", "gates", "experts", "loss", "omega"],
)
def test_a_combination_tells_only_of_what_it_uses(scheme: Combination, found: set[str]) -> None:
    updates = [toy_update(0, 10, 0.1, EVERY), toy_update(1, 30, 0.3, EVERY)]
    assert diagnose_toy(scheme, updates).keys() & OF_THE_ROUND == found


def test_a_gate_tensor_without_a_row_an_expert_goes_by_examples() -> None:
    """Gemma's router has a scale of hidden size beside its matrix."""
    state = toy_state()
    updates = [toy_update(0, 10, 0.1, EVERY), toy_update(1, 30, 0.3, EVERY)]
    parts: list[ModelState] = [state, *(update.changes for update in updates)]
    for gate in (gate for part in parts for gate in part.gates.values()):
        gate["scale"] = gate["weight"].flatten()[:2].clone()
    scheme = FedAlignMoE(gates="consistency", experts="index")
    folded = fold(state, updates, scheme)
    expected = 1 + (10 * 0.1 + 30 * 0.3) / 40
    assert folded.gates[0]["scale"].tolist() == pytest.approx([expected] * 2)
    # Equal routing: ω = 1/2 each.
    assert folded.gates[0]["weight"].flatten().tolist() == pytest.approx([1.2] * 6)


def test_a_threshold_that_most_experts_miss_is_told_before_the_run() -> None:
    many, few = ModelShape(2, 64, 8), ModelShape(2, 8, 2)
    assert "1/E = 0.015625" in HFedMoE(tau=0.05).check(Run(many))[0]
    assert HFedMoE(tau=0.05).check(Run(few)) == ()
    assert HFedMoE(tau=0.05, usage_weights=False, importance_gates=False).check(Run(many)) == ()
    (warning,) = plan_of(Combination(experts=HFedMoE(), gates=HFedMoE())).check(Run(many))
    assert "1/E" in warning
    assert Combination(loss=FedProx()).check(Run(many)) == []


def test_a_budget_by_turn_needs_a_number_that_outlives_its_process() -> None:
    nobody = replace(toy_client(), is_numbered=False)
    with pytest.raises(ConfigError, match="partition-id of its own"):
        select(HFedMoE()).budget(nobody)
    assert select(HFedMoE()).budget(replace(nobody, expert_budget=3)) == 3
