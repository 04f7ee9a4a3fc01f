"""The parts of a Mixture-of-Experts model that travel: dense tensors, gates, experts.

Keys are stable and readable::

    layers.3.experts.7.down_proj     tensor of expert 7 in the fourth MoE layer (index 3)
    layers.3.gate.weight             tensor of that layer's gate (router)
    model.norm.weight                any other parameter, by its own name in the model

``layers.N`` counts the MoE layers in model order (an encoder's before a decoder's), not all layers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

Tensors = dict[str, Tensor]
ExpertKey = tuple[int, int]  # (MoE layer index, expert index)

RESIDUAL = ".lora_R"  # ends the name of what the server adds to an adapter beside A and B

_EXPERT = re.compile(r"layers\.(\d+)\.experts\.(\d+)\.(.+)")
_GATE = re.compile(r"layers\.(\d+)\.gate\.(.+)")


def expert_name(layer: int, expert: int, tensor: str) -> str:
    """Return the key of one tensor of one expert."""
    return f"layers.{layer}.experts.{expert}.{tensor}"


def expert_of(key: str) -> ExpertKey | None:
    """Return which expert a key belongs to; None for gates and dense tensors."""
    match = _EXPERT.fullmatch(key)
    return (int(match[1]), int(match[2])) if match else None


def moved_by_server(key: str) -> bool:
    """Whether a tensor is never trained by clients, and so does not travel up."""
    return key.endswith(RESIDUAL)


def gate_of(key: str) -> int | None:
    """Return the layer whose gate a key belongs to; None for experts and dense tensors."""
    match = _GATE.fullmatch(key)
    return int(match[1]) if match else None


def gate_name(layer: int, tensor: str) -> str:
    """Return the key of one tensor of one gate."""
    return f"layers.{layer}.gate.{tensor}"


@dataclass
class ModelState:
    """Values, or changes, of a model's parameters, sorted by the part they belong to."""

    dense: Tensors = field(default_factory=dict)
    gates: dict[int, Tensors] = field(default_factory=dict)
    experts: dict[ExpertKey, Tensors] = field(default_factory=dict)

    def named(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every tensor with its key: dense, then gates, then experts, in order."""
        yield from self.dense.items()
        for layer, tensors in sorted(self.gates.items()):
            for name, tensor in tensors.items():
                yield gate_name(layer, name), tensor
        for (layer, expert), tensors in sorted(self.experts.items()):
            for name, tensor in tensors.items():
                yield expert_name(layer, expert, name), tensor

    def insert(self, key: str, tensor: Tensor) -> None:
        """Put a tensor where its key says."""
        if match := _EXPERT.fullmatch(key):
            expert = self.experts.setdefault((int(match[1]), int(match[2])), {})
            expert[match[3]] = tensor
        elif match := _GATE.fullmatch(key):
            self.gates.setdefault(int(match[1]), {})[match[2]] = tensor
        else:
            self.dense[key] = tensor


def flatten(tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> Tensor:
    """Join the tensors of one expert or gate into one vector ``[P]``, in the order of ``like``."""
    return torch.cat([tensors[name].reshape(-1) for name in like])


def unflatten(vector: Tensor, like: Mapping[str, Tensor]) -> Tensors:
    """Undo :func:`flatten`: views of ``vector`` in the shapes of ``like``."""
    parts = vector.split([tensor.numel() for tensor in like.values()])
    return {
        name: part.view_as(tensor) for (name, tensor), part in zip(like.items(), parts, strict=True)
    }
