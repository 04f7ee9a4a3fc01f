"""The local training loop: one client, one round."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from fedmoe_app.config import TrainConfig
from fedmoe_app.data.encoding import Row
from fedmoe_app.local.tasks import Task
from fedmoe_app.moe.routing import RoutingRecorder
from fedmoe_app.moe.trainable import Trainables
from fedmoe_app.schemes.base import LocalStep, Scheme


@dataclass(frozen=True)
class TrainResult:
    """Mean task loss over the round's steps, and how many steps there were."""

    loss: float
    num_steps: int


def client_seed(seed: int, server_round: int, client: int) -> int:
    """Derive a client's seed for a round; the same on every node and in every order."""
    return int(np.random.SeedSequence([seed, server_round, client]).generate_state(1)[0])


@contextmanager
def one_client(seed: int, threads: int) -> Iterator[None]:
    """Seed torch and limit its threads; restore both, since clients share processes."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(before)


def num_steps(num_examples: int, config: TrainConfig) -> int:
    """Return the optimiser steps of a round: epochs times batches, at most ``max-steps``."""
    batches = math.ceil(num_examples / config.per_device_train_batch_size)
    steps = max(1, round(config.num_train_epochs * batches))
    return min(steps, config.max_steps) if config.max_steps else steps


def train_batches(rows: Sequence[Row], config: TrainConfig, seed: int) -> Iterator[list[Row]]:
    """Yield the round's batches: a new shuffle each epoch, the last batch of one may be smaller."""
    generator = torch.Generator().manual_seed(seed)
    remaining, size = num_steps(len(rows), config), config.per_device_train_batch_size
    while remaining > 0:
        order = torch.randperm(len(rows), generator=generator).tolist()
        for start in range(0, min(len(rows), remaining * size), size):
            yield [rows[i] for i in order[start : start + size]]
            remaining -= 1


@dataclass(frozen=True)
class LocalRun:
    """Everything that takes part in a client's training steps."""

    model: PreTrainedModel
    trainables: Trainables
    recorder: RoutingRecorder
    task: Task
    scheme: Scheme
    broadcast: dict[str, Tensor]
    received: Mapping[str, Tensor]  # global values; local training may start from others
    top_k: int
    own_step: Callable[[], None] | None = None  # steps what trains on the same loss beside it


def train(run: LocalRun, rows: Sequence[Row], config: TrainConfig, seed: int) -> TrainResult:
    """Train the chosen experts, the gates and the dense tensors on a client's examples.

    A fresh AdamW each round: no momentum of an earlier round moves a tensor that this round's
    data does not reach.
    """
    parameters = run.trainables.named_parameters()
    reference = {**run.trainables.reference(), **run.received}
    optimiser = torch.optim.AdamW(
        parameters.values(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    run.model.train()
    losses: list[float] = []
    for batch in train_batches(rows, config, seed):
        task_loss = _task_loss(run, batch)
        step = LocalStep(parameters, reference, _router_probs(run), run.broadcast, run.top_k)
        extra = run.scheme.extra_loss(step)
        optimiser.zero_grad(set_to_none=True)
        (task_loss if extra is None else task_loss + extra).backward()
        run.trainables.count_step()
        if config.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(parameters.values(), config.max_grad_norm)
        optimiser.step()
        if run.own_step is not None:
            run.own_step()
        losses.append(float(task_loss.detach()))
    return TrainResult(sum(losses) / len(losses), len(losses))


def _task_loss(run: LocalRun, rows: Sequence[Row]) -> Tensor:
    batch = run.task.collate(rows, run.model.device)
    run.recorder.mask(batch.attention_mask, batch.decoder_mask)
    return run.task.loss(run.model, batch)


def _router_probs(run: LocalRun) -> Sequence[Tensor]:
    return run.recorder.probs if run.scheme.needs_router_probs else ()
