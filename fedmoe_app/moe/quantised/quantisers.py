"""Two quantisers for ``from_pretrained``: transformers' own for bitsandbytes, plus fused experts.

transformers' loading reads one tensor of the checkpoint after the other, puts the experts of a
layer together whatever the format on disk, and hands each finished parameter to its quantiser.
These pack the stacked parameters of experts (:mod:`fedmoe_app.moe.quantised.packed`), which
transformers' leave in 16 bits without a word. Routers, heads, embeddings and norms stay as they
are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import bitsandbytes
import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer
from transformers.quantizers.quantizer_bnb_8bit import Bnb8BitHfQuantizer
from transformers.utils.quantization_config import QuantizationMethod

from fedmoe_app.moe.checkpoint import BEFORE_LOADING
from fedmoe_app.moe.layers import MoELayer, UnsupportedModelError, find_moe_layers
from fedmoe_app.moe.quantised.packed import (
    BLOCK,
    PackedStack,
    int8_linear,
    pack,
    placeholder,
    put_packed,
)
from fedmoe_app.moe.quantised.spared import spared_linears
from fedmoe_app.moe.quantised.streaming import (
    ExpertList,
    mxfp4_conversions,
    put_off_stacking,
    saved_in_full,
)
from fedmoe_app.moe.training.slots import check_slots_possible, use_slots

LINEARS = (bitsandbytes.nn.Linear4bit, bitsandbytes.nn.Linear8bitLt)


class Int8Linear(bitsandbytes.nn.Linear8bitLt):
    """A linear map whose weights alone are in eight bits, in training and evaluation alike.

    bitsandbytes' own forward quantises the activations, too, and on a CPU only outside training.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return x·Wᵀ + b in the type of ``x``."""
        # They are no tensors of the module, so that moving it leaves them behind.
        weight: Any = self.weight
        weight.SCB = weight.SCB.to(x.device)
        out = int8_linear(x, weight.data, weight.SCB)
        return out if self.bias is None else out + self.bias


@register_quantization_config("fedmoe_nf4")
class NF4Config(BitsAndBytesConfig):
    """bitsandbytes in NF4 without a second quantisation of the scales; experts included."""

    quant_method: Any

    def __init__(self, dtype: torch.dtype = torch.float32, **_: Any) -> None:
        """Compute in ``dtype``."""
        super().__init__(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
        self.quant_method = "fedmoe_nf4"


@register_quantization_config("fedmoe_int8")
class Int8Config(BitsAndBytesConfig):
    """bitsandbytes in eight bits; experts included."""

    quant_method: Any

    def __init__(self, **_: Any) -> None:
        """Take no options."""
        super().__init__(load_in_8bit=True)
        self.quant_method = "fedmoe_int8"


def quantization_config(kind: str, dtype: torch.dtype) -> BitsAndBytesConfig:
    """Return the ``quantization_config`` for ``from_pretrained``.

    Args:
        kind: ``nf4`` or ``int8``.
        dtype: type that the model computes in.
    """
    return NF4Config(dtype) if kind == "nf4" else Int8Config()


class _WithExperts:
    """What both quantisers add to transformers': the fused experts, and which linears stay.

    Attributes:
        fused: the experts module of each parameter to be packed, by the parameter's full name.
    """

    kind: str

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fused: dict[str, nn.Module] = {}
        # Kept here until loading ends, which empties buffers that are not in the checkpoint.
        self._packed: dict[str, PackedStack] = {}

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, device_map: Any = None, **kwargs: Any
    ) -> None:
        layers = find_moe_layers(model)
        block = BLOCK if self.kind == "nf4" else 1
        check_blocks(layers, block)
        config: Any = self.quantization_config  # type: ignore[attr-defined]
        if (before_loading := getattr(config, BEFORE_LOADING, None)) is not None:
            before_loading(model)
        self.fused = _fused_parameters(model, layers)
        config.llm_int8_skip_modules = _left_alone(model, layers, block)
        with _own_choice(model):
            super()._process_model_before_weight_loading(  # type: ignore[misc]
                model, device_map=device_map, **kwargs
            )
        _store_as_computed(model, config.bnb_4bit_compute_dtype)

    def param_needs_quantization(
        self, model: PreTrainedModel, param_name: str, **kwargs: Any
    ) -> bool:
        if param_name in self.fused:
            return True
        own: bool = super().param_needs_quantization(model, param_name, **kwargs)  # type: ignore[misc]
        return own

    def update_weight_conversions(self, weight_conversions: Any, model: PreTrainedModel) -> Any:
        conversions = super().update_weight_conversions(weight_conversions, model)  # type: ignore[misc]
        conversions = [put_off_stacking(conversion, list(self.fused)) for conversion in conversions]
        return conversions + mxfp4_conversions(self)

    def get_quantize_ops(self) -> ConversionOps:
        return _Quantise(self, super().get_quantize_ops())  # type: ignore[misc]

    def pack_parameter(self, name: str, stacked: Tensor | ExpertList) -> nn.Parameter:
        """Pack a fused parameter, keep the result and return the placeholder.

        Raises:
            ValueError: the checkpoint lacks experts, or they have other sizes.
        """
        module = self.fused[name]
        wanted = module.get_parameter(name.rpartition(".")[2]).shape
        if tuple(stacked.shape) != tuple(wanted):  # transformers does not look at quantised ones
            raise ValueError(f"{name}: {tuple(stacked.shape)}, expected {tuple(wanted)}")
        transposed = bool(getattr(module, "is_transposed", False))
        self._packed[name] = pack(stacked, self.kind, transposed)
        return placeholder(stacked, transposed)

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> PreTrainedModel:
        if absent := sorted(set(self.fused) - set(self._packed)):
            raise ValueError(
                f"the checkpoint lacks {', '.join(absent)}; download it again, all shards"
            )
        for name, stack in self._packed.items():
            put_packed(self.fused[name], name.rpartition(".")[2], stack)
        fused = [layer for layer in find_moe_layers(model) if layer.fused] if self.fused else []
        if fused:
            use_slots(model, fused)
        for module in model.modules():
            if isinstance(module, LINEARS):
                _prepare_training(module)
        if used := getattr(model, "_weight_conversions", None):
            model._weight_conversions = saved_in_full(used)
        # transformers then refuses to cast the model to another type.
        model.quantization_method = QuantizationMethod.BITS_AND_BYTES
        self.fused, self._packed = {}, {}
        done: PreTrainedModel = super()._process_model_after_weight_loading(  # type: ignore[misc]
            model, **kwargs
        )
        return done

    def is_serializable(self) -> bool:
        return False  # lora.merge_adapters gives a model that can be saved


@register_quantizer("fedmoe_nf4")
class _NF4Quantizer(_WithExperts, Bnb4BitHfQuantizer):
    kind = "nf4"


@register_quantizer("fedmoe_int8")
class _Int8Quantizer(_WithExperts, Bnb8BitHfQuantizer):
    kind = "int8"


class _Quantise(ConversionOps):
    """Last step of loading a parameter: fused experts are packed, linears go bitsandbytes' way."""

    def __init__(self, quantizer: _WithExperts, linear: Any) -> None:
        self._quantizer = quantizer
        self._linear = linear

    def convert(self, input_dict: dict[str, Any], *_: Any, **kwargs: Any) -> dict[str, Any]:
        done: dict[str, Any] = {}
        for name in list(input_dict):
            value = input_dict.pop(name)
            value = value[0] if isinstance(value, list) else value
            if name in self._quantizer.fused:
                done[name] = self._quantizer.pack_parameter(name, value)
            else:
                done |= self._linear.convert({name: value}, **kwargs)
        return done


def quantised_parameters(model: PreTrainedModel, kind: str) -> set[str]:
    """Return the full names of what loading a model in ``kind`` would quantise; no value is read.

    Raises:
        UnsupportedModelError: its experts cannot be run one by one.
    """
    layers = find_moe_layers(model)
    kept = _left_alone(model, layers, BLOCK if kind == "nf4" else 1)
    linears = {n for n, module in model.named_modules() if isinstance(module, nn.Linear)}
    return {f"{name}.weight" for name in linears - set(kept)} | set(
        _fused_parameters(model, layers)
    )


def check_blocks(layers: Sequence[MoELayer], block: int) -> None:
    """Refuse experts whose rows do not fill blocks: bitsandbytes' CPU kernels are wrong on them.

    Raises:
        UnsupportedModelError: naming a layer and its size.
    """
    for layer in layers:
        transposed = bool(getattr(layer.experts_module, "is_transposed", False))
        matrices = [p for p in layer.expert_parameters() if p.dim() == (3 if layer.fused else 2)]
        for matrix in matrices:
            inputs = matrix.shape[-2 if transposed else -1]
            if inputs % block:
                raise UnsupportedModelError(
                    f"{layer.name}: its experts have maps of {inputs} inputs; NF4 needs a multiple "
                    f'of {block}, choose model.quantization = "int8" or "none"'
                )


def _fused_parameters(model: PreTrainedModel, layers: Sequence[MoELayer]) -> dict[str, nn.Module]:
    """Return the experts module of every stack of matrices by the parameter's full name."""
    names = {id(module): name for name, module in model.named_modules()}
    found: dict[str, nn.Module] = {}
    for layer in layers:
        if layer.fused:
            check_slots_possible(layer)
        for short, parameter in layer.fused_parameters().items():
            if parameter.dim() == 3 and parameter.numel():  # biases stay; empty: not loaded here
                found[f"{names[id(layer.experts_module)]}.{short}"] = layer.experts_module
    return found


def _left_alone(model: PreTrainedModel, layers: Sequence[MoELayer], block: int) -> list[str]:
    """Return the linear maps that stay: gates, heads, those that do not fill blocks or must not."""
    inside = {id(module) for module in model.base_model.modules()}
    output = model.get_output_embeddings()
    kept = [layer.router_name for layer in layers] + spared_linears(model, layers)
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        gate_or_odd = module.out_features == 1 or module.in_features % block
        if gate_or_odd or module is output or id(module) not in inside:
            kept.append(name)
    return kept


@contextmanager
def _own_choice(model: PreTrainedModel) -> Iterator[None]:
    """Hide the family's list for a moment: transformers would leave Switch's experts as they are.

    What of it is to stay, :func:`_left_alone` knows; loading needs the list again for its types.
    """
    listed = model._keep_in_fp32_modules
    model._keep_in_fp32_modules = set()
    try:
        yield
    finally:
        model._keep_in_fp32_modules = listed


def _prepare_training(module: Any) -> None:
    if isinstance(module, bitsandbytes.nn.Linear4bit):
        # Its layout for inference would be used in training, too, where it has no gradient.
        module.support_avx512bf16_for_cpu = False
    else:
        module.__class__ = Int8Linear
        module.weight.CB = None  # a second name of the values, which would not move with them


def _store_as_computed(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Let T5's ``wo`` layers show the computing type as the type of their packed weight.

    T5 and Switch cast what they give to ``wo`` to ``wo.weight.dtype``, which must not be uint8.
    """
    for name, module in model.named_modules():
        if name.endswith(".wo") and isinstance(module, bitsandbytes.nn.Linear4bit):
            weight: Any = module.weight
            module.quant_storage = weight.quant_storage = dtype
