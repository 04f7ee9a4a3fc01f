"""The mechanism on toy updates: by hand where the noise is fixed, by its spread where it is not."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

from fedmoe_app import (
    ClientUpdate,
    ConfigError,
    FedAvg,
    FedMoE,
    FedProx,
    ModelShape,
    ModelState,
    Now,
    Plan,
    Scheme,
    Server,
    Step,
    make_scheme,
)
from fedmoe_app.aggregation.aggregate import aggregate
from fedmoe_app.aggregation.streaming import round_info
from fedmoe_app.privacy.client_level import ClientLevel, dp_fault, private_plan
from fedmoe_app.privacy.clipping import bounded, whole_norm
from fedmoe_app.privacy.randomness import OfSystem
from fedmoe_app.schemes.average import Averaged, LastModels
from tests.conftest import make_config
from tests.toy import NUM_EXPERTS, NUM_LAYERS, own_update, plan_of, toy_state, toy_update

LEVEL = ClientLevel(clip=100.0, noise=0.0, rate=0.5, clients=8, delta=1e-5)


@dataclass(frozen=True)
class Fixed:
    """Noise that is the same everywhere."""

    value: float

    def uniform(self, size: int) -> np.ndarray:
        return np.full(size, self.value)

    def normal(self, size: int) -> np.ndarray:
        return np.full(size, self.value)


def fold(
    updates: list[ClientUpdate],
    level: ClientLevel,
    value: float = 0.0,
    scheme: Scheme | None = None,
) -> ModelState:
    plan = private_plan(plan_of(scheme or FedAvg()), level, Fixed(value))
    cut = [bounded(update, level.clip) for update in updates]
    state = ModelState()
    for name, tensor in aggregate(toy_state(), cut, plan, round_info(1, cut)).tensors:
        state.insert(name, tensor)
    return state


def test_sums_are_divided_by_the_expected_clients_whoever_answered() -> None:
    """q·N = 4: changes 1 and 3 of two clients, whatever their examples, make (1 + 3)/4."""
    updates = [toy_update(0, 5, 1.0, [(0, 0)]), toy_update(1, 500, 3.0, [(0, 0), (1, 2)])]
    state = fold(updates, LEVEL)
    assert state.dense["head.weight"].tolist() == [2.0, 2.0]
    assert state.experts[0, 0]["down"].tolist() == [2.0]
    assert state.experts[1, 2]["down"].tolist() == [1.75]
    assert state.experts[0, 1]["down"].tolist() == [1.0]


def test_the_clip_is_over_all_that_leaves_as_one_vector() -> None:
    """2 + 12 + 3 values of 1 and one expert: norm √(2 + 12 + 3), cut to 1."""
    update = toy_update(0, 5, 1.0, [(0, 0)])
    assert whole_norm(update.changes) == pytest.approx(math.sqrt(17))
    cut = bounded(update, 1.0)
    assert 1 - 1e-5 < whole_norm(cut.changes) <= 1
    assert cut.changes.dense["head.weight"].tolist() == pytest.approx([1 / math.sqrt(17)] * 2)
    assert bounded(update, 5.0).changes is update.changes


def test_noise_lies_on_every_value_also_of_experts_that_nobody_trained() -> None:
    """Standard deviation z·C/(q·N) = 2·10/4, times the fixed draw of 0.1."""
    level = replace(LEVEL, clip=10.0, noise=2.0)
    state = fold([toy_update(0, 5, 0.0, [(0, 0)])], level, 0.1)
    for _, tensor in state.named():
        assert tensor.flatten().tolist() == pytest.approx([1.5] * tensor.numel())


def test_a_round_without_clients_is_noise_alone() -> None:
    state = fold([], replace(LEVEL, clip=10.0, noise=2.0), 0.1)
    assert all(tensor.eq(tensor.flatten()[0]).all() for _, tensor in state.named())
    assert float(state.dense["head.weight"][0]) == pytest.approx(1.5)


def test_counts_divide_by_the_share_that_trained_an_expert() -> None:
    """2 of the expected 4 trained (0, 0): the mean over the two is what it moves by."""
    level = replace(LEVEL, counted=True, most_flags=1)
    updates = [toy_update(0, 5, 1.0, [(0, 0)]), toy_update(1, 5, 3.0, [(0, 0)])]
    state = fold(updates, level, scheme=FedMoE())
    assert state.experts[0, 0]["down"].tolist() == pytest.approx([3.0])
    assert state.dense["head.weight"].tolist() == [2.0, 2.0]
    assert level.deviation == 0
    assert replace(level, noise=1.0).deviation == pytest.approx(math.sqrt(2))


def test_a_client_with_more_flags_than_it_may_have_counts_less() -> None:
    """4 flags of at most 1: each counts 1/2 in units in which one flag is 1."""
    level = replace(LEVEL, counted=True, most_flags=1, clip=1000.0)
    four = [(0, 0), (0, 1), (0, 2), (1, 0)]
    state = fold([toy_update(0, 5, 1.0, four)], level, scheme=FedMoE())
    # 1/4 of the change, divided by a share of (1/2)/4.
    assert state.experts[0, 0]["down"].tolist() == pytest.approx([3.0])


def test_few_trainers_are_divided_by_the_least_share() -> None:
    level = replace(LEVEL, counted=True, clients=200)
    state = fold([toy_update(0, 5, 1.0, [(0, 0)])], level, scheme=FedMoE())
    assert state.experts[0, 0]["down"].tolist() == pytest.approx([1.0 + 1 / 100 / 0.1])


def test_what_leaves_a_client_says_nothing_else() -> None:
    one = own_update(3, 70, {(0, 0): (1, 2, 3)}, steps=9.0)
    other = own_update(3, 7, {(0, 0): (1, 2, 3)}, steps=1.0)
    mine, theirs = (bounded(update, 1.0) for update in (one, other))
    assert mine.num_examples == theirs.num_examples == 1
    assert mine.metrics == theirs.metrics == {"train-loss": 0.0}
    assert mine.num_partitions == 0
    for name in ("count", "prob", "margin", "peak", "kl", "trained", "tokens"):
        assert torch.equal(getattr(mine.routing, name), getattr(theirs.routing, name))


def test_the_systems_normal_numbers_have_the_right_moments() -> None:
    numbers = OfSystem().normal(200_001)
    assert numbers.shape == (200_001,)
    assert abs(numbers.mean()) < 5 / math.sqrt(200_000)
    assert abs(numbers.var() - 1) < 5 * math.sqrt(2 / 200_000)
    assert abs((numbers**4).mean() - 3) < 5 * math.sqrt(96 / 200_000)
    assert not np.array_equal(numbers[:10], OfSystem().normal(10))
    even = OfSystem().uniform(100_000)
    assert 0 < even.min() < even.max() <= 1
    assert abs(even.mean() - 0.5) < 5 / math.sqrt(12 * 100_000)


def test_ratio_and_the_clients_that_a_ratio_of_one_takes() -> None:
    level = ClientLevel(1.0, 2.0, 0.5, 100, 1e-5)
    assert level.ratio(10_000) == pytest.approx(2 * 100 / 50)
    assert level.clients_for(10_000) == 400
    assert replace(level, clients=400).ratio(10_000) == pytest.approx(1)


def of_config(**keys: Any) -> ClientLevel:
    config = make_config(**{"privacy.dp": "fixed", "privacy.dp-clients": 100} | keys)
    return ClientLevel.of(config, plan_of(make_scheme(config)), NUM_LAYERS, NUM_EXPERTS)


def test_the_noise_is_worked_out_from_epsilon_and_rounds() -> None:
    level = of_config(**{"privacy.dp-epsilon": 8.0, "num-server-rounds": 25})
    assert level.noise == pytest.approx(3.19, abs=0.02)
    assert level.limit == 8


def test_fedmoe_counts_as_many_flags_as_it_trains_experts() -> None:
    keys = {"privacy.dp": "counted", "privacy.dp-noise": 1.0, "scheme": "fedmoe"}
    assert of_config(**keys, **{"fedmoe.experts-per-client": 2}).most_flags == 2 * NUM_LAYERS


ALLOWED: list[Callable[[], Scheme]] = [FedAvg, FedProx, FedMoE]
REFUSED = {
    "fedalign": "ByConsistency|Semantic|PrivateGates|no plain sum",
    "fcmoe": "Consensus",
    "hfedmoe": "ByPreference",
    "flame": "ByActivation",
    "median": "Median|Trimmed",
    "fedadam": "numbers of single clients",
    "grammerge": "GramWeighted|no plain sum",
    "scaffold": "single clients",
    "flexmoe": "decides by what single clients sent",
}


@pytest.mark.parametrize("scheme", ALLOWED)
def test_plain_sums_are_served(scheme: Callable[[], Scheme]) -> None:
    assert dp_fault(plan_of(scheme())) == ""


@pytest.mark.parametrize("name", REFUSED)
def test_schemes_that_are_no_sums_are_refused_by_the_types_of_their_parts(name: str) -> None:
    args = {"scheme-args": '{"population": 3}'} if name == "scaffold" else {}
    config = make_config(
        **{"scheme": name, "privacy.dp": "fixed", "privacy.dp-clients": 9, "privacy.dp-noise": 1.0}
        | args
    )
    plan: Plan = plan_of(make_scheme(config))
    told = f'privacy.dp = "fixed" with scheme = "{name}".*choose'
    with pytest.raises(ConfigError, match=told) as error:
        ClientLevel.of(config, plan, NUM_LAYERS, NUM_EXPERTS)
    assert any(word in str(error.value) for word in REFUSED[name].split("|"))


def test_a_mean_of_released_models_is_reported_at_no_price() -> None:
    plan = plan_of(Averaged(FedAvg(), "last"))
    assert dp_fault(plan) == ""
    assert private_plan(plan, LEVEL, Fixed(0.0)).server.reported == (LastModels(2),)


def test_parts_that_may_read_single_clients_are_refused() -> None:
    @dataclass(frozen=True)
    class Curious(Step):
        def step(self, now: Now, state: Mapping[str, Any]) -> tuple[dict, dict]:
            return dict(now.change), {}

    @dataclass(frozen=True)
    class Own(Scheme):
        def server(self, model: ModelShape) -> Server:
            return Server(reported=(Curious(),))

    assert "Curious may read what single clients sent" in dp_fault(plan_of(Own()))


def test_counts_without_use_are_refused() -> None:
    assert "over all clients" in dp_fault(plan_of(FedAvg()), counted=True)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"privacy.dp-clients": 0}, "dp-clients = 0"),
        ({"privacy.dp-noise": 0.0}, "give one of them"),
        ({"privacy.dp-delta": 0.2}, "dp-delta = 0.2"),
        ({"privacy.secure-sum": True}, "choose one"),
        ({"sampling": "examples"}, "chances would depend"),
        ({"fraction-train": 0.5}, "dp-sample-rate"),
        ({"clients-per-round": 3}, "dp-sample-rate"),
        ({"rounds": "buffered"}, 'rounds = "buffered"'),
        ({"model.experts-in-memory": "chosen"}, "experts a node asks for"),
        ({"wire.codec": "topk"}, "error-feedback = false"),
        ({"wire.accept": "fp32, int4"}, "error-feedback = false"),
    ],
)
def test_a_config_that_would_undo_it_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config(
            **{"privacy.dp": "fixed", "privacy.dp-clients": 9, "privacy.dp-noise": 1.0} | keys
        )
