"""A combination does what its parts do, each in its place."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fedmoe_app import (
    Combination,
    ConfigError,
    FCMoE,
    FedAlignMoE,
    FedAvg,
    FedMoE,
    FedProx,
    HFedMoE,
    LocalStep,
    ModelShape,
    ModelState,
    Run,
    make_scheme,
)
from fedmoe_app.config.names import LABEL_SKEW
from tests.conftest import make_config
from tests.toy import (
    assert_same,
    both_layers,
    diagnose_toy,
    fold_toy,
    keep,
    loss_of,
    numbers,
    own_update,
    plan_of,
    select,
    start,
    told_by,
    toy_client,
    toy_state,
    toy_stats,
)

TRAINED = {(0, 0): [3.0, 4.0, 0.0], (1, 2): [1.0, 0.0, 0.0]}
UPDATES = [
    own_update(
        0,
        1,
        TRAINED,
        gate=2.0,
        count=both_layers([2, 1, 1]),
        prob=both_layers([0.7, 0.2, 0.1]),
        margin=both_layers([0.5, 0.1, 0.0]),
    ),
    own_update(
        1,
        3,
        {(0, 0): [-1.0, 0.0, 0.0]},
        gate=-1.0,
        count=both_layers([10, 1, 1]),
        prob=both_layers([0.2, 0.7, 0.1]),
        margin=both_layers([0.1, 0.3, 0.0]),
    ),
]
MIXED = Combination(
    selection=HFedMoE(budgets=(1,)),
    loss=FedProx(0.5),
    gates=FedAlignMoE(gates="consistency"),
    experts=FCMoE(retention="none"),
)


def test_the_parts_are_asked_for_what_is_theirs() -> None:
    state = fold_toy(MIXED, UPDATES)
    experts = fold_toy(FCMoE(retention="none"), UPDATES)
    gates = fold_toy(FedAlignMoE(gates="consistency", experts="index"), UPDATES)
    dense = fold_toy(FedAvg(), UPDATES)
    assert_same(state, ModelState(dense.dense, gates.gates, experts.experts))
    assert numbers(state, (0, 0)) == pytest.approx([2.1, 3.2, 1.0])  # test_fcmoe_scheme.py


def test_the_selection_chooses() -> None:
    client = toy_client()
    assert plan_of(MIXED).selects_in_batch
    assert select(MIXED).budget(client) == 1
    probs = torch.tensor([[0.2, 0.7, 0.1]])
    routed = torch.ones(3, dtype=torch.bool)
    assert select(MIXED).choose(probs, routed, client).tolist() == [False, True, False]
    usage = toy_client(lambda n: toy_stats([], count=[[5, 9, 7], [4, 4, 4]]))
    assert select(Combination(selection=FedMoE(2))).choose(usage) == [[1, 2], [0, 1]]


def test_the_loss_adds() -> None:
    step = LocalStep({"a": torch.tensor([3.0])}, {"a": torch.tensor([1.0])})
    loss = loss_of(MIXED, step)
    assert loss is not None and loss.item() == 1.0  # 0.5/2·(3 − 1)²
    assert not plan_of(MIXED).needs_router_probs
    assert told_by(MIXED, UPDATES) == {}
    align = Combination(loss=FedAlignMoE())
    assert plan_of(align).needs_router_probs
    assert set(told_by(align, UPDATES)) == {"reference", "mean-prob"}


def test_only_experts_ask_for_regions() -> None:
    assert plan_of(Combination(experts=FedAlignMoE())).needs_regions
    assert not plan_of(Combination(loss=FedAlignMoE(), gates=FedAlignMoE())).needs_regions


def test_the_printed_gates_of_hfedmoe_keep_their_scale() -> None:
    printed = HFedMoE(normalise=False, tau=0.2, lam=1.0)
    combined = fold_toy(Combination(gates=printed), UPDATES).gates[0]["weight"]
    assert torch.equal(combined, fold_toy(printed, UPDATES).gates[0]["weight"])
    # S_0 = {0, 1}, S_1 = {0, 1}: α = (0.49 + 0.04)/2 twice; 0.265·3 + 0.265·0
    torch.testing.assert_close(combined, torch.full((3, 2), 0.795))


def test_every_part_checks_itself() -> None:
    for part in ("selection", "loss", "gates", "experts"):
        with pytest.raises(ConfigError, match="experts-per-client = 9"):
            Combination(**{part: FedMoE(9)}).check(Run(ModelShape(2, 8, 2)))


def test_four_times_fedavg_is_fedavg_bit_for_bit() -> None:
    assert_same(fold_toy(Combination(), UPDATES), fold_toy(FedAvg(), UPDATES))
    configured = make_scheme(make_config(scheme="combine"))
    assert_same(fold_toy(configured, UPDATES), fold_toy(FedAvg(), UPDATES))
    assert not plan_of(configured).keeps_state
    assert plan_of(configured).client.select is None


def test_what_gates_and_experts_keep_stays_apart() -> None:
    gates, experts = FedAlignMoE(gates="private"), FCMoE(retention="filtered")
    both = Combination(selection=HFedMoE(), gates=gates, experts=experts)
    received = toy_state()
    kept = keep(both, received, UPDATES[1].changes)
    assert set(kept) == {
        "gates/layers.0.gate.weight",
        "gates/layers.1.gate.weight",
        *(
            f"experts/{when}.layers.0.experts.0.{t}"
            for when in ("change", "start")
            for t in ("up", "down")
        ),
    }
    new = fold_toy(both, UPDATES)
    started = start(both, new, kept)
    changes = UPDATES[1].changes
    assert started.dense is new.dense
    own_gates = start(gates, new, keep(gates, received, changes)).gates
    own_experts = start(experts, new, keep(experts, received, changes)).experts
    assert_same(started, ModelState(new.dense, own_gates, own_experts))
    assert started.gates[0]["weight"].eq(0.0).all()  # its own: 1 − 1
    assert numbers(started, (0, 0)) == pytest.approx([2.0, 3.0, 1.0])  # as FC-MoE alone


def test_one_part_alone_keeps_its_own() -> None:
    changes = UPDATES[0].changes
    gates = Combination(gates=FedAlignMoE())
    assert set(keep(gates, toy_state(), changes)) == set(keep(FedAlignMoE(), toy_state(), changes))
    experts = Combination(experts=FCMoE())
    assert plan_of(experts).keeps_state
    started = start(experts, toy_state(), keep(experts, toy_state(), changes))
    assert started.gates[0]["weight"].eq(1.0).all()


def test_diagnostics_of_all_parts() -> None:
    found = diagnose_toy(MIXED, UPDATES)
    assert {"selection_ratio", "omega", "kappa", "conflict", "expert_weights"} <= set(found)
    assert found["kappa"][0][0] == pytest.approx(0.1)


@pytest.mark.parametrize("part", ["selection", "loss", "gates", "experts"])
@pytest.mark.parametrize("name", ["fedalgin", "pflmoe", "combine", "my.package:Scheme"])
def test_an_unknown_part_prints_the_choices(part: str, name: str) -> None:
    overrides: dict[str, Any] = {"scheme": "combine", f"combine.{part}": name}
    with pytest.raises(ConfigError) as error:
        make_scheme(make_config(**overrides))
    choices = ["fedavg", "fedprox", "fedmoe", "hfedmoe", "fcmoe", "fedalign"]
    choices += LABEL_SKEW if part == "loss" else ()
    known = f'combine.{part} = "{name}": choose one of {", ".join(choices)}'
    assert str(error.value) == known


def test_parts_have_the_parameters_of_their_own_tables() -> None:
    overrides: dict[str, Any] = {
        "scheme": "combine",
        "combine.selection": "hfedmoe",
        "hfedmoe.budgets": "1, 0.5",
        "combine.gates": "fedalign",
        "fedalign.gates": "consistency",
        "combine.experts": "fcmoe",
        "fcmoe.lam": 0.25,
    }
    scheme = make_scheme(make_config(**overrides))
    assert isinstance(scheme, Combination)
    assert scheme.selection == HFedMoE(budgets=(1, 0.5))
    assert scheme.gates == FedAlignMoE(gates="consistency")
    assert scheme.experts == FCMoE(lam=0.25)
    assert scheme.loss == FedAvg()


def losses(text: str, args: str = "") -> Any:
    config = {"scheme": "combine", "combine.loss": text, "scheme-args": args}
    return make_scheme(make_config(**config))


def test_several_losses_add_up() -> None:
    found = plan_of(losses("fedvls, fedprox,fedntd", '{"fedntd": {"beta": 0.1}}')).client
    vls, prox = (plan_of(losses(name)).client for name in ("fedvls", "fedprox"))
    assert found.loss == vls.loss is not None
    assert found.terms[:-1] == (*vls.terms, *prox.terms)
    assert type(found.terms[-1]).__name__ == "NotTrue"
    one = plan_of(losses("fedprox, fedprox")).client
    assert one.terms == prox.terms  # once


def test_two_losses_in_the_place_of_the_tasks_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"combine.loss: PriorAdjusted and RestrictedSoftmax"):
        plan_of(losses("logitadjust,fedrs"))
    with pytest.raises(ConfigError, match='combine.loss = "nothing": choose one of'):
        losses("fedprox,nothing")
    with pytest.raises(ConfigError, match='"fedrs" is no part of combine'):
        losses("fedprox", '{"fedrs": {}}')
