"""Experts dropped from memory: equal to the masked full model, in all ten families."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torch.optim import SGD
from transformers import PreTrainedModel

from fedmoe_app import MoELayer, find_moe_layers
from fedmoe_app.moe.layers import read_state
from fedmoe_app.moe.partial.subset import SubsetError, hold_experts, release_router, restrict_router
from fedmoe_app.moe.routing import RoutingRecorder
from fedmoe_app.moe.training.trainable import Trainables

from .families import EXPERTS, NAMES, batch, build


def subsets_of(layers: tuple[MoELayer, ...]) -> list[list[int]]:
    """Another pair of experts in every other layer."""
    return [[0, 1] if layer.index % 2 == 0 else [0, 1, 3] for layer in layers]


def logits_of(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model(**batch(model)).logits


def expert_bytes(layers: tuple[MoELayer, ...]) -> int:
    parameters = {id(p): p for layer in layers for p in layer.expert_parameters()}
    return sum(p.numel() * p.element_size() for p in parameters.values())


@pytest.mark.parametrize("family", NAMES)
def test_equal_to_the_masked_full_model(family: str) -> None:
    full = build(family)
    held = copy.deepcopy(full)
    layers, held_layers = find_moe_layers(full), find_moe_layers(held)
    subsets = subsets_of(layers)
    for layer, subset in zip(layers, subsets, strict=True):
        restrict_router(layer, subset)
    before = expert_bytes(held_layers)
    hold_experts(held, held_layers, subsets)
    assert torch.allclose(logits_of(held), logits_of(full), atol=1e-5)
    share = sum(len(s) for s in subsets) / (EXPERTS * len(layers))
    assert expert_bytes(held_layers) == pytest.approx(share * before, rel=0.01)


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


@pytest.mark.parametrize("family", NAMES)
def test_training_what_is_held_equals_training_it_in_the_masked_full_model(family: str) -> None:
    full = build(family)
    held = copy.deepcopy(full)
    layers, held_layers = find_moe_layers(full), find_moe_layers(held)
    subsets = subsets_of(layers)
    for layer, subset in zip(layers, subsets, strict=True):
        restrict_router(layer, subset)
    hold_experts(held, held_layers, subsets)
    changes = []
    for model, its_layers in ((full, layers), (held, held_layers)):
        with Trainables(model, its_layers, subsets) as trainables:
            optimiser = SGD(trainables.named_parameters().values(), lr=0.1)
            for _ in range(2):
                optimiser.zero_grad(set_to_none=True)
                model(**batch(model)).loss.backward()
                trainables.count_step()
                optimiser.step()
            changes.append(dict(trainables.changes().named()))
    assert changes[0].keys() == changes[1].keys()
    for key, change in changes[0].items():
        assert torch.allclose(changes[1][key], change, atol=1e-5), key


@pytest.mark.parametrize("family", ["Qwen3Moe", "SwitchTransformers"])
def test_only_held_experts_are_in_the_state_and_a_copy_is_its_own(family: str) -> None:
    model = build(family)
    layers = find_moe_layers(model)
    subsets = subsets_of(layers)
    hold_experts(model, layers, subsets)
    keys = set(read_state(model, layers).experts)
    assert keys == {(layer.index, e) for layer in layers for e in subsets[layer.index]}
    twin = copy.deepcopy(model)
    before = logits_of(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1.0)
    assert torch.equal(logits_of(model), before)


@pytest.mark.parametrize("subset", [[0], [0, 0], []])
def test_fewer_experts_than_a_token_uses_are_refused(subset: list[int]) -> None:
    model = build("Qwen3Moe")
    layers = find_moe_layers(model)
    before = logits_of(model)
    with pytest.raises(SubsetError, match="a token uses 2"):
        hold_experts(model, layers, [[0, 1], subset])
    for layer in layers:
        release_router(layer)
    assert torch.equal(logits_of(model), before)


def test_an_unknown_expert_is_refused() -> None:
    model = build("Qwen3Moe")
    with pytest.raises(IndexError, match=r"expert 9.*choose 0..3"):
        restrict_router(find_moe_layers(model)[0], [0, 9])
