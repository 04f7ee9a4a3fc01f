"""A part of the loss that would train nothing, or make everything NaN, is the client's error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fedmoe_app import LocalStep, TaskLoss, WeightTerm
from fedmoe_app.client.losses import check_loss
from fedmoe_app.client.train import LocalRun, train
from fedmoe_app.moe.routing import RoutingRecorder
from fedmoe_app.moe.training.trainable import Trainables
from fedmoe_app.schemes.faults import PartError
from fedmoe_app.schemes.parts import Term
from fedmoe_app.tasks.setup import load_setup
from tests.conftest import make_config

ROWS: list[Any] = [{"input_ids": [1, 5 + i, 9], "labels": i % 2} for i in range(4)]
NAN = torch.tensor(torch.nan)
ONE = torch.tensor(1.0)


def term(found: Callable[[Tensor], Any]) -> Term:
    class Mine(WeightTerm):
        def loss(self, step: LocalStep) -> Tensor | None:
            parameter = next(iter(step.parameters.values()))
            return found(parameter.square().mean())  # type: ignore[no-any-return]

    return Mine()


def train_with(part: Term) -> None:
    config = make_config()
    setup = load_setup(config, ["a", "b"])
    with Trainables(setup.model, setup.layers) as trainables, RoutingRecorder(setup.layers) as rec:
        run = LocalRun(
            *(setup.model, trainables, rec, setup.task, {}, setup.shape.top_k), [(part, {})]
        )
        train(run, ROWS, config.train, seed=0)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (lambda x: 0.5, r"Mine\.loss: returned 0\.5: must be a scalar tensor with graph, or None"),
        (lambda x: x * torch.ones(2), r"Mine\.loss: returned a tensor of shape \[2\]"),
        (lambda x: x * NAN, r"Mine\.loss: returned nan: must be finite"),
        (lambda x: x.detach() + 1, r"Mine\.loss: returned 1\.\d+ without graph"),
    ],
    ids=["float", "vector", "nan", "detached"],
)
def test_a_term_that_trains_nothing_is_named(found: Callable[[Tensor], Any], message: str) -> None:
    with pytest.raises(PartError, match=message):
        train_with(term(found))


@pytest.mark.parametrize(
    "found",
    [lambda x: None, lambda x: torch.zeros(()), lambda x: 0.1 * x],
    ids=["none", "zero", "scaled"],
)
def test_a_term_may_say_nothing(found: Callable[[Tensor], Any]) -> None:
    train_with(term(found))


def test_a_term_that_writes_to_a_parameter_is_named() -> None:
    class Shrinks(WeightTerm):
        def loss(self, step: LocalStep) -> Tensor | None:
            with torch.no_grad():
                next(iter(step.parameters.values())).mul_(0.9)
            return None

    with pytest.raises(PartError, match=r"Shrinks\.loss: wrote in place to step\.parameters"):
        train_with(Shrinks())


class Own(TaskLoss):
    def loss(self, step: LocalStep) -> Tensor:
        return step.logits.mean()


def test_a_graph_is_asked_for_only_where_something_is_trained() -> None:
    trained, frozen = torch.ones(2, 2, requires_grad=True), torch.ones(2, 2)
    assert check_loss(Own(), ONE, LocalStep({}, {}, logits=frozen), frozen) is ONE
    with pytest.raises(PartError, match=r"Own\.loss: returned 1\.0 without graph"):
        check_loss(Own(), ONE, LocalStep({}, {}, logits=trained), trained)


def test_nan_after_training_diverged_is_no_fault_of_the_part() -> None:
    assert check_loss(Own(), NAN, LocalStep({}, {}), read=NAN) is NAN
    with pytest.raises(PartError, match=r"Own\.loss: returned nan: must be finite"):
        check_loss(Own(), NAN, LocalStep({}, {}), read=ONE)
