"""Routers that choose among some experts only, in all ten families."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from fedmoe_app import MoELayer, find_moe_layers
from fedmoe_app.moe.partial.restrict import PlacementError, release_router, restrict_router
from fedmoe_app.moe.routing import RoutingRecorder

from .families import NAMES, batch, build


def placement_of(layers: tuple[MoELayer, ...]) -> list[list[int]]:
    """Another pair of experts in every other layer."""
    return [[0, 1] if layer.index % 2 == 0 else [0, 1, 3] for layer in layers]


def logits_of(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model(**batch(model)).logits


def expert_bytes(layers: tuple[MoELayer, ...]) -> int:
    parameters = {id(p): p for layer in layers for p in layer.expert_parameters()}
    return sum(p.numel() * p.element_size() for p in parameters.values())


@pytest.mark.parametrize("family", NAMES)
def test_a_masked_router_sends_no_token_to_other_experts(family: str) -> None:
    model = build(family)
    layers = find_moe_layers(model)
    with torch.no_grad():
        unrestricted = model(**batch(model)).logits
        for layer in layers:
            restrict_router(layer, [0, 1])
        with RoutingRecorder(layers) as recorder:
            model(**batch(model))
        stats = recorder.stats()
        assert stats.count[:, 2:].sum() == 0
        assert stats.prob[:, 2:].sum() == 0
        assert torch.isfinite(stats.kl).all()
        for layer in layers:
            release_router(layer)
        assert torch.equal(model(**batch(model)).logits, unrestricted)


@pytest.mark.parametrize("experts", [[0], [0, 0], []])
def test_fewer_experts_than_a_token_uses_are_refused(experts: list[int]) -> None:
    model = build("Qwen3Moe")
    layers = find_moe_layers(model)
    before = logits_of(model)
    with pytest.raises(PlacementError, match="a token uses 2"):
        restrict_router(layers[1], experts)
    assert torch.equal(logits_of(model), before)


def test_an_unknown_expert_is_refused() -> None:
    model = build("Qwen3Moe")
    with pytest.raises(IndexError, match=r"expert 9.*choose 0..3"):
        restrict_router(find_moe_layers(model)[0], [0, 9])
