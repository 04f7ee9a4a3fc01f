"""Gradient accumulation: small batches give the gradient of a large one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fedmoe_app import Plan, make_scheme
from fedmoe_app.client.train import LocalRun, _backward
from fedmoe_app.moe.routing import RoutingRecorder
from fedmoe_app.moe.training.trainable import Trainables
from fedmoe_app.tasks.setup import load_setup
from tests.conftest import make_config

ROWS: list[Any] = [{"input_ids": [1, 5 + i, 9, 2 + i % 3], "labels": i % 2} for i in range(7)]


def gradients(scheme: str, batch_size: int) -> tuple[float, dict[str, torch.Tensor]]:
    config = make_config(**{"train.per-device-train-batch-size": batch_size, "scheme": scheme})
    setup = load_setup(config, ["a", "b"])
    terms = [(term, {}) for term in Plan.of(make_scheme(config), setup.shape).client.terms]
    with Trainables(setup.model, setup.layers) as trainables, RoutingRecorder(setup.layers) as rec:
        run = LocalRun(setup.model, trainables, rec, setup.task, {}, setup.shape.top_k, terms)
        parameters = trainables.named_parameters()
        # As if the model had moved: the proximal term is not zero.
        reference = {key: p.detach() + 0.1 for key, p in parameters.items()}
        losses = _backward(run, ROWS, range(len(ROWS)), config.train, parameters, reference)
        loss = sum(share * float(value) for share, value in losses)
        return loss, {k: p.grad.clone() for k, p in parameters.items() if p.grad is not None}


@pytest.mark.parametrize("scheme", ["fedavg", "fedprox"])
@pytest.mark.parametrize("size", [1, 3])
def test_small_batches_give_the_gradient_of_a_large_one(scheme: str, size: int) -> None:
    loss, wanted = gradients(scheme, 7)
    small_loss, found = gradients(scheme, size)
    assert small_loss == pytest.approx(loss, abs=1e-6)
    assert found.keys() == wanted.keys()
    for key, gradient in wanted.items():
        torch.testing.assert_close(found[key], gradient, atol=1e-6, rtol=1e-4, msg=key)
