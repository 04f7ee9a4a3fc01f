"""DP-SGD on a client's examples; equations in :mod:`fedmoe_app.privacy.example_level`.

Each drawn example is a forward and a backward pass of its own. That is what makes its gradient its
own whatever the model couples in a batch: routing by capacity, load-balancing losses over means.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from fedmoe_app.client.memory import release
from fedmoe_app.client.train import (
    Factor,
    LocalRun,
    TrainResult,
    constant,
    frozen,
    leaf,
    sum_of_terms,
)
from fedmoe_app.config.schema import TrainConfig
from fedmoe_app.data.encoding import Row
from fedmoe_app.moe.spread import at_home
from fedmoe_app.moe.state import Tensors
from fedmoe_app.privacy.example_level import ExampleLevel
from fedmoe_app.privacy.randomness import OfSystem, Randomness
from fedmoe_app.schemes.views import LocalStep

_log = logging.getLogger(__name__)


def train_by_example(
    run: LocalRun,
    rows: Sequence[Row],
    config: TrainConfig,
    level: ExampleLevel,
    factor: Factor = constant,
    randomness: Randomness | None = None,
) -> TrainResult:
    """Train what is trainable by noised sums of clipped gradients; every expert counts as trained.

    Args:
        run: what takes part; of its parts only terms of the weights and what is frozen.
        rows: encoded examples.
        config: names as in transformers' ``TrainingArguments``; ``examples_per_step`` is B.
        level: the mechanism.
        factor: on the learning rate, by step of this round.
        randomness: of draws and noise; None is the operating system's.

    Returns:
        no loss: that would tell of the examples.
    """
    randomness = randomness or OfSystem()
    parameters = run.trainables.named_parameters()
    optimiser = torch.optim.AdamW(
        run.trainables.leaves(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    schedule = LambdaLR(optimiser, factor)
    run.model.train()
    with frozen([leaf(parameters, name) for name in run.frozen]):
        leaves = {name: leaf(parameters, name) for name in parameters}
        trained = {name: p for name, p in leaves.items() if p.requires_grad}
        for _ in range(level.steps):
            drawn = (randomness.uniform(len(rows)) <= level.rate).nonzero()[0].tolist()
            sums = clipped_sum(run, [rows[i] for i in drawn], trained, level.clip)
            for name, parameter in trained.items():
                noise = torch.from_numpy(randomness.normal(parameter.numel()))
                noised = sums[name].double().cpu() + level.noise * level.clip * noise.view_as(
                    sums[name]
                )
                parameter.grad = (noised / config.examples_per_step).to(parameter)
            _add_terms(run, trained)
            if config.max_grad_norm:
                torch.nn.utils.clip_grad_norm_(trained.values(), config.max_grad_norm)
            optimiser.step()
            schedule.step()
            run.trainables.count_all()  # noise moves them all
    return TrainResult(0.0, level.steps)


def clipped_sum(
    run: LocalRun, rows: Sequence[Row], trained: Mapping[str, nn.Parameter], clip: float
) -> Tensors:
    """Return Σ g·min(1, C/‖g‖) over the gradients of single examples, by name, float32.

    One that is not finite adds nothing: it would be all that is left of the sum. Nor does one whose
    pass fails, such as a long one for want of memory: a round that ended there would tell of it.
    """
    sums = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in trained.items()}
    for row in rows:
        for parameter in trained.values():
            parameter.grad = None
        try:
            _backward(run, row)
        except Exception as error:
            failed = type(error).__name__
            release(error)
            _log.warning("the pass of an example failed (%s); it adds nothing to the step", failed)
            continue
        found = {name: p.grad for name, p in trained.items() if p.grad is not None}
        norm = _norm(list(found.values()))
        if not torch.isfinite(norm):
            continue
        share = min(1.0, clip / max(float(norm), torch.finfo(torch.float64).tiny))
        for name, gradient in found.items():
            sums[name].add_(gradient.float(), alpha=share)
    return sums


def _backward(run: LocalRun, row: Row) -> None:
    batch = run.task.collate([row], run.model.device)
    run.recorder.mask(batch.attention_mask, batch.decoder_mask)
    loss = run.task.loss(run.model, batch)
    if loss.requires_grad:
        loss.backward()


def _norm(gradients: Sequence[Tensor]) -> Tensor:
    """Return the norm of all as one vector, float64."""
    squares = [gradient.double().square().sum() for gradient in gradients]
    if not squares:
        return torch.zeros((), dtype=torch.float64)
    # A model's layers may lie on several devices.
    return torch.stack([square.to(squares[0].device) for square in squares]).sum().sqrt()


def _add_terms(run: LocalRun, trained: Mapping[str, nn.Parameter]) -> None:
    """Add the gradient of terms of the weights, which tell nothing of examples."""
    if not run.terms:
        return
    reference = at_home(run.model, {**run.trainables.reference(), **run.received})
    parameters = at_home(run.model, run.trainables.named_parameters())
    step = LocalStep(parameters, reference, told=run.told, top_k=run.top_k)
    extra = sum_of_terms(run, step, torch.zeros(()))
    if extra is not None and extra.requires_grad:
        extra.backward()
