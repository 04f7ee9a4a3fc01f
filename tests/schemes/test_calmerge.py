"""Calibrated merging: every switch alone is another scheme's part, and all off is FedAvg."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fedmoe_app import ConfigError, ModelShape, ModelState, Reply, Run, make_scheme
from fedmoe_app.aggregation.streaming import BlockSums
from fedmoe_app.schemes.base import Plan
from fedmoe_app.schemes.calmerge import CalMerge
from fedmoe_app.schemes.fedavg import FedAvg
from fedmoe_app.schemes.fedexp import Extrapolated, FedExP
from fedmoe_app.schemes.fedvls import VacantClasses
from fedmoe_app.schemes.globalbalance import GlobalBalancing
from fedmoe_app.schemes.grammerge import GramMerge, GramWeighted
from fedmoe_app.schemes.logitadjust import LogitAdjust
from fedmoe_app.schemes.parts import Client, Server
from fedmoe_app.schemes.views import Block
from fedmoe_app.schemes.withhead import ClosedFormHead
from tests.conftest import make_config
from tests.invariant.runs import GoldenRun
from tests.schemes.conftest import SharedRuns
from tests.toy import toy_stats

SHAPE = ModelShape(2, 3, 2, 4, head="score")
OFF: dict[str, Any] = {"tau": 0, "lam": 0, "balance": 0, "rho": 0, "cap": 1, "head": False}


def halves(scheme: Any, model: ModelShape = SHAPE) -> tuple[Client, Server]:
    plan = Plan.of(scheme, model)
    return plan.client, plan.server


def only(**on: Any) -> tuple[Client, Server]:
    return halves(CalMerge(**(OFF | on)))


def test_all_off_is_fedavg() -> None:
    assert only() == halves(FedAvg()) == (Client(), Server())


def test_each_switch_alone_is_the_scheme_that_it_is_from() -> None:
    assert only(tau=0.5, smoothing=0.1) == halves(LogitAdjust(0.5, 0.1))
    assert only(balance=0.2) == halves(GlobalBalancing(0.2))
    assert only(rho=3.0) == halves(GramMerge(3.0))
    assert only(head=True, shrinkage=0.3) == halves(
        ClosedFormHead(FedAvg(), "after", shrinkage=0.3)
    )
    assert only(lam=0.3) == (Client(terms=(VacantClasses(0.3),)), Server())
    extrapolated = Extrapolated(cap=1.5, spared="score.")
    assert only(cap=1.5) == (Client(), Server(dense=extrapolated, experts=extrapolated))
    assert halves(FedExP(cap=1.5))[1].dense == Extrapolated(cap=1.5)


def test_merging_and_extrapolation_by_hand() -> None:
    def merged(rule: Extrapolated, block: str, *grams: list[float]) -> list[float]:
        replies = [
            Reply(
                client,
                1.0,
                1.0,
                toy_stats([]),
                ModelState(dense={block: torch.tensor([change])}),
                {f"GramDiagonal/{block}": torch.tensor(gram)},
            )
            for client, (change, gram) in enumerate(zip([[3.0, 0], [0, 0.0]], grams, strict=True))
        ]
        sums, where = BlockSums(), Block("dense", block)
        sums.add([rule.add(reply, where) for reply in replies])
        found = rule.result(sums.named(), where)[block]
        return [round(value, 4) for value in found[0].tolist()]

    rule = Extrapolated(1e-9, 9.0, GramWeighted(1e-9), spared="score.")
    # One client's inputs alone: its whole change, 3; η = (9/2)/(2·9) < 1.
    assert merged(rule, "w", [1.0, 0], [0, 1.0]) == [3.0, 0.0]
    # Shares 1 and 3: 3/4; ‖Δ‖² = 9/16, η = (9/2)/(9/8) = 4.
    assert merged(rule, "w", [1.0, 1], [3.0, 3.0]) == [3.0, 0.0]
    assert merged(rule, "score.weight", [1.0, 1], [3.0, 3.0]) == [0.75, 0.0]


def test_what_a_model_lacks_is_left_out_and_told() -> None:
    bare = ModelShape(2, 3, 2, 4, gates_trained=False)
    client, server = halves(CalMerge(), bare)
    assert client.terms == (VacantClasses(0.1),)
    assert (server.steps, server.after) == ((), ())
    warnings = CalMerge().check(Run(bare))
    assert [warning.split(":")[1] for warning in warnings] == [" head", " balance"]
    assert CalMerge().check(Run(SHAPE)) == []


def test_everything_is_a_sum() -> None:
    """So that replies do not wait, but for gates, whose mean is FedAvg's."""
    plan = Plan.of(CalMerge(), SHAPE)
    assert isinstance(plan.server.dense, Extrapolated)
    assert plan.server.experts == plan.server.dense
    assert not plan.has_steps
    assert not plan.keeps_state


def test_the_head_of_the_run_config_takes_the_place_of_its_own() -> None:
    config = {"scheme": "calmerge", "head.closed-form": "before"}
    found = make_scheme(make_config(**config))
    assert found == ClosedFormHead(CalMerge(head=False))
    assert make_scheme(make_config(scheme="calmerge")) == CalMerge()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ('{"tau": -1}', "calmerge: tau = -1: choose 0 to"),
        ('{"cap": 0.5}', "calmerge: cap = 0.5: must be ≥ 1"),
        ('{"shrinkage": 2}', "calmerge: shrinkage = 2: choose 0 to 1"),
        ('{"rho": "much"}', "calmerge: rho = 'much': must be a number"),
    ],
)
def test_a_parameter_that_cannot_be_is_refused(args: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_scheme(make_config(**{"scheme": "calmerge", "scheme-args": args}))


def test_labels_that_are_no_classes_are_refused_but_for_the_parts_that_need_none() -> None:
    with pytest.raises(ConfigError, match='scheme = "calmerge": data.task = "causal-lm"'):
        CalMerge().check(Run(SHAPE, task="causal-lm"))
    assert CalMerge(tau=0, lam=0, head=False).check(Run(SHAPE, task="causal-lm")) == []


def test_switched_off_a_run_is_fedavgs_bit_for_bit(runs: SharedRuns) -> None:
    found = []
    for name, args in (("fedavg", ""), ("calmerge", json.dumps(OFF))):
        config = {"scheme": name, "scheme-args": args, "num-server-rounds": 2}
        results = runs.of(GoldenRun(config))
        newest = max((results / "checkpoints").iterdir())
        found.append(load_file(newest / "state.safetensors"))
    assert all(tensor.equal(found[1][key]) for key, tensor in found[0].items())
