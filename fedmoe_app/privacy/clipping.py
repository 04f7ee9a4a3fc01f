"""One bound over all that a client sends in a round."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedmoe_app.moe.routing import RoutingStats
from fedmoe_app.moe.state import ModelState

if TYPE_CHECKING:
    from fedmoe_app.wire.update import ClientUpdate

_SLACK = 1e-6  # products are rounded to float32: the norm stays below the bound all the same


def whole_norm(changes: ModelState) -> float:
    """Return the norm of all changes as one vector, in float64; untrained experts count as 0."""
    squares = [float(t.double().square().sum()) for _, t in changes.named()]
    return sum(squares) ** 0.5


def clipped(changes: ModelState, bound: float) -> ModelState:
    """Return Δ·min(1, bound/‖Δ‖); the same object where nothing is cut."""
    norm = whole_norm(changes)
    if norm <= bound:
        return changes
    factor = bound / norm * (1 - _SLACK)
    cut = ModelState()
    for name, tensor in changes.named():
        cut.insert(name, tensor * factor)
    return cut


def bounded(update: ClientUpdate, bound: float) -> ClientUpdate:
    """Return what of an update may leave a client: clipped changes, and of whom they are.

    Everybody weighs 1. Of the histogram only remains which experts were trained, since their
    changes are there; no metrics, statistics or number of examples.
    """
    return replace(only_changes(update), changes=clipped(update.changes, bound))


def only_changes(update: ClientUpdate) -> ClientUpdate:
    """Return an update without all that stands beside its changes; everybody weighs 1."""
    return replace(
        update,
        num_examples=1,
        num_partitions=0,
        routing=only_trained(update.routing),
        metrics={"train-loss": 0.0},
        statistics={},
    )


def only_trained(routing: RoutingStats) -> RoutingStats:
    """Return a histogram that says which experts were trained, and otherwise the same of all."""
    return routing_of((routing.trained > 0).long())


def routing_of(trained: Tensor) -> RoutingStats:
    """Return the plainest histogram with these experts trained, ``[L, E]`` int64 of 0 and 1."""
    tokens = trained.sum(dim=1)  # [L]
    even = ((tokens > 0).float().unsqueeze(1) / trained.shape[1]).expand(trained.shape).contiguous()
    zeros = torch.zeros(trained.shape)
    return RoutingStats(
        count=trained,
        prob=even,
        margin=zeros,
        peak=even,
        kl=zeros,
        trained=trained,
        tokens=tokens,
    )
