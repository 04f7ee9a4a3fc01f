"""Weights of fused experts in four or eight bits: packed, run and unpacked expert by expert.

NF4: Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs", arXiv:2305.14314: blocks of
64 values of four bits each with one float32 scale, which makes 4.5 bits a value. int8: Dettmers et
al., "LLM.int8()", arXiv:2208.07339: eight bits a value and one float32 scale a row; only the
weights are quantised here, not the activations. The arithmetic is that of bitsandbytes.

The stacked parameter stays behind as a placeholder ``[E, out, 0]``, so that everything that looks
at names and numbers of experts works as before.

Shapes: ``E`` experts of a layer; a weight is ``[out, in]``, whatever the order in the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedmoe_app.moe.quantised.streaming import ExpertList
from fedmoe_app.moe.structure import stacked_parameters

KINDS = ("nf4", "int8")
BLOCK = 64  # values that share a scale in NF4
_SUFFIX = "_packed"  # of the module that holds the packed values of a parameter


def _bnb() -> Any:
    """Return bitsandbytes, which takes long to import and which most runs do not need."""
    import bitsandbytes

    return bitsandbytes


@dataclass(frozen=True)
class NF4Weight:
    """One expert's weight in NF4; holds views, no values of its own.

    Attributes:
        values: uint8, two values a byte.
        scales: float32, one a block of 64 values.
        shape: out, in.
        dtype: type that the map is computed in.
    """

    values: Tensor
    scales: Tensor
    shape: tuple[int, int]
    dtype: torch.dtype

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Return x·Wᵀ + b ``[count, out]``; the gradient of x flows, that of W does not exist."""
        out: Tensor = _bnb().matmul_4bit(
            x.to(self.dtype), self.values.view(-1, 1), bias=bias, quant_state=self._state()
        )
        return out

    @property
    def device(self) -> torch.device:
        """Where the packed values are."""
        return self.values.device

    def dequantise(self) -> Tensor:
        """Return W ``[out, in]``."""
        weight: Tensor = _bnb().functional.dequantize_4bit(self.values.view(-1, 1), self._state())
        return weight

    def _state(self) -> Any:
        return _bnb().functional.QuantState(
            absmax=self.scales,
            shape=torch.Size(self.shape),
            blocksize=BLOCK,
            quant_type="nf4",
            dtype=self.dtype,
        )


@dataclass(frozen=True)
class Int8Weight:
    """One expert's weight in eight bits; ``values`` int8 ``[out, in]``, ``scales`` ``[out]``."""

    values: Tensor
    scales: Tensor
    shape: tuple[int, int]
    dtype: torch.dtype

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Return x·Wᵀ + b ``[count, out]``; the gradient of x flows, that of W does not exist."""
        out = int8_linear(x.to(self.dtype), self.values, self.scales)
        return out if bias is None else out + bias

    @property
    def device(self) -> torch.device:
        """Where the packed values are."""
        return self.values.device

    def dequantise(self) -> Tensor:
        """Return W ``[out, in]``."""
        return _int8_dequantise(self.values, self.scales, self.dtype)


class _Int8Linear(torch.autograd.Function):
    """x·Wᵀ that keeps W in eight bits until the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, scales: Tensor) -> Tensor:
        ctx.save_for_backward(values, scales)
        return F.linear(x, _int8_dequantise(values, scales, x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        values, scales = ctx.saved_tensors
        return gradient @ _int8_dequantise(values, scales, gradient.dtype), None, None


def int8_linear(x: Tensor, values: Tensor, scales: Tensor) -> Tensor:
    """Return x·Wᵀ for W in eight bits; the gradient of x flows, that of W does not exist."""
    out: Tensor = _Int8Linear.apply(x, values, scales)
    return out


def _int8_dequantise(values: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    weight: Tensor = _bnb().functional.int8_vectorwise_dequant(values, scales)
    return weight.to(dtype)


class PackedStack(nn.Module):
    """All experts' packed values of one fused parameter.

    Its buffers move with the model but are not in its ``state_dict``: nobody sends or saves them.
    """

    def __init__(
        self, values: Tensor, scales: Tensor, kind: str, transposed: bool, in_features: int
    ) -> None:
        """Take what :func:`pack` made; ``values`` and ``scales`` have first size E."""
        super().__init__()
        self.kind = kind
        self.transposed = transposed
        self.in_features = in_features
        self.register_buffer("values", values, persistent=False)
        # As bytes, because a cast of the model to 16 bits would change floats.
        self.register_buffer("scales", scales.view(torch.uint8), persistent=False)

    def weight(self, e: int, out_features: int, dtype: torch.dtype) -> NF4Weight | Int8Weight:
        """Return expert ``e``'s weight as views of the buffers."""
        values, scales = self.get_buffer("values")[e], self.get_buffer("scales")[e]
        kind = NF4Weight if self.kind == "nf4" else Int8Weight
        return kind(values, scales.view(torch.float32), (out_features, self.in_features), dtype)

    def dequantise(self, out_features: int, dtype: torch.dtype) -> Tensor:
        """Return all experts' weights ``[E, out, in]``."""
        values, scales = self.get_buffer("values"), self.get_buffer("scales")
        experts = values.shape[0]
        if self.kind == "nf4":  # blocks lie one after the other: one call for all
            rows = (experts * out_features, self.in_features)
            whole = NF4Weight(values.view(-1), scales.view(torch.float32).view(-1), rows, dtype)
            return whole.dequantise().view(experts, out_features, self.in_features)
        shape = (experts, out_features, self.in_features)
        full = torch.empty(shape, dtype=dtype, device=values.device)
        for e in range(experts):  # what is between int8 and 16 bits is in 32 bits
            full[e] = self.weight(e, out_features, dtype).dequantise()
        return full

    def nbytes(self) -> int:
        """Return the bytes of the packed values with their scales."""
        return sum(buffer.nbytes for buffer in self.buffers())


@torch.no_grad()
def pack(stacked: Tensor | ExpertList, kind: str, transposed: bool) -> PackedStack:
    """Quantise a fused parameter ``[E, out, in]`` (``[E, in, out]`` if transposed) by experts.

    Beside the result, no more than one expert is in memory twice.

    Raises:
        ValueError: an unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f'"{kind}": unknown quantisation; choose one of {", ".join(KINDS)}')
    quantise = _nf4 if kind == "nf4" else _int8
    parts: tuple[Tensor, Tensor] | None = None  # values and scales, each of first size E
    for e, matrix in enumerate(stacked):
        one = quantise((matrix.T if transposed else matrix).contiguous())
        if parts is None:
            experts = stacked.shape[0]
            parts = (
                one[0].new_empty(experts, *one[0].shape),
                one[1].new_empty(experts, *one[1].shape),
            )
        for part, values in zip(parts, one, strict=True):
            part[e] = values
    if parts is None:
        raise ValueError("a stack of no experts cannot be quantised")
    return PackedStack(*parts, kind, transposed, stacked.shape[1 if transposed else 2])


@torch.no_grad()
def pack_matrix(matrix: Tensor, kind: str) -> NF4Weight | Int8Weight:
    """Quantise one expert's weight ``[out, in]``, as :func:`pack` does with each of a stack."""
    values, scales = (_nf4 if kind == "nf4" else _int8)(matrix.contiguous())
    shape = (matrix.shape[0], matrix.shape[1])
    return (NF4Weight if kind == "nf4" else Int8Weight)(values, scales, shape, matrix.dtype)


def _nf4(weight: Tensor) -> tuple[Tensor, Tensor]:
    values, state = _bnb().functional.quantize_4bit(
        weight, blocksize=BLOCK, quant_type="nf4", compress_statistics=False
    )
    return values.view(-1), state.absmax


def _int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    # In half precision, as bitsandbytes' own layers do.
    values, scales, _ = _bnb().functional.int8_vectorwise_quant(weight.half())
    return values, scales


def placeholder(stacked: Tensor | ExpertList, transposed: bool) -> nn.Parameter:
    """Return the empty parameter ``[E, out, 0]`` that takes the place of a packed one."""
    shape = (stacked.shape[0], stacked.shape[2] if transposed else stacked.shape[1], 0)
    empty = torch.empty(shape, dtype=stacked.dtype, device=stacked.device)
    return nn.Parameter(empty, requires_grad=False)


def put_packed(module: nn.Module, name: str, stack: PackedStack) -> None:
    """Let an experts module hold the packed values of its parameter ``name``."""
    module.add_module(name + _SUFFIX, stack)


def packed_stacks(module: nn.Module) -> dict[str, PackedStack]:
    """Return the packed values of an experts module by parameter name; often empty."""
    return {
        name.removesuffix(_SUFFIX): child
        for name, child in module.named_children()
        if isinstance(child, PackedStack)
    }


def packed_weights(module: nn.Module) -> list[dict[str, Any]] | None:
    """Return what each expert of a packed module runs on, None if it is not packed.

    A value is an :class:`NF4Weight`, an :class:`Int8Weight` or a view of a bias.
    """
    stacks = packed_stacks(module)
    if not stacks:
        return None
    parameters = stacked_parameters(module)
    experts = next(iter(parameters.values())).shape[0]
    return [
        {
            name: stacks[name].weight(e, p.shape[1], p.dtype) if name in stacks else p.detach()[e]
            for name, p in parameters.items()
        }
        for e in range(experts)
    ]


@torch.no_grad()
def unpack(module: nn.Module) -> None:
    """Give an experts module its stacked parameters back, in the type that it computes in."""
    for name, stack in packed_stacks(module).items():
        parameter = module.get_parameter(name)
        experts, out_features = parameter.shape[:2]
        inner = stack.in_features
        shape = (inner, out_features) if stack.transposed else (out_features, inner)
        full = torch.empty((experts, *shape), dtype=parameter.dtype, device=parameter.device)
        for e in range(experts):
            weight = stack.weight(e, out_features, parameter.dtype).dequantise()
            full[e] = weight.T if stack.transposed else weight
        delattr(module, name + _SUFFIX)
        setattr(module, name, nn.Parameter(full, requires_grad=parameter.requires_grad))
