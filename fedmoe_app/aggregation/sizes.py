"""How large a reply is: norms of its blocks, and the numbers by which schemes weigh clients.

What the guard holds against the median client (:mod:`fedmoe_app.aggregation.guard`).
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedmoe_app.aggregation.medians import MAJORITY, typical_norms
from fedmoe_app.aggregation.totals import Sketch
from fedmoe_app.moe.routing import RoutingStats
from fedmoe_app.moe.state import ExpertKey

if TYPE_CHECKING:
    from fedmoe_app.wire.spec import NumberSpec
    from fedmoe_app.wire.update import ClientUpdate

CHUNK = 1 << 17  # values whose squares are summed in float32: exact enough, and in a core's cache
KINDS = ("dense", "gates", "expert", "whole")
Shares = tuple[float, ...]  # examples, tokens, margin, examples a step, and the surest expert


@dataclass(frozen=True)
class Size:
    """How large a reply is, as it came.

    Attributes:
        dense, gates: ‖Δ‖ of all dense tensors, and of all gates.
        experts: ‖Δ‖ of each expert.
        examples: n_i.
        tokens: of the layer that saw most.
        margin: by which the best expert of a token leads, mean over tokens and layers.
        steps: optimiser steps; 0 for none said.
        surest: the largest prob·margin of an expert.
        masses: Σ of the numbers that weigh it, by mass.
        numbers: what the scheme's own numbers are, by the name under which they travel.
        adding_up: those of them that it sent and that add up over rounds: the sketch of them.
        lengths: the norms of these, tensor by tensor.
        client: that sent it.
        way: the sketch of its direction, ``[PLACES]``, where one is looked at.
    """

    dense: float
    gates: float
    experts: Mapping[ExpertKey, float]
    examples: int
    tokens: int
    margin: float
    steps: float = 0.0
    surest: float = 0.0
    masses: Mapping[str, float] = field(default_factory=dict)
    numbers: Mapping[str, NumberSpec] = field(default_factory=dict)
    adding_up: Sketch = field(default_factory=dict)
    lengths: tuple[float, ...] = ()
    client: int = -1
    way: Tensor | None = field(default=None, compare=False)

    @property
    def shares(self) -> Shares:
        """What schemes weigh clients by."""
        a_step = self.examples / max(self.steps, 1.0)
        return (self.examples, self.tokens, self.margin, a_step, self.surest)

    @property
    def whole(self) -> float:
        """‖Δ‖ of all together."""
        return root((self.dense, self.gates, *self.experts.values()))

    def of(self, kind: str) -> list[float]:
        """Return the norms of the blocks of a kind that moved at all."""
        blocks = {
            "dense": (self.dense,),
            "gates": (self.gates,),
            "expert": self.experts.values(),
            "whole": (self.whole,),
        }
        return [norm for norm in blocks[kind] if norm > 0]


def size_of(update: ClientUpdate, numbers: Mapping[str, NumberSpec] | None = None) -> Size:
    """Return how large a reply is; it reads all of its changes once.

    Args:
        update: as it came.
        numbers: what the scheme's own numbers are, by the name under which they travel.
    """
    numbers = numbers or {}
    masses: dict[str, float] = {}
    lengths: list[float] = []
    for name, number in numbers.items():
        if name in update.statistics and number.mass:
            own = float(update.statistics[name].double().sum())
            masses[number.mass] = masses.get(number.mass, 0.0) + own
        if name in update.statistics and number.adds_up:
            lengths.append(norm_of([update.statistics[name]]))
    changes = update.changes
    gates = [tensor for tensors in changes.gates.values() for tensor in tensors.values()]
    return Size(
        norm_of(changes.dense.values()),
        norm_of(gates),
        {key: norm_of(tensors.values()) for key, tensors in sorted(changes.experts.items())},
        update.num_examples,
        tokens_of(update.routing),
        margin_of(update.routing),
        update.metrics.get("num-steps", 0.0),
        surest_of(update.routing),
        masses,
        numbers,
        lengths=tuple(lengths),
        client=update.client,
    )


def norm_of(tensors: Iterable[Tensor]) -> float:
    """‖·‖ of float32 tensors together.

    Each chunk's root of squares is that of torch, whose bits, unlike those of a dot product, do not
    depend on where in memory a tensor lies: the same replies have the same norms.
    """
    squares = 0.0
    for tensor in tensors:
        for chunk in tensor.reshape(-1).split(CHUNK):
            squares += float(torch.linalg.vector_norm(chunk)) ** 2
    return squares**0.5


def tokens_of(routing: RoutingStats) -> int:
    """Return the tokens of the layer that saw most."""
    return int(routing.tokens.max()) if routing.tokens.numel() else 0


def margin_of(routing: RoutingStats) -> float:
    """Return the mean lead of a token's best expert, over tokens and layers."""
    return float(routing.margin.double().sum(dim=1).mean()) if routing.margin.numel() else 0.0


def surest_of(routing: RoutingStats) -> float:
    """Return the largest product of an expert's mean probability and its mean lead."""
    scores = routing.prob.double() * routing.margin.double()
    return float(scores.max()) if scores.numel() else 0.0


def typical_of(sizes: Sequence[Size]) -> dict[str, float]:
    """Return the median norm by kind; without the kinds, or rounds, that have none.

    In the median of the experts each client weighs 1, shared out over those that it moved.
    """
    return typical_norms([{kind: size.of(kind) for kind in KINDS} for size in sizes])


def usual_of(sizes: Sequence[Size]) -> dict[str, float]:
    """Return the median of each mass over all clients, 0 for one that sent none of it.

    Of fewer than three clients there is none.
    """
    if len(sizes) < MAJORITY:
        return {}
    names = sorted({name for size in sizes for name in size.masses})
    return {name: statistics.median(size.masses.get(name, 0.0) for size in sizes) for name in names}


def root(norms: Iterable[float]) -> float:
    """Return the norm of blocks together."""
    return sum(norm * norm for norm in norms) ** 0.5
