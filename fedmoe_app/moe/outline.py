"""What a model is made of and what of it is trained, counted without reading its weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from fedmoe_app.moe.layers import MoELayer, find_moe_layers, read_state
from fedmoe_app.moe.state import ModelState
from fedmoe_app.moe.training.adapt import Adaptation, adapt


@dataclass(frozen=True)
class Outline:
    """Sizes of a model and of what a run trains of it.

    Attributes:
        family: the model type, as transformers calls it.
        layers: its MoE layers, whose tensors have shapes but no values.
        experts, gates, dense: numbers of parameters before adapters are added: of all experts, of
            all routers, and of the rest.
        active: parameters that take part in a token's forward pass: all but the experts that it
            does not use.
        trained: what is trained and sent, as tensors without values.
    """

    family: str
    layers: Sequence[MoELayer]
    experts: int
    gates: int
    dense: int
    active: int
    trained: ModelState

    @property
    def total(self) -> int:
        """All parameters of the model."""
        return self.experts + self.gates + self.dense


def outline(model: PreTrainedModel, adaptation: Adaptation) -> Outline:
    """Count a model that has no values (``loading.empty_model``); it is adapted in place.

    Raises:
        UnsupportedModelError: the model has no MoE layers, or they cannot be adapted.
    """
    layers = find_moe_layers(model)
    total = sum(parameter.numel() for parameter in model.parameters())
    sizes = [_expert_size(layer) for layer in layers]  # [L]
    experts = sum(size * layer.num_experts for size, layer in zip(sizes, layers, strict=True))
    used = sum(size * layer.top_k for size, layer in zip(sizes, layers, strict=True))
    gates = sum(tensor.numel() for layer in layers for tensor in layer.gate().values())
    adapt(model, layers, adaptation, seed=0)
    return Outline(
        family=model.config.model_type,
        layers=layers,
        experts=experts,
        gates=gates,
        dense=total - experts - gates,
        active=total - experts + used,
        trained=read_state(model, layers),
    )


def _expert_size(layer: MoELayer) -> int:
    """Return the number of parameters of one expert."""
    return sum(tensor.numel() for tensor in layer.expert(0).values())
