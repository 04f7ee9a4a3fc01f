"""What is trained: full experts or LoRA on them, in all ten families; the base never moves."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torch.optim import AdamW
from transformers import PreTrainedModel

from fedmoe_app import find_moe_layers
from fedmoe_app.moe.layers import read_state, write_state
from fedmoe_app.moe.training.adapt import Adaptation, adapt
from fedmoe_app.moe.training.lora import merge_adapters
from fedmoe_app.moe.training.trainable import Trainables

from .families import NAMES, batch, build

LORA = Adaptation("expert-lora", gates=True, head=False, attention_lora=True, rank=2, alpha=4)
EXPERTS = Adaptation("experts", gates=False, head=False)
MODES = pytest.mark.parametrize("adaptation", [LORA, EXPERTS], ids=lambda a: a.train)


def logits_of(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model(**batch(model)).logits


def train(model: PreTrainedModel, trainables: Trainables, steps: int = 4) -> list[float]:
    optimiser = AdamW(trainables.named_parameters().values(), lr=2e-2)
    losses = []
    for _ in range(steps):
        optimiser.zero_grad(set_to_none=True)
        loss = model(**batch(model)).loss
        loss.backward()
        trainables.count_step()
        optimiser.step()
        losses.append(float(loss.detach()))
    return losses


@MODES
@pytest.mark.parametrize("family", NAMES)
def test_adapting_changes_no_output_and_freezes_the_base(
    family: str, adaptation: Adaptation
) -> None:
    model = build(family)
    layers = find_moe_layers(model)
    before = logits_of(model)
    total = sum(p.numel() for p in model.parameters())
    adapt(model, layers, adaptation, seed=1)
    assert torch.allclose(logits_of(model), before, atol=1e-5)
    state = read_state(model, layers)
    names = [key for key, _ in state.named()]
    if adaptation.train == "experts":
        assert all(".experts." in name for name in names)
        assert state.gates == {}
    else:
        assert all("lora_" in name or ".gate." in name for name in names)
        assert any(".experts." in name and name.endswith("lora_A") for name in names) or (
            any("lora_A.default" in name for name in names)
        )
        assert any("lora_" in name for name in state.dense)  # attention
        assert sum(tensor.numel() for _, tensor in state.named()) < total / 2


@MODES
@pytest.mark.parametrize("family", NAMES)
def test_only_chosen_experts_and_adapters_move(family: str, adaptation: Adaptation) -> None:
    model = build(family)
    layers = find_moe_layers(model)
    adapt(model, layers, adaptation, seed=1)
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    received = dict(read_state(model, layers).named())
    trainables = Trainables(model, layers, [[0, 1, 2]] * len(layers))
    losses = train(model, trainables)
    changes = dict(trainables.changes().named())
    trainables.merge()
    trainables.detach()
    assert losses[-1] < losses[0]
    after = dict(read_state(model, layers).named())
    assert after.keys() == received.keys()
    for key, value in after.items():
        if ".experts.3." in key:
            assert torch.equal(value, received[key]), key
        elif key in changes:
            assert torch.allclose(value - received[key], changes[key], atol=1e-6), key
    for name, parameter in model.named_parameters():
        if name in frozen:
            assert torch.equal(parameter, frozen[name]), name


@pytest.mark.parametrize("family", NAMES)
def test_a_state_of_adapters_makes_another_model_the_same(family: str) -> None:
    trained = build(family)
    other = copy.deepcopy(trained)
    layers, other_layers = find_moe_layers(trained), find_moe_layers(other)
    adapt(trained, layers, LORA, seed=1)
    adapt(other, other_layers, LORA, seed=2)
    with Trainables(trained, layers) as trainables:
        train(trained, trainables, steps=2)
    write_state(other, other_layers, read_state(trained, layers))
    assert torch.allclose(logits_of(other), logits_of(trained), atol=1e-6)


@pytest.mark.parametrize("family", NAMES)
def test_merged_adapters_give_a_plain_model_with_the_same_outputs(family: str) -> None:
    model = build(family)
    names = list(model.state_dict())
    layers = find_moe_layers(model)
    adapt(model, layers, LORA, seed=1)
    with Trainables(model, layers) as trainables:
        train(model, trainables)
    wanted = logits_of(model)
    merge_adapters(model, layers)
    assert list(model.state_dict()) == names
    assert all(not layer.adapters for layer in find_moe_layers(model))
    assert torch.allclose(logits_of(model), wanted, atol=1e-4)


@pytest.mark.parametrize("family", ["Qwen3Moe", "SwitchTransformers"])
def test_a_copy_has_adapters_of_its_own(family: str) -> None:
    model = build(family)
    adapt(model, find_moe_layers(model), LORA, seed=1)
    twin = copy.deepcopy(model)
    before = logits_of(model)
    layers = find_moe_layers(twin)
    with Trainables(twin, layers) as trainables:
        train(twin, trainables, steps=2)
    assert torch.equal(logits_of(model), before)
    assert not torch.allclose(logits_of(twin), before, atol=1e-4)


def test_the_seed_fixes_the_adapters_whatever_the_global_state() -> None:
    states = []
    for noise in (0, 1):
        torch.manual_seed(noise)
        model = build("Qwen3Moe")
        layers = find_moe_layers(model)
        adapt(model, layers, LORA, seed=5)
        states.append(dict(read_state(model, layers).named()))
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_all_leaves_everything_trainable() -> None:
    model = build("Qwen3Moe")
    adapt(model, find_moe_layers(model), Adaptation(), seed=0)
    assert all(p.requires_grad for p in model.parameters())
