"""The learning rate over a whole federated run, not over one round.

Every round starts a fresh optimiser, but warm-up and decay go on where the round before ended: step
s of round r is step (r − 1)·steps + s of rounds·steps, with ``steps`` the client's own number of
steps a round. The shapes are those of transformers (``lr_scheduler_type``).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from fedmoe_app.config.schema import TrainConfig

Factor = Callable[[int], float]


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
