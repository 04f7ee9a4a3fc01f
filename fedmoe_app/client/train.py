"""The local training loop: one client, one round.

The learning rate over a whole federated run, not over one round.

Every round starts a fresh optimiser, but warm-up and decay go on where the round before ended: step
s of round r is step (r − 1)·steps + s of rounds·steps, with ``steps`` the client's own number of
steps a round. The shapes are those of transformers (``lr_scheduler_type``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel

from fedmoe_app.client.losses import check_logits, check_loss
from fedmoe_app.client.outputs import StepOutputs
from fedmoe_app.config.schema import TrainConfig
from fedmoe_app.data.encoding import Row
from fedmoe_app.moe.routing import RoutingRecorder
from fedmoe_app.moe.spread import at_home
from fedmoe_app.moe.state import Tensors
from fedmoe_app.moe.training.rows import RowsAdamW
from fedmoe_app.moe.training.trainable import Trainables
from fedmoe_app.schemes.faults import call
from fedmoe_app.schemes.parts import Logits, RouterTerm, Signal, TaskLoss, Term
from fedmoe_app.schemes.unwritten import Unwritten
from fedmoe_app.schemes.views import LocalStep
from fedmoe_app.tasks.base import Task

Factor = Callable[[int], float]
_T = TypeVar("_T")


def constant(step: int) -> float:
    """Return the factor of a learning rate that stays as it is."""
    return 1.0


def learning_rate_factor(
    config: TrainConfig, server_round: int, num_rounds: int, steps: int
) -> Factor:
    """Return the factor on the learning rate in step 0, 1, ... of a round, 0 to 1.

    Args:
        config: ``lr-scheduler-type`` and ``warmup-steps``, below 1 a share of all steps.
        server_round: from 1.
        num_rounds: of the run.
        steps: optimiser steps of this client in a round.
    """
    if config.lr_scheduler_type == "constant":
        return constant
    from transformers import get_scheduler  # its module imports peft and bitsandbytes

    total = num_rounds * steps
    warmup = config.warmup_steps if config.warmup_steps >= 1 else config.warmup_steps * total
    # transformers builds its shapes on an optimiser; only their functions are wanted.
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_scheduler(
        config.lr_scheduler_type,
        optimiser,
        num_warmup_steps=round(warmup),
        num_training_steps=total,
    )
    assert isinstance(scheduler, LambdaLR)
    shape, first = scheduler.lr_lambdas[0], (server_round - 1) * steps
    return lambda step: float(shape(first + step))


@dataclass(frozen=True)
class TrainResult:
    """Mean task loss over the round's steps, and how many steps there were."""

    loss: float
    num_steps: int


def num_steps(num_examples: int, config: TrainConfig) -> int:
    """Return the optimiser steps of a round: epochs times batches, at most ``max-steps``."""
    return config.num_steps(num_examples)


def train_batches(rows: Sequence[_T], config: TrainConfig, seed: int) -> Iterator[list[_T]]:
    """Yield the examples, or whatever stands for them, of each optimiser step of a round.

    A new shuffle each epoch; the last step of one may have fewer.
    """
    generator = torch.Generator().manual_seed(seed)
    remaining, size = num_steps(len(rows), config), config.examples_per_step
    while remaining > 0:
        order = torch.randperm(len(rows), generator=generator).tolist()
        for start in range(0, min(len(rows), remaining * size), size):
            yield [rows[i] for i in order[start : start + size]]
            remaining -= 1


def micro_batches(rows: Sequence[_T], config: TrainConfig) -> Iterator[Sequence[_T]]:
    """Split a step's examples into what runs at once, ``per-device-train-batch-size``."""
    size = config.per_device_train_batch_size
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


class MeanOfGradients:
    """Mean over the steps of the task loss's gradient, by tensor, without the terms'.

    A step counts for a tensor if it had a gradient: an expert that no token reached had none.
    """

    def __init__(self) -> None:
        self._sums: Tensors = {}
        self._counts: Counter[str] = Counter()
        self._of_terms: Tensors = {}  # in this step

    def leave_out(self, terms: Tensor, parameters: Mapping[str, Tensor]) -> None:
        """Note the gradient of a step's terms; call it before ``backward``."""
        trained = {key: p for key, p in parameters.items() if p.requires_grad}
        found = torch.autograd.grad(
            terms, list(trained.values()), retain_graph=True, allow_unused=True
        )
        for key, gradient in zip(trained, found, strict=True):
            if gradient is not None:
                _add_to(self._of_terms, key, gradient)

    def count_step(self, parameters: Mapping[str, Tensor]) -> None:
        """Add a step's gradients; call it before they are clipped."""
        for key, parameter in parameters.items():
            if parameter.grad is not None:
                _add_to(self._sums, key, parameter.grad)
                self._counts[key] += 1
                if key in self._of_terms:
                    self._sums[key] -= self._of_terms[key]
        self._of_terms.clear()

    def mean(self) -> Tensors:
        """Return it by full name, float32."""
        return {key: total / self._counts[key] for key, total in self._sums.items()}


def _add_to(sums: Tensors, key: str, tensor: Tensor) -> None:
    sums[key] = sums[key] + tensor if key in sums else tensor.detach().float().clone()


@dataclass(frozen=True)
class LocalRun:
    """Everything that takes part in a client's training steps."""

    model: PreTrainedModel
    trainables: Trainables
    recorder: RoutingRecorder
    task: Task
    received: Mapping[str, Tensor]  # global values; local training may start from others
    top_k: int
    terms: Sequence[tuple[Term, Mapping[str, Tensor]]] = ()  # of the loss, with what each kept
    told: Mapping[Signal, Any] = field(default_factory=dict)  # by the server
    own_step: Callable[[], None] | None = None  # steps what trains on the same loss beside it
    gradient: MeanOfGradients | None = None  # of the task's loss, where a part reads it
    task_loss: TaskLoss | None = None  # in the place of the task's own
    outputs: StepOutputs | None = None  # where a part of the loss reads them
    frozen: Collection[str] = ()  # full names of what is not trained
    relogit: Logits | None = None  # in the place of the model's logits


def train(
    run: LocalRun, rows: Sequence[Row], config: TrainConfig, seed: int, factor: Factor = constant
) -> TrainResult:
    """Train what is trainable on a client's examples.

    A fresh AdamW each round: no momentum of an earlier round moves a tensor that this round's
    data does not reach.

    Args:
        run: what takes part.
        rows: encoded examples.
        config: names as in transformers' ``TrainingArguments``.
        seed: fixes the order of the examples.
        factor: on the learning rate, by step of this round.
    """
    parameters = run.trainables.named_parameters()
    reference = at_home(run.model, {**run.trainables.reference(), **run.received})
    leaves = run.trainables.leaves()
    optimiser = RowsAdamW(
        run.trainables.plain(),
        run.trainables.stacks(),
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
    )
    schedule = LambdaLR(optimiser, factor)
    run.model.train()
    losses: list[_StepLoss] = []
    with frozen([leaf(parameters, name) for name in run.frozen]):
        for examples in train_batches(range(len(rows)), config, seed):
            optimiser.zero_grad(set_to_none=True)
            losses.append(_backward(run, rows, examples, config, parameters, reference))
            run.trainables.count_step(run.recorder.take_routed())
            if run.gradient is not None:
                run.gradient.count_step(parameters)
            if config.max_grad_norm:
                torch.nn.utils.clip_grad_norm_(leaves, config.max_grad_norm)
            optimiser.step()
            schedule.step()
            if run.own_step is not None:
                run.own_step()
    return TrainResult(_mean(losses), len(losses))


_StepLoss = list[tuple[float, Tensor]]  # the share and the mean loss of each micro-batch


def _mean(steps: Sequence[_StepLoss]) -> float:
    """Return the mean over the steps, read from the device at once: it is not waited for before."""
    values = iter(torch.stack([loss for step in steps for _, loss in step]).tolist())
    return sum(sum(share * next(values) for share, _ in step) for step in steps) / len(steps)


def leaf(parameters: Mapping[str, Tensor], name: str) -> nn.Parameter:
    """Return what is trained as a parameter of its own, as all is where single ones are read."""
    parameter = parameters[name]
    assert isinstance(parameter, nn.Parameter)
    return parameter


@contextmanager
def frozen(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Take no gradient of some parameters; the optimiser leaves what has none alone."""
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def _backward(
    run: LocalRun,
    rows: Sequence[Row],
    examples: Sequence[int],
    config: TrainConfig,
    parameters: Mapping[str, Tensor],
    reference: Mapping[str, Tensor],
) -> _StepLoss:
    """Add up the gradients of a step's micro-batches; return their task losses."""
    losses: _StepLoss = []
    for part in micro_batches(examples, config):
        seen = at_home(run.model, parameters)
        step = LocalStep(seen, reference, told=run.told, top_k=run.top_k)
        task_loss, step = _task_loss(run, [rows[i] for i in part], part, step)
        share = len(part) / len(examples)
        extra = sum_of_terms(run, step, task_loss)
        if run.gradient is not None and extra is not None:
            run.gradient.leave_out(share * extra, parameters)
        loss = share * (task_loss if extra is None else task_loss + extra)
        if loss.requires_grad:  # not where all but experts is frozen and the batch met none
            loss.backward()
        losses.append((share, task_loss.detach()))
    return losses


def _task_loss(
    run: LocalRun, rows: Sequence[Row], examples: Sequence[int], step: LocalStep
) -> tuple[Tensor, LocalStep]:
    """Return the task's loss, or what takes its place, and what the other parts see."""
    batch = run.task.collate(rows, run.model.device)
    run.recorder.mask(batch.attention_mask, batch.decoder_mask)
    if run.outputs is None:
        return run.task.loss(run.model, batch), step
    logits, labels = run.task.predict(run.model, batch)
    seen: dict[str, Any] = run.outputs.of(logits, labels, batch, examples)
    step = replace(step, **seen)
    if run.relogit is not None:
        found = call(run.relogit, "logits", step)
        step = replace(step, logits=check_logits(run.relogit, found, step))
    if run.task_loss is None:
        return F.cross_entropy(step.logits, labels), step
    loss = run.task_loss.loss(step)
    return check_loss(run.task_loss, loss, step, read=step.logits), step


def sum_of_terms(run: LocalRun, step: LocalStep, task_loss: Tensor) -> Tensor | None:
    """Return the sum of the loss's terms; None if there is none."""
    total = None
    for term, kept in run.terms:
        probs = run.recorder.probs if isinstance(term, RouterTerm) else ()
        home = [p.to(run.model.device) for p in probs]  # each lies where its layer does
        own = replace(step, router_probs=home, kept=kept)
        unwritten = Unwritten("step", parameters=own.parameters, received=own.received)
        value = term.loss(own)
        unwritten.check(term, "loss")
        if value is not None:
            value = check_loss(term, value, own, read=task_loss)
            total = value if total is None else total + value
    return total
