"""Turn a model in memory into four or eight bits, experts included, and back.

A checkpoint is better quantised while it is read: give ``from_pretrained`` the
``quantization_config`` of :mod:`fedmoe_app.moe.quantised.quantisers`. Both ways give the same
model. Its weights cannot be trained; adapters on them can (:mod:`fedmoe_app.moe.training.lora`).
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.quantizers.auto import AutoHfQuantizer

from fedmoe_app.moe.quantised.packed import PackedStack, unpack


def quantise(model: PreTrainedModel, kind: str) -> None:
    """Quantise a model in place, one tensor after the other.

    Args:
        model: on any device, of one floating-point type, not quantised, without adapters.
        kind: ``nf4`` or ``int8``.

    Raises:
        UnsupportedModelError: its experts cannot be run one by one.
        ValueError: it is quantised already.
    """
    from fedmoe_app.moe.quantised.quantisers import quantization_config

    if is_quantised(model):
        raise ValueError(f"{type(model).__name__} is quantised already")
    quantizer: Any = AutoHfQuantizer.from_config(quantization_config(kind, model.dtype))
    linears = {n: m for n, m in model.named_modules() if type(m) is nn.Linear}
    quantizer.preprocess_model(model, device_map=None)
    with torch.no_grad():
        for name, old in linears.items():
            _fill(model, quantizer, name, old)
        for name, module in quantizer.fused.items():
            short = name.rpartition(".")[2]
            stacked = module.get_parameter(short).detach()
            setattr(module, short, quantizer.pack_parameter(name, stacked))
    setattr(model, "hf_quantizer", quantizer)  # noqa: B010  (as from_pretrained leaves it)
    quantizer.postprocess_model(model)


def _fill(model: PreTrainedModel, quantizer: Any, name: str, old: nn.Linear) -> None:
    """Give the quantised module that took the place of ``old`` its values; free those of old."""
    new: Any = model.get_submodule(name)
    if new is old:
        return
    key = f"{name}.weight"
    values = {key: old.weight.detach()}
    del old.weight
    new.weight = quantizer.get_quantize_ops().convert(values, model=model)[key]
    new.bias = old.bias
    new.requires_grad_(False)
    new.train(old.training)


def is_quantised(model: PreTrainedModel) -> bool:
    """Tell whether :func:`quantise` or a quantised loading made this model."""
    if "bitsandbytes" not in sys.modules:
        return False  # nothing can be, and importing it for this answer would take long
    from fedmoe_app.moe.quantised.quantisers import LINEARS

    return any(isinstance(module, (PackedStack, *LINEARS)) for module in model.modules())


@torch.no_grad()
def dequantise(model: PreTrainedModel) -> None:
    """Undo :func:`quantise` in place, but for the rounding: a plain model in its own type.

    Linear maps that PEFT wraps get their adapters merged on the way.
    """
    from peft.tuners.lora import LoraLayer

    from fedmoe_app.moe.quantised.quantisers import LINEARS

    for module in list(model.modules()):
        unpack(module)
    for name, module in list(model.named_modules()):
        base = module.get_base_layer() if isinstance(module, LoraLayer) else module
        if isinstance(base, LINEARS) and not name.endswith(".base_layer"):
            model.set_submodule(name, _plain_linear(module, base, model.dtype))
    quantizer: Any = getattr(model, "hf_quantizer", None)
    if quantizer is not None:
        quantizer.remove_quantization_config(model)
    for flag in ("is_loaded_in_4bit", "is_loaded_in_8bit"):
        model.__dict__.pop(flag, None)


def _plain_linear(module: Any, base: Any, dtype: torch.dtype) -> nn.Linear:
    """Return a linear map with the weights of ``base`` plus the adapters of ``module``."""
    from transformers.integrations.bitsandbytes import dequantize_bnb_weight

    weight = dequantize_bnb_weight(base.weight, getattr(base, "state", None)).float()
    for adapter in getattr(module, "active_adapters", ()):
        weight += module.get_delta_weight(adapter).float()
    with torch.device("meta"):
        plain = nn.Linear(base.in_features, base.out_features, bias=base.bias is not None)
    plain.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
    plain.bias = base.bias
    return plain.train(base.training)
