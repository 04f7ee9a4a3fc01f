"""DP-SGD on a client: by hand, against gradients of single examples, and what of it leaves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fedmoe_app.client.examples import clipped_sum, train_by_example
from fedmoe_app.client.train import LocalRun
from fedmoe_app.moe.routing import RoutingRecorder
from fedmoe_app.moe.training.trainable import Trainables
from fedmoe_app.privacy.example_level import ExampleLevel
from fedmoe_app.tasks.setup import load_setup
from tests.conftest import make_config

ROWS: list[Any] = [{"input_ids": [1, 5 + i, 9 + 2 * i], "labels": i % 2} for i in range(6)]
CONFIG = make_config(**{"model.train": "expert-lora", "train.max-grad-norm": 0.0})


class Given:
    """Draws and noise that are written down."""

    def __init__(self, draws: Sequence[float], noise: float) -> None:
        self._draws, self._noise = draws, noise

    def uniform(self, size: int) -> NDArray[np.float64]:
        return np.array(self._draws[:size])

    def normal(self, size: int) -> NDArray[np.float64]:
        return np.full(size, self._noise)


@contextmanager
def local_run() -> Iterator[LocalRun]:
    setup = load_setup(CONFIG, ["a", "b"])
    generator = torch.Generator().manual_seed(3)
    with Trainables(setup.model, setup.layers) as trainables, RoutingRecorder(setup.layers) as rec:
        for parameter in trainables.named_parameters().values():  # B of LoRA begins at 0
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
        yield LocalRun(setup.model, trainables, rec, setup.task, {}, setup.shape.top_k)


def gradient(run: LocalRun, row: Any) -> torch.Tensor:
    """One example's gradient over all that is trained, ``[P]``; 0 where it has none."""
    run.model.zero_grad(set_to_none=True)
    parameters = run.trainables.named_parameters()
    loss = run.task.loss(run.model, run.task.collate([row], run.model.device))
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return torch.cat(
        [
            (torch.zeros_like(p) if g is None else g).reshape(-1)
            for g, p in zip(found, parameters.values(), strict=True)
        ]
    )


def flat(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors.values()])


def test_each_gradient_is_cut_by_its_own_norm() -> None:
    with local_run() as run:
        run.model.train()
        alone = [gradient(run, row) for row in ROWS]
        norms = torch.stack([g.norm() for g in alone])
        clip = float(norms.median())  # some are beyond it, some are not
        assert float(norms.min()) < clip < float(norms.max())
        expected = sum(g * min(1.0, clip / float(g.norm())) for g in alone)
        parameters = run.trainables.named_parameters()
        found = flat(clipped_sum(run, ROWS, parameters, clip))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)
        tiny = flat(clipped_sum(run, ROWS[:1], parameters, 1e-3))
        assert float(tiny.norm()) == pytest.approx(1e-3, rel=1e-5)


def test_a_batch_of_several_gives_what_each_gives_alone() -> None:
    """Routing of one example knows of no other: the sum is that of two halves."""
    with local_run() as run:
        parameters = run.trainables.named_parameters()
        whole = flat(clipped_sum(run, ROWS, parameters, 0.1))
        halves = [flat(clipped_sum(run, part, parameters, 0.1)) for part in (ROWS[:3], ROWS[3:])]
        torch.testing.assert_close(whole, halves[0] + halves[1])


@pytest.mark.parametrize(
    ("draws", "drawn"), [([0.1, 0.9, 0.2, 0.9, 0.9, 0.5], [0, 2, 5]), ([1] * 6, [])]
)
def test_a_step_by_hand(draws: list[float], drawn: list[int]) -> None:
    """AdamW's first step is lr·sign of (Σ + z·C·1)/B; who is drawn has a number up to q."""
    level = ExampleLevel(clip=0.1, noise=0.5, rate=0.5, steps=1, rounds=1, delta=1e-5)
    with local_run() as run:
        parameters = run.trainables.named_parameters()
        sums = clipped_sum(run, [ROWS[i] for i in drawn], parameters, level.clip)
        expected = (flat(sums) + 0.05) / CONFIG.train.examples_per_step
        before = {name: p.detach().clone() for name, p in parameters.items()}
        train = CONFIG.train.model_copy(update={"weight_decay": 0.0, "learning_rate": 1e-3})
        result = train_by_example(run, ROWS, train, level, randomness=Given(draws, 1.0))
        moved = torch.cat([(p.detach() - before[n]).reshape(-1) for n, p in parameters.items()])
        held = torch.cat([p.grad.reshape(-1) for p in parameters.values() if p.grad is not None])
        torch.testing.assert_close(held, expected.to(held), rtol=1e-4, atol=1e-8)
        clear = expected.abs() > 1e-5  # beside Adam's 1e-8
        assert bool((moved[clear].sign() == -expected[clear].sign()).all())
        assert (result.loss, result.num_steps) == (0.0, 1)
        assert bool((run.trainables.trained == 1).all())


def test_what_no_token_reached_moves_all_the_same() -> None:
    """An exact 0 would tell which experts the client's examples use."""
    level = ExampleLevel(clip=1.0, noise=1.0, rate=1e-9, steps=1, rounds=1, delta=1e-5)
    with local_run() as run:
        train_by_example(run, ROWS, CONFIG.train, level)
        changes = run.trainables.changes()
        assert len(changes.experts) == run.trainables.trained.numel()
        assert all(bool(tensor.any()) for _, tensor in changes.named())
