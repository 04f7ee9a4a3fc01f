"""Trainables: exact against the native path, only the chosen experts move, all is given back."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.optim import AdamW
from transformers import PreTrainedModel

from fedmoe_app import ModelState, MoELayer, find_moe_layers
from fedmoe_app.moe.layers import read_state
from fedmoe_app.moe.state import expert_name
from fedmoe_app.moe.training.trainable import Trainables

from .families import EXPERTS, FUSED, NAMES, batch, build

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")


def gradients(model: PreTrainedModel) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    model(**batch(model)).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def native_expert_gradient(layer: MoELayer, e: int) -> dict[str, Tensor]:
    if layer.fused:
        return {name: p.grad[e].clone() for name, p in layer.fused_parameters().items()}
    return {n: p.grad.clone() for n, p in layer.listed_parameters(e).items() if p.grad is not None}


def train(model: PreTrainedModel, trainables: Trainables, steps: int = 2) -> None:
    optimizer = AdamW(trainables.named_parameters().values(), lr=1e-2, weight_decay=0.1)
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        model(**batch(model)).loss.backward()
        trainables.count_step()
        optimizer.step()


def flat(state: ModelState) -> dict[str, Tensor]:
    return dict(state.named())


@pytest.mark.parametrize("family", NAMES)
def test_forward_and_gradients_equal_the_native_path(family: str) -> None:
    model = build(family)
    layers = find_moe_layers(model)
    logits = model(**batch(model)).logits.detach()
    native = gradients(model)
    experts = [{e: native_expert_gradient(la, e) for e in range(EXPERTS)} for la in layers]

    with Trainables(model, layers, [[0, 2]] * len(layers)) as trainables:
        assert torch.allclose(model(**batch(model)).logits, logits, atol=1e-5)
        gradients(model)
        parameters = trainables.named_parameters()
        compared = 0
        for index, layer in enumerate(layers):
            for e in (0, 2):
                for name, expected in experts[index][e].items():
                    grad = parameters[expert_name(index, e, name)].grad
                    grad = torch.zeros_like(expected) if grad is None else grad
                    assert torch.allclose(grad, expected, atol=1e-5)
                    compared += int(expected.any())
            for name, grad in layer.router.named_parameters():
                assert torch.allclose(grad.grad, native[f"{layer.router_name}.{name}"], atol=1e-5)
        assert compared > 0
        assert not any(".experts.1." in key or ".experts.3." in key for key in parameters)


@pytest.mark.parametrize("family", NAMES)
def test_only_chosen_experts_move_and_changes_tell_how(family: str) -> None:
    model = build(family)
    layers = find_moe_layers(model)
    before = flat(read_state(model, layers))
    trainables = Trainables(model, layers, [[1]] * len(layers))
    train(model, trainables)
    changes = flat(trainables.changes())
    trainables.merge()
    trainables.detach()
    after = flat(read_state(model, layers))

    assert set(trainables.trained[:, 1].tolist()) <= {0, 1, 2}
    assert trainables.trained[:, 1].sum() > 0
    assert trainables.trained[:, [0, 2, 3]].sum() == 0
    for key, value in after.items():
        moved = after[key] - before[key]
        assert torch.allclose(changes.get(key, torch.zeros_like(value)), moved, atol=1e-6), key
        if ".experts." in key and ".experts.1." not in key:
            assert torch.equal(value, before[key]), key


@pytest.mark.parametrize("family", ["Qwen3Moe", "GptOss", "SwitchTransformers"])
def test_detach_gives_the_plain_model_back(family: str) -> None:
    model = build(family)
    layers = find_moe_layers(model)
    keys = list(model.state_dict())
    names = [name for name, _ in model.named_parameters()]
    implementation = model.get_experts_implementation()
    trainables = Trainables(model, layers)
    assert list(model.state_dict()) == keys
    train(model, trainables, steps=1)
    with torch.no_grad():
        logits = model(**batch(model)).logits
    trainables.merge()
    trainables.detach()

    assert list(model.state_dict()) == keys
    assert [name for name, _ in model.named_parameters()] == names
    assert model.get_experts_implementation() == implementation
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    with torch.no_grad():
        assert torch.allclose(model(**batch(model)).logits, logits, atol=1e-5)


def test_fused_tensors_keep_the_received_values_until_merge() -> None:
    model = build("Olmoe")
    layers = find_moe_layers(model)
    received = read_state(model, layers).experts
    with Trainables(model, layers) as trainables:
        train(model, trainables)
        for key, tensors in read_state(model, layers).experts.items():
            assert all(torch.equal(t, received[key][name]) for name, t in tensors.items())
    assert torch.equal(
        trainables.reference()["layers.1.experts.3.down_proj"], received[1, 3]["down_proj"]
    )


def test_keys_are_those_of_state_in_its_order() -> None:
    model = build("Mixtral")
    layers = find_moe_layers(model)
    expected = [key for key, _ in read_state(model, layers).named()]
    with Trainables(model, layers) as trainables:
        assert list(trainables.named_parameters()) == expected
        assert list(trainables.reference()) == expected


def test_an_expert_that_only_padding_reaches_is_not_trained() -> None:
    model = build("Qwen3Moe")
    layers = find_moe_layers(model)
    with torch.no_grad():  # tokens 3.. have a positive first coordinate, padding a negative one
        model.model.embed_tokens.weight[:, 0] = 9.0
        model.model.embed_tokens.weight[0, 0] = -9.0
        for layer in layers:
            layer.router.weight.zero_()
            layer.router.weight[:, 0] = torch.tensor([2.0, 1.0, -1.0, -2.0])
    with Trainables(model, layers) as trainables:
        before = trainables.named_parameters()["layers.0.experts.3.down_proj"].detach().clone()
        train(model, trainables, steps=1)
        assert trainables.trained[0].tolist() == [1, 1, 0, 0]
        after = trainables.named_parameters()["layers.0.experts.3.down_proj"]
        assert torch.equal(after, before)
        assert [e for layer, e in trainables.changes().experts if layer == 0] == [0, 1]


@pytest.mark.parametrize("family", ["Qwen3Moe", "SwitchTransformers"])
def test_no_chosen_expert_still_trains_the_rest(family: str) -> None:
    model = build(family)
    layers = find_moe_layers(model)
    with Trainables(model, layers, [[]] * len(layers)) as trainables:
        train(model, trainables, steps=1)
        changes = trainables.changes()
    assert changes.experts == {}
    assert sum(float(t.abs().sum()) for t in changes.dense.values()) > 0
    assert all(float(t.abs().sum()) > 0 for gate in changes.gates.values() for t in gate.values())


@pytest.mark.parametrize("family", ["Mixtral", "GptOss"])
def test_gradients_agree_under_checkpointing(family: str) -> None:
    model = build(family).train()
    layers = find_moe_layers(model)
    with Trainables(model, layers, [[0, 1]] * len(layers)) as trainables:
        gradients(model)
        plain = {
            k: p.grad.clone()
            for k, p in trainables.named_parameters().items()
            if p.grad is not None
        }
        for reentrant in (False, True):
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            for parameter in trainables.named_parameters().values():
                parameter.grad = None
            gradients(model)
            for key, expected in plain.items():
                grad = trainables.named_parameters()[key].grad
                assert torch.allclose(grad, expected, atol=1e-5)


def test_wrong_experts_are_refused_with_the_choices() -> None:
    model = build("Mixtral")
    layers = find_moe_layers(model)
    with pytest.raises(
        ValueError, match=r"experts\[1\] holds 12: layer 1 has 4 experts, choose 0..3"
    ):
        Trainables(model, layers, [[0], [12]])
    with pytest.raises(ValueError, match="experts lists 3 layers: the model has 2 MoE layers"):
        Trainables(model, layers, [[0]] * 3)
    assert model.get_experts_implementation() == build("Mixtral").get_experts_implementation()


def test_a_second_attachment_and_changes_after_merge_are_refused() -> None:
    model = build("Mixtral")
    layers = find_moe_layers(model)
    trainables = Trainables(model, layers)
    with pytest.raises(RuntimeError, match=r"detach\(\) first"):
        Trainables(model, layers)
    trainables.merge()
    with pytest.raises(RuntimeError, match="before merge"):
        trainables.changes()
    trainables.detach()
    Trainables(model, layers).detach()


@pytest.mark.parametrize("family", FUSED[:1])
def test_a_model_that_shares_the_config_is_not_disturbed(family: str) -> None:
    model, other = build(family), build(family)
    for module in other.modules():
        if hasattr(module, "config"):
            module.config = model.config
    with torch.no_grad():
        logits = other(**batch(other)).logits
        with Trainables(model, find_moe_layers(model)):
            assert torch.allclose(other(**batch(other)).logits, logits, atol=1e-5)


@pytest.mark.parametrize("family", ["Qwen3Moe", "SwitchTransformers"])
def test_a_gradient_without_a_token_does_not_count(family: str) -> None:
    """A regulariser on the weights reaches experts that no token did."""
    model = build(family)
    layers = find_moe_layers(model)
    routed = torch.ones(len(layers), EXPERTS, dtype=torch.bool)
    routed[0, 1] = False
    with Trainables(model, layers) as trainables:
        sum(p.square().sum() for p in trainables.named_parameters().values()).backward()
        trainables.count_step(routed)
        assert torch.equal(trainables.trained, routed.long())
        for key, parameter in trainables.named_parameters().items():
            assert (parameter.grad is None) == key.startswith("layers.0.experts.1."), key
