"""What must hold on a CUDA device; left out, with the reason, where there is none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from fedmoe_app import MoELayer, find_moe_layers
from fedmoe_app.moe.quantised.quantise import quantise
from fedmoe_app.moe.routing import RoutingRecorder
from fedmoe_app.moe.training import grouped
from fedmoe_app.moe.training.adapt import Adaptation, adapt
from fedmoe_app.moe.training.trainable import Trainables

from .families import batch, real_tokens
from .four_bit_families import build
from .test_grouped import adapted, loss_and_gradients

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no CUDA device"),
]
FAMILY = pytest.mark.parametrize("family", ["Olmoe", "GptOss", "SwitchTransformers"])
LORA = Adaptation("expert-lora", head=False, rank=2, alpha=4)


def on_gpu(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: tensor.cuda() for name, tensor in batch(model).items()}


@torch.no_grad()
def layer_output(layer: MoELayer, model: PreTrainedModel) -> Tensor:
    x = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0)).to(model.device)
    out = model.get_submodule(layer.name)(x)
    return (out[0] if isinstance(out, tuple) else out).cpu()


@FAMILY
def test_a_layer_in_four_bits_is_within_the_rounding_error(family: str) -> None:
    """The router is not quantised: one layer alone uses the same experts as before."""
    model = build(family).cuda()
    wanted = [layer_output(layer, model) for layer in find_moe_layers(model)]
    quantise(model, "nf4")
    for layer, before in zip(find_moe_layers(model), wanted, strict=True):
        after = layer_output(layer, model)
        assert (after - before).norm() < 0.25 * before.norm()


@FAMILY
@pytest.mark.parametrize("kind", ["none", "nf4", "int8"])
def test_training_on_the_gpu_lowers_the_loss(family: str, kind: str) -> None:
    model = build(family).cuda()
    if kind != "none":
        quantise(model, kind)
    layers = find_moe_layers(model)
    adapt(model, layers, LORA, seed=1)
    with Trainables(model, layers) as trainables, RoutingRecorder(layers) as recorder:
        parameters = list(trainables.named_parameters().values())
        assert {p.device.type for p in parameters} == {"cuda"}
        optimiser = torch.optim.AdamW(parameters, lr=1e-2, fused=True)
        inputs, losses = on_gpu(model), []
        for _ in range(8):
            recorder.mask(inputs["attention_mask"], inputs.get("decoder_attention_mask"))
            optimiser.zero_grad(set_to_none=True)
            loss = model(**inputs).loss
            loss.backward()
            trainables.count_step(recorder.take_routed())
            optimiser.step()
            losses.append(float(loss.detach()))
        assert losses[-1] < losses[0]
        assert {t.device.type for _, t in trainables.changes().named()} == {"cpu"}


@FAMILY
def test_routing_statistics_are_those_of_the_cpu_and_lie_there(family: str) -> None:
    model = build(family)
    found = []
    for _ in range(2):
        with RoutingRecorder(find_moe_layers(model), regions=True) as recorder, torch.no_grad():
            inputs = {name: t.to(model.device) for name, t in batch(model).items()}
            recorder.mask(inputs["attention_mask"], inputs.get("decoder_attention_mask"))
            model(**inputs)
        found.append(recorder.stats())
        model.cuda()
    cpu, gpu = found
    assert all(t.device.type == "cpu" for t in vars(gpu).values() if isinstance(t, Tensor))
    assert gpu.tokens.tolist() == [real_tokens(layer) for layer in find_moe_layers(model)]
    assert torch.equal(gpu.count, cpu.count)
    assert torch.allclose(gpu.prob, cpu.prob, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["none", "nf4", "int8"])
@pytest.mark.parametrize("family", ["Olmoe", "GptOss", "Qwen2Moe"])
def test_all_experts_at_once_are_those_one_by_one(
    family: str, kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = adapted(family, kind, dtype=dtype, device="cuda")
    found = loss_and_gradients(model)
    again = loss_and_gradients(model)
    assert all(torch.equal(value, again[name]) for name, value in found.items())
    monkeypatch.setattr(grouped, "_fast_on", lambda device: False)
    near = 1e-4 if dtype == torch.float32 else 0.1
    for name, value in loss_and_gradients(model).items():
        assert (found[name] - value).norm() <= near * value.norm() + 1e-6, name


def test_an_expert_without_tokens_gets_no_gradient_of_old_memory() -> None:
    model = adapted("Olmoe", "nf4", device="cuda")
    layer = find_moe_layers(model)[0]
    x = torch.randn(6, 64, generator=torch.Generator().manual_seed(0)).cuda()
    weights = torch.full((6, 2), 0.5, device="cuda")
    chosen = torch.tensor([[0, 2]] * 6, device="cuda")
    old = [torch.full((size,), torch.nan, device="cuda") for size in (512, 1024, 4096, 2**20)]
    del old  # its memory is given to the next tensors
    layer.experts_module(x, chosen, weights).sum().backward()
    gradients = [[p.grad for p in tensors.values()] for tensors in layer.adapters]
    assert all(g is not None and bool(g.isfinite().all()) for gs in gradients for g in gs)
    assert [any(bool(g.any()) for g in gs) for gs in gradients] == [True, False, True, False]
