"""What leaves a client: a part's last word on it, checked and in order; and a fixed denominator."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from fedmoe_app import ConfigError, Mean, ModelState, Outgoing, Plan, Run, read_metrics
from fedmoe_app.client.outgoing import sent_by
from fedmoe_app.schemes.faults import PartError
from fedmoe_app.schemes.fedmoe import MostUsed
from fedmoe_app.schemes.flexmoe import BalancedFitness
from fedmoe_app.schemes.localnoise import Bounded, LocalNoise, Noise
from fedmoe_app.schemes.parts import Client, Server
from fedmoe_app.server.summed import sum_fault
from tests.invariant.runs import GoldenRun, run_golden
from tests.schemes.parts_at_work import reply, result_of
from tests.schemes.test_guards import Halves
from tests.toy import plan_of, toy_state, toy_update

CHANGES = ModelState(
    dense={"w": torch.tensor([3.0, 0.0])}, experts={(0, 1): {"up": torch.tensor([4.0])}}
)


def sent(*parts: Outgoing, **statistics: Tensor) -> dict[str, Tensor]:
    changes, numbers = sent_by(parts, CHANGES, statistics, seed=7)
    return {**dict(changes.named()), **numbers}


def test_one_bound_over_all_tensors() -> None:
    """‖(3, 0, 4)‖ = 5; with a number of 12 beside it 13."""
    found = sent(Bounded(1.0))
    assert torch.cat([*found.values()]).tolist() == pytest.approx([0.6, 0.0, 0.8])
    assert float(sent(Bounded(1.0), n=torch.tensor(12.0))["n"]) == pytest.approx(12 / 13)
    assert torch.cat([*sent(Bounded(9.0)).values()]).tolist() == [3.0, 0.0, 4.0]


def test_noise_has_its_deviation_and_comes_from_the_system() -> None:
    wide = ModelState(dense={"w": torch.zeros(40_000)})
    noise = [
        sent_by((Noise(0.5, seeded),), wide, {}, seed)[0].dense["w"]
        for seeded, seed in ((True, 1), (True, 1), (True, 2), (False, 1), (False, 1))
    ]
    assert [float(values.std()) for values in noise] == pytest.approx([0.5] * 5, rel=0.03)
    assert noise[0].equal(noise[1])
    assert not noise[0].equal(noise[2]) and not noise[3].equal(noise[4])


def test_parts_follow_each_other_and_none_changes_nothing() -> None:
    """A bound after the noise bounds it, too."""
    last, first = sent(Noise(9.0, True), Bounded(1.0)), sent(Bounded(1.0), Noise(9.0, True))
    assert float(torch.cat([*last.values()]).norm()) == pytest.approx(1.0)
    assert float(torch.cat([*first.values()]).norm()) > 1.1
    changes, statistics = sent_by((), CHANGES, {"n": torch.ones(1)}, 7)
    assert changes is CHANGES and statistics["n"].tolist() == [1.0]


class Says(Outgoing):
    """Sends what it should not."""

    def send(self, sent: Mapping[str, Tensor], seed: int) -> Any:
        return {k: t / 0 if k == "w" else t for k, t in sent.items()}


class Drops(Outgoing):
    """Sends less than there is."""

    def send(self, sent: Mapping[str, Tensor], seed: int) -> Any:
        return {"w": sent["w"]}


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        (Says(), "Says.send: returned NaN or infinity in w"),
        (Drops(), "Drops.send: returned other tensors or shapes than given"),
    ],
)
def test_what_cannot_leave_names_the_part(part: Outgoing, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        sent(part)


def test_the_scheme_says_what_it_does_not_cover() -> None:
    plan = plan_of(LocalNoise(clip=2.0, noise=0.5))
    assert plan.client == Client(send=(Bounded(2.0), Noise(1.0)))
    assert plan_of(LocalNoise(noise=0)).client == Client(send=(Bounded(1.0),))
    found = plan.check(Run(model=_shape()))
    assert "leave without noise" in found[0]
    assert "take the noise off" in plan_of(LocalNoise(seeded=True)).check(Run(_shape()))[1]
    for wrong in ({"clip": 0}, {"noise": -1}):
        with pytest.raises(ConfigError, match=f"localnoise: {min(wrong)} = "):
            LocalNoise(**wrong)  # type: ignore[arg-type]


def _shape() -> Any:
    from fedmoe_app import ModelShape

    return ModelShape(2, 3, 2, 4)


def test_bounded_changes_arrive_and_a_run_with_a_seed_repeats(
    material: Path, tmp_path: Path
) -> None:
    found = []
    for name in ("one", "two"):
        args = '{"clip": 0.01, "noise": 0.001, "seeded": true}'
        run = GoldenRun({"scheme": "localnoise", "scheme-args": args, "keep-checkpoints": 9})
        results = run_golden(run, material, tmp_path / name)
        assert [line["status"] for line in read_metrics(results)] == ["ok"] * 4
        states = [
            load_file(results / "checkpoints" / f"round-0000{n}" / "state.safetensors")
            for n in (2, 3)
        ]
        found.append(states[1])
        moved = torch.cat([(t - states[0][key]).flatten() for key, t in states[1].items()])
        noise = 0.001 * 0.01 * len(moved) ** 0.5
        assert float(moved.norm()) < 0.01 + 2 * noise
    assert all(tensor.equal(found[1][key]) for key, tensor in found[0].items())


# -- a fixed denominator -----------------------------------------------------------------------


def test_a_mean_over_a_fixed_number() -> None:
    """(1·2 + 1·4)/4, whoever else there is; FedAvg's is (2 + 4)/2."""
    replies = [reply(0, [2.0]), reply(1, [4.0])]
    assert result_of(Mean(4), replies) == [1.5]
    assert result_of(Mean(), replies) == [3.0]
    absent = reply(2, [0.0], changes=ModelState())
    assert result_of(Mean(4), [*replies, absent]) == [1.5]
    assert result_of(Mean("all"), [*replies, absent]) == [2.0]


@pytest.mark.parametrize("over", [0, -1.0, float("inf"), float("nan"), True, "some"])
def test_what_nothing_can_be_divided_by_is_refused(over: Any) -> None:
    with pytest.raises(ValueError, match="Mean: over = .*: choose"):
        Mean(over)


def test_an_expert_that_nobody_trained_stays_under_a_fixed_number() -> None:
    from fedmoe_app.aggregation.aggregate import aggregate
    from fedmoe_app.aggregation.streaming import round_info

    updates = [toy_update(0, 1, 0.5, [(0, 0)]), toy_update(1, 1, 0.5, [(0, 0)])]
    plan: Plan = plan_of(Halves(Client(), Server(experts=Mean(4))))
    found = dict(aggregate(toy_state(), updates, plan, round_info(1, updates)).tensors)
    moved = {name: float(t.flatten()[0]) for name, t in found.items() if "expert" in name}
    assert sorted(set(moved.values())) == [1.0, 1.25]


@pytest.mark.parametrize(
    ("server", "reason"),
    [
        (Server(experts=Mean(8)), "its experts are divided by 8"),
        (Server(assign=BalancedFitness()), "BalancedFitness decides by what single clients sent"),
    ],
)
def test_masked_sums_refuse_what_they_would_leave_out(server: Server, reason: str) -> None:
    found = sum_fault(plan_of(Halves(Client(select=MostUsed(2)), server)))
    assert found.startswith(reason)
    assert sum_fault(plan_of(Halves(Client(select=MostUsed(2)), Server()))) == ""


class InPlace(Outgoing):
    def send(self, sent: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
        return {name: tensor.mul_(0.5) for name, tensor in sent.items()}


def test_a_part_that_writes_to_what_the_client_keeps_is_named() -> None:
    changes = ModelState(dense={"w": torch.tensor([3.0])})
    with pytest.raises(PartError, match=r"InPlace\.send: wrote in place to sent\.tensors \(w\)"):
        sent_by((InPlace(),), changes, {}, 7)
