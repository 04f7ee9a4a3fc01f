"""UpdateSpec: what an update may hold, and in which order its tensors travel.

Names and shapes need not travel: both sides know the model. Only which experts were trained does,
as part of the routing statistics.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from fedmoe_app.moe.state import (
    ExpertKey,
    ModelState,
    expert_name,
    gate_name,
    moved_by_server,
)

Shape = tuple[int, ...]
T = TypeVar("T")


@dataclass(frozen=True)
class NumberSpec:
    """Shape and bounds of a number of a scheme's own, and by what the guard bounds it.

    The attributes are those of :class:`fedmoe_app.schemes.parts.Field`.
    """

    shape: Shape
    low: float
    high: float
    optional: bool = False
    mass: str = ""
    rises: float = 1.0
    falls: float = 0.0
    adds_up: bool = False


@dataclass(frozen=True)
class UpdateSpec:
    """Names and shapes that an update may hold, taken from the global model, and its codecs."""

    dense: dict[str, Shape]
    gates: dict[str, Shape]
    experts: dict[ExpertKey, dict[str, Shape]]
    num_layers: int
    num_experts: int
    region_size: int = 0  # hidden size D if regions are wanted, else 0
    codecs: tuple[str, ...] = ("fp32",)  # those that the server offered
    top_k: int = 0  # K if nodes choose the experts that they hold, else 0
    statistics: Mapping[str, NumberSpec] = field(default_factory=dict)  # of the scheme's own
    # What no client trains of an expert, by short name; it does not travel up.
    still: Mapping[ExpertKey, Mapping[str, Shape]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        state: ModelState,
        region_size: int = 0,
        codecs: tuple[str, ...] = ("fp32",),
        top_k: int = 0,
    ) -> UpdateSpec:
        """Describe what a client may change in this global state."""
        return cls(
            dense={name: tuple(tensor.shape) for name, tensor in state.dense.items()},
            gates={
                gate_name(layer, name): tuple(tensor.shape)
                for layer, tensors in state.gates.items()
                for name, tensor in tensors.items()
            },
            experts={
                key: {
                    expert_name(*key, name): tuple(t.shape)
                    for name, t in tensors.items()
                    if not moved_by_server(name)
                }
                for key, tensors in state.experts.items()
            },
            num_layers=1 + max((layer for layer, _ in state.experts), default=-1),
            num_experts=1 + max((expert for _, expert in state.experts), default=-1),
            region_size=region_size,
            codecs=codecs,
            top_k=top_k,
            still={
                key: {n: tuple(t.shape) for n, t in tensors.items() if moved_by_server(n)}
                for key, tensors in state.experts.items()
            },
        )

    def shapes(self, trained: Collection[ExpertKey]) -> dict[str, Shape]:
        """Return names and shapes of an update that trained these experts, as they travel."""
        return in_order(self.dense, self.gates, {key: self.experts[key] for key in trained})


def add_still(changes: ModelState, spec: UpdateSpec) -> None:
    """Complete the trained experts of an update by zeros for what no client trains."""
    for key, tensors in changes.experts.items():
        for name, shape in spec.still.get(key, {}).items():
            tensors[name] = torch.zeros(()).expand(shape)


def in_order(
    dense: Mapping[str, T], gates: Mapping[str, T], experts: Mapping[ExpertKey, Mapping[str, T]]
) -> dict[str, T]:
    """Return all tensors by their full names: dense, gates, then expert after expert, by name."""
    groups = [dense, gates, *(experts[key] for key in sorted(experts))]
    return {name: group[name] for group in groups for name in sorted(group)}


def tensors_in_order(changes: ModelState) -> dict[str, Tensor]:
    """Return the tensors of an update by their full names in the order of travel."""
    gates = {
        gate_name(layer, name): tensor
        for layer, tensors in changes.gates.items()
        for name, tensor in tensors.items()
    }
    experts = {
        key: {expert_name(*key, name): tensor for name, tensor in tensors.items()}
        for key, tensors in changes.experts.items()
    }
    return in_order(changes.dense, gates, experts)
