"""Quantised models of all ten families: four bits in memory, right values, trainable adapters."""

from __future__ import annotations

import copy
from pathlib import Path

import bitsandbytes
import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fedmoe_app import MoELayer, UnsupportedModelError, find_moe_layers
from fedmoe_app.moe.layers import read_state
from fedmoe_app.moe.quantised.packed import KINDS, packed_stacks
from fedmoe_app.moe.quantised.quantise import dequantise, is_quantised, quantise
from fedmoe_app.moe.training.adapt import Adaptation, adapt
from fedmoe_app.moe.training.lora import merge_adapters
from fedmoe_app.moe.training.trainable import Trainables

from .families import NAMES, batch
from .four_bit_families import build
from .test_adapt import logits_of, train

LORA = Adaptation("expert-lora", gates=True, head=False, attention_lora=True, rank=2, alpha=4)
KIND = pytest.mark.parametrize("kind", KINDS)
FAMILY = pytest.mark.parametrize("family", NAMES)


def quantised(family: str, kind: str = "nf4") -> PreTrainedModel:
    model = build(family)
    quantise(model, kind)
    return model


def adapted(family: str, kind: str = "nf4") -> tuple[PreTrainedModel, tuple[MoELayer, ...]]:
    model = quantised(family, kind)
    layers = find_moe_layers(model)
    adapt(model, layers, LORA, seed=1)
    return model, layers


def expert_bytes(layer: MoELayer) -> int:
    """Return the bytes of all weight matrices of a layer's experts, with their scales."""
    module = layer.experts_module
    total = sum(p.nbytes for p in module.parameters() if p.dim() > 1 and "bias" not in str(p))
    if layer.fused:
        biases = sum(p.nbytes for n, p in layer.fused_parameters().items() if p.dim() == 2)
        return total - biases + sum(stack.nbytes() for stack in packed_stacks(module).values())
    states = [getattr(p, "quant_state", None) for p in module.parameters()]
    return total + sum(s.absmax.nbytes + s.code.nbytes for s in states if s is not None)


def base_bytes(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return everything that must not move: packed values, placeholders and frozen weights."""
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    return frozen | {n: b.clone() for n, b in model.named_buffers()}


@FAMILY
def test_experts_are_four_bits_in_memory(family: str) -> None:
    before = [expert_bytes(layer) for layer in find_moe_layers(build(family))]  # 32 bits
    after = [expert_bytes(layer) for layer in find_moe_layers(quantised(family))]
    assert len(after) == len(before)
    assert all(new <= 0.35 * old / 2 for new, old in zip(after, before, strict=True))


@KIND
@FAMILY
def test_layers_are_still_found_and_all_else_is_as_before(family: str, kind: str) -> None:
    plain, model = build(family), quantised(family, kind)
    for old, new in zip(find_moe_layers(plain), find_moe_layers(model), strict=True):
        assert (old.name, old.router_name, old.num_experts, old.top_k, old.fused) == (
            (new.name, new.router_name, new.num_experts, new.top_k, new.fused)
        )
        assert all(torch.equal(p, new.gate()[n]) for n, p in old.gate().items())
    assert type(model.get_output_embeddings()) is nn.Linear
    norms = [n for n, p in plain.named_parameters() if "norm" in n]
    assert norms
    assert all(torch.equal(model.get_parameter(n), plain.get_parameter(n)) for n in norms)
    assert is_quantised(model)
    assert not is_quantised(plain)


@KIND
@FAMILY
def test_the_model_computes_with_the_rounded_weights(family: str, kind: str) -> None:
    model = quantised(family, kind)
    got = logits_of(model)
    dequantise(model)
    assert not is_quantised(model)
    assert list(model.state_dict()) == list(build(family).state_dict())
    assert torch.allclose(got, logits_of(model), atol=1e-5)


@pytest.mark.parametrize(("kind", "bound"), [("nf4", 0.25), ("int8", 0.02)])
@FAMILY
def test_a_layer_is_within_the_rounding_error(family: str, kind: str, bound: float) -> None:
    """The router is not quantised: one layer alone uses the same experts as before."""
    model = build(family)
    wanted = [layer_output(model, layer) for layer in find_moe_layers(model)]
    quantise(model, kind)
    for layer, before in zip(find_moe_layers(model), wanted, strict=True):
        after = layer_output(model, layer)
        assert (after - before).norm() < bound * before.norm()


@torch.no_grad()
def layer_output(model: PreTrainedModel, layer: MoELayer) -> Tensor:
    x = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0))
    out = model.get_submodule(layer.name)(x)
    return out[0] if isinstance(out, tuple) else out


@KIND
@FAMILY
def test_adapters_train_and_the_base_does_not_move(family: str, kind: str) -> None:
    model, layers = adapted(family, kind)
    before = base_bytes(model)
    names = [key for key, _ in read_state(model, layers).named()]
    assert all("lora_" in name or ".gate." in name for name in names)
    with Trainables(model, layers) as trainables:
        losses = train(model, trainables)
    assert losses[-1] < losses[0] - 0.1
    after = base_bytes(model)
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert torch.equal(value.view(torch.uint8), after[name].view(torch.uint8)), name


@KIND
@FAMILY
def test_merging_gives_a_plain_model_that_can_be_saved(
    family: str, kind: str, tmp_path: Path
) -> None:
    model, layers = adapted(family, kind)
    with Trainables(model, layers) as trainables:
        train(model, trainables)
    wanted = logits_of(model)
    merge_adapters(model, find_moe_layers(model))
    assert torch.allclose(logits_of(model), wanted, atol=1e-4)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert list(loaded.state_dict()) == list(build(family).state_dict())
    assert torch.allclose(logits_of(loaded), wanted, atol=1e-4)


@pytest.mark.parametrize("family", ["GptOss", "SwitchTransformers"])
def test_a_copy_has_weights_and_adapters_of_its_own(family: str) -> None:
    model, _ = adapted(family)
    before = logits_of(model)
    twin = copy.deepcopy(model)
    assert torch.equal(logits_of(twin), before)
    with Trainables(twin, find_moe_layers(twin)) as trainables:
        train(twin, trainables, steps=2)
    assert torch.equal(logits_of(model), before)
    assert not torch.allclose(logits_of(twin), before, atol=1e-4)


@FAMILY
def test_evaluating_before_training_changes_no_gradient(family: str) -> None:
    """bitsandbytes' layout for inference on some CPUs has no gradient, and would stay."""
    gradients = []
    for evaluate in (False, True):
        model, layers = adapted(family)
        if evaluate:
            logits_of(model.eval())
        with Trainables(model.train(), layers) as trainables:
            model(**batch(model)).loss.backward()
            parameters = trainables.named_parameters()
            gradients.append([p.grad for p in parameters.values() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1])
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("family", ["Olmoe", "SwitchTransformers"])
def test_gradient_checkpointing_changes_no_gradient(family: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        model, layers = adapted(family)
        if checkpointing:
            enable = getattr(model, "activation_checkpointing_enable", None)
            (enable or model.gradient_checkpointing_enable)()
        with Trainables(model.train(), layers) as trainables:
            model(**batch(model)).loss.backward()
            parameters = trainables.named_parameters()
            gradients.append([p.grad for p in parameters.values() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 0
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_switch_casts_nothing_to_bytes() -> None:
    model = quantised("SwitchTransformers")
    outputs = [m for n, m in model.named_modules() if n.endswith(".wo")]
    assert outputs
    assert all(isinstance(m, bitsandbytes.nn.Linear4bit) for m in outputs)
    assert all(m.weight.dtype == torch.float32 for m in outputs)


@pytest.mark.parametrize("train_mode", ["all", "experts"])
def test_weights_of_a_quantised_model_cannot_be_trained(train_mode: str) -> None:
    model = quantised("Qwen3Moe")
    layers = find_moe_layers(model)
    with pytest.raises(ValueError, match='choose "expert-lora", or model.quantization = "none"'):
        adapt(model, layers, Adaptation(train_mode), seed=0)
    with pytest.raises(UnsupportedModelError, match="experts are quantised"):
        Trainables(model, layers)


@pytest.mark.parametrize("family", ["Olmoe", "GptOss", "SwitchTransformers"])
def test_experts_that_do_not_fill_blocks_are_refused(family: str) -> None:
    sizes = {"d_ff": 96} if family == "SwitchTransformers" else {"intermediate_size": 96}
    model = build(family, **sizes)
    with pytest.raises(UnsupportedModelError, match=r"96 inputs; NF4 needs a multiple of 64"):
        quantise(model, "nf4")
    quantise(model, "int8")


def test_other_linears_that_do_not_fill_blocks_stay() -> None:
    model = build("Qwen3Moe", head_dim=24)  # 4 heads: o_proj has 96 inputs
    quantise(model, "nf4")
    attention = model.get_submodule("model.layers.0.self_attn")
    assert type(attention.get_submodule("o_proj")) is nn.Linear
    assert isinstance(attention.get_submodule("q_proj"), bitsandbytes.nn.Linear4bit)


def test_a_quantised_model_is_not_quantised_cast_or_saved(tmp_path: Path) -> None:
    model = quantised("Qwen3Moe")
    with pytest.raises(ValueError, match="quantised already"):
        quantise(model, "nf4")
    with pytest.raises(ValueError, match="cast"):
        model.to(torch.bfloat16)
    with pytest.raises(ValueError, match="not serializable"):
        model.save_pretrained(tmp_path)
