"""The learning rate over all rounds of a run."""

from __future__ import annotations

import pytest

from fedmoe_app import ConfigError
from fedmoe_app.client.train import learning_rate_factor
from tests.conftest import make_config


def factors(server_round: int, **train: object) -> list[float]:
    """Of a run of two rounds with four steps each."""
    config = make_config(**{f"train.{key}": value for key, value in train.items()}).train
    factor = learning_rate_factor(config, server_round, num_rounds=2, steps=4)
    return [round(factor(step), 4) for step in range(4)]


def test_constant_is_the_default() -> None:
    assert factors(1) == factors(2) == [1.0] * 4


def test_linear_decay_goes_on_in_the_next_round() -> None:
    kind = {"lr-scheduler-type": "linear"}
    assert factors(1, **kind) == [1.0, 0.875, 0.75, 0.625]
    assert factors(2, **kind) == [0.5, 0.375, 0.25, 0.125]


def test_warm_up_reaches_into_the_next_round() -> None:
    kind = {"lr-scheduler-type": "constant_with_warmup", "warmup-steps": 5.0}
    assert factors(1, **kind) == [0.0, 0.2, 0.4, 0.6]
    assert factors(2, **kind) == [0.8, 1.0, 1.0, 1.0]


def test_warm_up_below_one_is_a_share_of_all_steps() -> None:
    kind = {"lr-scheduler-type": "linear", "warmup-steps": 0.25}
    assert factors(1, **kind) == [0.0, 0.5, 1.0, 0.8333]


def test_cosine() -> None:
    assert factors(2, **{"lr-scheduler-type": "cosine"}) == [0.5, 0.3087, 0.1464, 0.0381]


def test_warm_up_of_a_constant_rate_is_refused() -> None:
    with pytest.raises(ConfigError, match="does nothing: choose"):
        make_config(**{"train.warmup-steps": 3.0})
