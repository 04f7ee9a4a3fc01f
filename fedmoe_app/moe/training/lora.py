"""LoRA on each expert, and on attention: small matrices that travel in place of the weights.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685:
W·x + (α/r)·B·A·x with A ``[r, in]`` random and B ``[out, r]`` zero at the start. With a residual,
W·x + (α/r)·(B·A + R)·x with R ``[out, in]`` zero at the start, which is not trained here.

Fused experts get adapters of their own, run by :mod:`fedmoe_app.moe.training.slots`: PEFT's
``target_parameters`` adapts a whole stack at once, so that its optimiser state and its gradient
cover all experts whatever was chosen. Listed experts (Switch) and attention are plain linear
modules, which PEFT serves.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from fedmoe_app.moe.layers import MoELayer, UnsupportedModelError
from fedmoe_app.moe.quantised.packed import packed_weights
from fedmoe_app.moe.quantised.quantise import dequantise, is_quantised
from fedmoe_app.moe.state import RESIDUAL
from fedmoe_app.moe.structure import listed_experts, loaded_of, set_adapters
from fedmoe_app.moe.training.slots import ExpertSlots, detach_slots, put_slots, slots_of, use_slots

_BEFORE = "_fedmoe_experts_implementation"  # attribute of a model: what it ran before its slots


def add_lora(
    model: PreTrainedModel,
    layers: Sequence[MoELayer],
    rank: int,
    alpha: int,
    *,
    attention: bool = False,
    residual: bool = False,
) -> None:
    """Give every expert adapters of its own, and attention if asked; the weights stay frozen.

    Raises:
        UnsupportedModelError: the family's experts cannot be run one by one, or no linear map was
            found in its attention modules; a residual is asked for of experts that PEFT adapts.
    """
    fused = [layer for layer in layers if layer.fused]
    listed = [layer for layer in layers if not layer.fused]
    if residual and listed:
        raise UnsupportedModelError(
            f"{listed[0].name}: its experts are modules of their own, whose adapters are PEFT's: A "
            "and B, with no place for a residual; choose a family with fused experts, such as "
            "Qwen3Moe or Mixtral"
        )
    for layer in fused:
        _adapt_fused(layer, rank, alpha, residual)
    if fused:
        model.__dict__[_BEFORE] = model.get_experts_implementation()
        use_slots(model, fused)
    add_peft_lora(model, listed, rank, alpha, attention=attention)


def add_peft_lora(
    model: PreTrainedModel,
    listed: Sequence[MoELayer],
    rank: int,
    alpha: int,
    *,
    attention: bool = False,
) -> None:
    """Let PEFT wrap the linear maps of listed experts and of attention; raises as above."""
    targets = _expert_linears(model, listed)
    if attention:
        targets += _attention_linears(model)
    if targets:
        _inject(model, targets, rank, alpha)
    for layer in listed:
        adapters = [
            {name: p for name, p in expert.named_parameters() if "lora_" in name}
            for expert in listed_experts(layer.experts_module)
        ]
        set_adapters(layer.experts_module, adapters)


def _attention_linears(model: PreTrainedModel) -> list[str]:
    names = [
        f"{owner}.{name}"
        for owner, module in model.named_modules()
        if "attention" in type(module).__name__.lower()
        for name, child in module.named_children()
        if isinstance(child, nn.Linear)
    ]
    if not names:
        raise UnsupportedModelError(
            f"{type(model).__name__}: no linear maps found in its attention modules, so "
            "model.attention-lora cannot be used"
        )
    return names


def _expert_linears(model: PreTrainedModel, listed: Sequence[MoELayer]) -> list[str]:
    names = {id(module): name for name, module in model.named_modules()}
    return [
        names[id(module)]
        for layer in listed
        for e, expert in enumerate(listed_experts(layer.experts_module))
        for module in expert.modules()
        if isinstance(module, nn.Linear) and _is_loaded(layer, e)
    ]


def _is_loaded(layer: MoELayer, e: int) -> bool:
    loaded = loaded_of(layer.experts_module)
    return loaded is None or e in loaded


def _adapt_fused(layer: MoELayer, rank: int, alpha: int, residual: bool) -> None:
    weights = _frozen_weights(layer)
    turned = bool(getattr(layer.experts_module, "is_transposed", False))
    adapters: list[dict[str, nn.Parameter]] = []
    for tensors in weights:
        adapter: dict[str, nn.Parameter] = {}
        for name, weight in tensors.items():
            if len(weight.shape) == 2:  # biases stay as they are
                # A packed weight is [out, in] in every family.
                transposed = turned and isinstance(weight, Tensor)
                shape = weight.shape[::-1] if transposed else weight.shape
                adapter |= _new_pair(name, (shape[0], shape[1]), rank, weight.device)
                if residual:
                    zeros = torch.zeros(*shape, device=weight.device)
                    adapter[name + RESIDUAL] = nn.Parameter(zeros, requires_grad=False)
        adapters.append(adapter)
    set_adapters(layer.experts_module, adapters)
    joined = [{**tensors, **adapter} for tensors, adapter in zip(weights, adapters, strict=True)]
    put_slots(layer, ExpertSlots(joined, alpha / rank))


def _frozen_weights(layer: MoELayer) -> list[dict[str, Any]]:
    """Return what each expert runs on, by short name; nothing for one that is not loaded."""
    if loaded_of(layer.experts_module) is not None:
        return [
            {name: w.detach() if isinstance(w, Tensor) else w for name, w in weights.items()}
            for weights in slots_of(layer).weights
        ]
    packed = packed_weights(layer.experts_module)
    return packed or [layer.expert(e) for e in range(layer.num_experts)]


def _new_pair(
    name: str, shape: tuple[int, int], rank: int, device: torch.device
) -> dict[str, nn.Parameter]:
    """Return A ``[r, in]`` and B ``[out, r]`` in float32, as PEFT starts them."""
    rows, columns = shape
    a = torch.empty(rank, columns)
    nn.init.kaiming_uniform_(a, a=math.sqrt(5))
    b = torch.zeros(rows, rank)
    return {
        f"{name}.lora_A": nn.Parameter(a.to(device)),
        f"{name}.lora_B": nn.Parameter(b.to(device)),
    }


def _inject(model: PreTrainedModel, names: Iterable[str], rank: int, alpha: int) -> None:
    """Wrap these linear modules by PEFT; the flags of all other parameters stay as they are."""
    flags = [(p, p.requires_grad) for p in model.parameters()]
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=sorted(names), bias="none")
    inject_adapter_in_model(config, model)
    for parameter, flag in flags:
        parameter.requires_grad_(flag)


def product(a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """Return scaling·B·A, ``[out, in]``, in float32."""
    return scaling * (b.float() @ a.float())


@torch.no_grad()
def merge_adapters(model: PreTrainedModel, layers: Sequence[MoELayer]) -> None:
    """Add every adapter to the weights that it adapts and remove it: a plain model again.

    A quantised model is in its own 16 or 32 bits afterwards and can be saved.
    """
    if is_quantised(model):
        dequantise(model)
    for layer in layers:
        if layer.fused and layer.adapters:
            _merge_fused(layer)
        set_adapters(layer.experts_module, ())
    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            model.set_submodule(name, module.get_base_layer())
    if (before := model.__dict__.pop(_BEFORE, None)) is not None:
        model.set_experts_implementation(before)
    model.__dict__.pop("peft_config", None)  # else PEFT takes the model for an adapted one


def _merge_fused(layer: MoELayer) -> None:
    transposed = bool(getattr(layer.experts_module, "is_transposed", False))
    scaling = slots_of(layer).scaling
    for e, adapter in enumerate(layer.adapters):
        for name, stacked in layer.fused_parameters().items():
            a, b = adapter.get(f"{name}.lora_A"), adapter.get(f"{name}.lora_B")
            if a is not None and b is not None:
                update = product(a, b, scaling)  # [out, in]
                if (residual := adapter.get(name + RESIDUAL)) is not None:
                    update += scaling * residual
                stacked[e] += (update.T if transposed else update).to(stacked.dtype)
    detach_slots(layer)
