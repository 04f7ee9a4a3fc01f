"""Which experts a node has in memory: chosen once a round, loaded for the next one.

The scheme chooses as it always does, by the routing of local examples. What it leaves open is
settled here: the choice is filled up to top-k, without which the router could not run, and a budget
below it is refused.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fedmoe_app.config.errors import ConfigError
from fedmoe_app.config.schema import RunConfig
from fedmoe_app.moe.routing import RoutingStats
from fedmoe_app.moe.shape import ModelShape
from fedmoe_app.schemes.faults import PartError, shown
from fedmoe_app.schemes.parts import Once
from fedmoe_app.schemes.views import LocalClient
from fedmoe_app.wire.records import TrainTask
from fedmoe_app.wire.update import Placement

_USAGE_EXAMPLES = 256  # for filling up, where a scheme chose without looking at any


def experts_to_load(config: RunConfig, task: TrainTask) -> list[list[int]] | None:
    """Return the experts, by layer, to load for a task: those whose state came with it.

    None means all; an empty list no expert, for a task that brings none.
    """
    if config.model.experts_in_memory == "all":
        return None
    keys = task.state.experts
    num_layers = 1 + max((layer for layer, _ in keys), default=-1)
    return [[e for i, e in sorted(keys) if i == layer] for layer in range(num_layers)]


def choose(select: Once, client: LocalClient) -> Placement:
    """Choose by the model as it is, all experts running, and fill up to top-k.

    Raises:
        ConfigError: the budget is below top-k.
        PartError: see :func:`chosen_by`.
    """
    budget, shape = _budget(select, client), client.shape
    seen: list[RoutingStats] = []

    def usage(max_examples: int) -> RoutingStats:
        seen.append(client.usage(max_examples))
        return seen[-1]

    chosen = torch.zeros(shape.num_layers, shape.num_experts, dtype=torch.bool)
    for layer, experts in enumerate(chosen_by(select, replace(client, usage=usage))):
        chosen[layer, list(experts)] = True
    if bool((chosen.sum(dim=1) < shape.top_k).any()):
        stats = seen[-1] if seen else usage(_USAGE_EXAMPLES)
        chosen = fill_up(chosen, stats.prob, shape.top_k)
    return Placement(chosen, budget)


def chosen_by(select: Once, client: LocalClient) -> list[list[int]]:
    """Return the experts that a part chooses, by layer.

    Raises:
        PartError: it chose for another number of layers, or experts that the model has not.
    """
    found, shape = select.choose(client), client.shape
    if not isinstance(found, Sequence) or len(found) != shape.num_layers:
        layers = f"{len(found)} layers" if isinstance(found, Sequence) else shown(found)
        raise PartError.of(
            select,
            "choose",
            f"returned {layers}: must be experts of each of the model's {shape.num_layers} MoE "
            "layers",
        )
    for layer, experts in enumerate(found):
        strange = experts
        if isinstance(experts, Collection):
            strange = [e for e in experts if not _is_expert(e, shape.num_experts)]
            if not strange:
                continue
        raise PartError.of(
            select,
            "choose",
            f"returned {strange!r} for layer {layer}: must be experts 0 to {shape.num_experts - 1}",
        )
    return [[int(e) for e in experts] for experts in found]


def assigned_by(task: TrainTask, shape: ModelShape) -> list[list[int]] | None:
    """Return the experts that the server has this client train, by layer; None if it has not.

    Raises:
        ValueError: they are those of another model.
    """
    experts = task.assigned
    if experts is None:
        return None
    if tuple(experts.shape) != (shape.num_layers, shape.num_experts):
        raise ValueError(
            f"assigned experts of shape {list(experts.shape)}: the model has {shape.num_layers} "
            f"MoE layers of {shape.num_experts}"
        )
    return [row.nonzero().flatten().tolist() for row in experts]


def _is_expert(expert: object, num_experts: int) -> bool:
    try:
        number = int(expert)  # type: ignore[call-overload]
    except (TypeError, ValueError):
        return False
    return bool(number == expert) and 0 <= number < num_experts


def fill_up(chosen: Tensor, prob: Tensor, least: int) -> Tensor:
    """Add the experts of largest mean probability to layers with fewer than ``least``.

    Args:
        chosen: ``[L, E]`` bool.
        prob: mean of p(x, e), ``[L, E]``; a tie takes the lower index.
        least: experts that each layer must have.

    Returns:
        ``[L, E]`` bool; layers with enough stay as they are.
    """
    filled = chosen.clone()
    for layer, row in enumerate(filled):
        lacking = max(0, least - int(row.sum()))
        ranked = prob[layer].masked_fill(row, -1.0).argsort(descending=True, stable=True)
        row[ranked[:lacking]] = True
    return filled


def _budget(select: Once, client: LocalClient) -> int:
    """Return how many experts a layer the client may have."""
    budget = min(select.budget(client), client.shape.num_experts)
    if budget < client.shape.top_k:
        raise ConfigError(
            f"a budget of {budget} experts a layer: a token uses {client.shape.top_k}, and with "
            'model.experts-in-memory = "chosen" no others are there; give the node an '
            f"expert-budget of at least {client.shape.top_k}"
        )
    return budget
