"""All experts at once: the same as one by one. A GPU's way, made to run on the CPU here."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from fedmoe_app import find_moe_layers
from fedmoe_app.moe.quantised.quantise import quantise
from fedmoe_app.moe.training import grouped
from fedmoe_app.moe.training.adapt import Adaptation, adapt
from fedmoe_app.moe.training.slots import slots_of
from fedmoe_app.moe.training.trainable import Trainables

from .families import batch
from .four_bit_families import build

# GptOss has biases and transposed weights, Qwen2Moe a shared expert.
FAMILY = pytest.mark.parametrize("family", ["Olmoe", "GptOss", "Qwen2Moe"])
KIND = pytest.mark.parametrize("kind", ["none", "nf4", "int8"])
LORA = Adaptation("expert-lora", head=False, rank=4, alpha=8)


def adapted(
    family: str,
    kind: str,
    lora: Adaptation = LORA,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> PreTrainedModel:
    """A model whose adapters are not zero, so that they change the outputs."""
    model = build(family).to(dtype).to(torch.device(device))
    if kind != "none":
        quantise(model, kind)
    layers = find_moe_layers(model)
    adapt(model, layers, lora, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for layer in layers:
            for tensors in layer.adapters:
                for name, tensor in tensors.items():
                    if name.endswith("lora_B"):
                        values = torch.randn(tensor.shape, generator=generator)
                        tensor.copy_(0.1 * values)
    return model


def loss_and_gradients(model: PreTrainedModel) -> dict[str, Tensor]:
    layers = find_moe_layers(model)
    with Trainables(model, layers) as trainables:
        inputs = {name: tensor.to(model.device) for name, tensor in batch(model).items()}
        loss = model(**inputs).loss
        loss.backward()
        found = {
            name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
            for name, p in trainables.named_parameters().items()
        }
    return {"loss": loss.detach(), **found}


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let the CPU count as fast; the list gets the map's name of every grouped product."""
    run: list[str] = []
    linear = grouped._linear

    def noted(maps: grouped._Maps, x: Tensor, name: str) -> Tensor:
        run.append(name)
        return linear(maps, x, name)

    monkeypatch.setattr(grouped, "_fast_on", lambda device: True)
    monkeypatch.setattr(grouped, "_linear", noted)
    return run


@FAMILY
@KIND
def test_loss_and_gradients_are_those_of_one_by_one(
    family: str, kind: str, as_on_a_gpu: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = adapted(family, kind)
    found = loss_and_gradients(model)
    assert set(as_on_a_gpu) == {"gate_up_proj", "down_proj"}
    monkeypatch.setattr(grouped, "_fast_on", lambda device: False)
    wanted = loss_and_gradients(model)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.allclose(found[name], value, rtol=1e-4, atol=1e-6), name


def test_an_expert_without_tokens_has_no_gradient(as_on_a_gpu: list[str]) -> None:
    model = adapted("Olmoe", "nf4")
    layer = find_moe_layers(model)[0]
    x = torch.randn(6, 64, generator=torch.Generator().manual_seed(0))
    chosen = torch.tensor([[0, 2]] * 6)
    layer.experts_module(x, chosen, torch.full((6, 2), 0.5)).sum().backward()
    reached = [any(bool(p.grad.any()) for p in tensors.values()) for tensors in layer.adapters]
    assert reached == [True, False, True, False]


def test_what_is_trained_itself_runs_one_by_one(as_on_a_gpu: list[str]) -> None:
    model = build("Olmoe")
    loss_and_gradients(model)
    assert as_on_a_gpu == []


def test_a_rank_that_fills_no_row_of_16_bytes_is_filled_up(
    as_on_a_gpu: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = adapted("Olmoe", "nf4", Adaptation("expert-lora", head=False, rank=2, alpha=4))
    found = loss_and_gradients(model)
    assert as_on_a_gpu != []
    monkeypatch.setattr(grouped, "_fast_on", lambda device: False)
    for name, value in loss_and_gradients(model).items():
        assert torch.allclose(found[name], value, rtol=1e-4, atol=1e-6), name


def test_experts_are_not_grouped_on_the_cpu() -> None:
    model = adapted("Olmoe", "nf4")
    layer = find_moe_layers(model)[0]
    weights = slots_of(layer).weights
    assert not grouped.can_group(layer.experts_module, weights, torch.zeros(1, 64))
