"""Server optimisers and extrapolation, by hand and by identities."""

from __future__ import annotations

import math

import pytest
import torch

from fedmoe_app import ConfigError, FedAvg, make_scheme
from fedmoe_app.schemes.fedexp import Extrapolated, FedExP
from fedmoe_app.schemes.fedopt import Adaptive, FedAdam, FedAvgM, FedYogi, Momentum
from tests.aggregation.test_store import updates
from tests.conftest import make_config
from tests.schemes.parts_at_work import reply, result_of, walked
from tests.toy import assert_same, fold_toy


def test_momentum_by_hand() -> None:
    # m = 2, then 2/2 + 4 = 5, then 5/2 + 0; times η = 0.1
    assert walked(Momentum(0.1, 0.5), [2.0, 4.0, 0.0]) == pytest.approx([0.2, 0.5, 0.25])


def test_adam_by_hand() -> None:
    # m = 0.1·2; v = 0.99·τ² + 0.01·4 with τ = 0.1. Then m = 0.9·0.2 − 0.1, v = 0.99·v + 0.01.
    first = 0.99 * 0.01 + 0.04
    second = 0.99 * first + 0.01
    wanted = [0.5 * 0.2 / (math.sqrt(first) + 0.1), 0.5 * 0.08 / (math.sqrt(second) + 0.1)]
    assert walked(Adaptive(lr=0.5, tau=0.1), [2.0, -1.0]) == pytest.approx(wanted)


def test_yogi_by_hand() -> None:
    # v = τ² = 0.01 lies below Δ² = 4: it grows by 0.01·4; then it lies below 1, too.
    wanted = [0.5 * 0.2 / (math.sqrt(0.05) + 0.1), 0.5 * 0.08 / (math.sqrt(0.06) + 0.1)]
    assert walked(Adaptive(lr=0.5, tau=0.1, yogi=True), [2.0, -1.0]) == pytest.approx(wanted)
    # Above Δ² it shrinks: v = 1 − 0.01·0.25.
    step = Adaptive(lr=1.0, tau=1.0, yogi=True)
    assert walked(step, [0.5]) == pytest.approx([0.05 / (math.sqrt(1 - 0.0025) + 1)])


def test_without_momentum_it_is_fedavg() -> None:
    given = updates(seed=3)
    assert_same(fold_toy(FedAvgM(beta=0.0), given), fold_toy(FedAvg(), given))


def test_extrapolation_by_hand() -> None:
    # n = 1, 3: Δ̄ = [1, 0]; Σ p‖Δ‖² = (1·(1 + 9) + 3·(1 + 1))/4 = 4; η = 4/(2·(1 + 1)) = 1
    # with ε = 1; with ε = 1/3 it is 4/(8/3) = 1.5.
    replies = [reply(0, [1.0, 3.0]), reply(1, [1.0, -1.0], num_examples=3.0)]
    assert result_of(Extrapolated(eps=1.0, cap=9.0), replies) == pytest.approx([1.0, 0.0])
    assert result_of(Extrapolated(eps=1 / 3, cap=9.0), replies) == pytest.approx([1.5, 0.0])
    assert result_of(Extrapolated(eps=1e-9, cap=1.25), replies) == pytest.approx([1.25, 0.0])


def test_changes_that_agree_are_not_extrapolated() -> None:
    assert result_of(Extrapolated(), [reply(0, [4.0]), reply(1, [4.0])]) == [4.0]


def test_cap_1_is_fedavg_bit_for_bit_but_for_the_last_bit_of_gates() -> None:
    given = updates(seed=4)
    capped, plain = fold_toy(FedExP(cap=1.0), given), fold_toy(FedAvg(), given)
    assert torch.equal(capped.dense["head.weight"], plain.dense["head.weight"])
    assert all(
        torch.equal(tensor, plain.experts[key][name])
        for key, tensors in capped.experts.items()
        for name, tensor in tensors.items()
    )
    assert_same(capped, plain, 1e-6)


@pytest.mark.parametrize(
    ("scheme", "args", "message"),
    [
        ("fedavgm", '{"beta": 1.5}', "fedavgm: beta = 1.5: choose 0 to 1"),
        ("fedadam", '{"beta1": 1}', "fedadam: beta1 = 1: must be at least 0 and below 1"),
        ("fedadam", '{"beta2": -0.1}', "fedadam: beta2 = -0.1: must be at least 0 and below 1"),
        ("fedyogi", '{"beta2": 1.0}', "fedyogi: beta2 = 1.0: must be at least 0 and below 1"),
        ("fedyogi", '{"beta1": "x"}', "fedyogi: beta1 = 'x': must be a number"),
        ("fedadam", '{"lr": 0}', "fedadam: lr = 0: must be above 0"),
        ("fedyogi", '{"tau": "x"}', "fedyogi: tau = 'x': must be a number"),
        ("multikrum", '{"bad": 1.5}', "multikrum: bad = 1.5: must be a whole number"),
        ("multikrum", '{"keep": true}', "multikrum: keep = True: must be a whole number"),
        ("centredclip", '{"iterations": 2.5}', "iterations = 2.5: must be a whole number"),
        ("scaffold", '{"population": 2.5}', "population = 2.5: must be a whole number"),
        ("feddyn", '{"population": "3"}', "population = '3': must be a whole number"),
        ("fedlmd", '{"temperature": 1e4}', "fedlmd: temperature = 10000.0: choose 0.001 to 1000.0"),
        ("fedexp", '{"cap": 0.5}', "fedexp: cap = 0.5: must be ≥ 1"),
        ("fedexp", '{"cup": 2}', "unexpected keyword argument 'cup'"),
    ],
)
def test_a_parameter_that_cannot_be_is_refused(scheme: str, args: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_scheme(make_config(**{"scheme": scheme, "scheme-args": args}))


def test_scheme_args_set_the_parameters() -> None:
    config = make_config(**{"scheme": "fedyogi", "scheme-args": '{"lr": 0.5, "beta1": 0}'})
    assert make_scheme(config) == FedYogi(lr=0.5, beta1=0)
    assert FedYogi() != FedAdam()
