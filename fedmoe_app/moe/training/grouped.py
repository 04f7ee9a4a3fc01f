"""Run all experts of a fused layer at once on a GPU: a frozen stack, and LoRA on each expert.

Run one by one, the 64 experts of a layer are thousands of small kernels, and the GPU waits for
Python. Here a packed stack is unpacked by one kernel for the moment of its use, in the backward
pass anew, and grouped matrix products multiply each expert's tokens by that expert's matrix. Beside
the layer's tokens one map of all experts is in memory in the type that the model computes in.

Shapes: ``E`` experts, ``S`` token-expert pairs sorted by expert, ``r`` the rank of LoRA.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedmoe_app.moe.quantised.packed import PackedStack, packed_stacks
from fedmoe_app.moe.state import RESIDUAL

_ALIGNED = 16  # bytes that a row of a grouped product's matrices must be a multiple of
_MOST_VALUES = 2**31  # bitsandbytes counts the values that it unpacks in 32 bits


def can_group(module: nn.Module, weights: Sequence[Mapping[str, Any]], x: Tensor) -> bool:
    """Tell whether a layer's experts can run by :func:`run_grouped`; else they run one by one.

    Args:
        module: the experts module.
        weights: what each expert runs on, as of :class:`fedmoe_app.moe.training.slots.ExpertSlots`.
        x: the tokens of the layer.
    """
    return _fast_on(x.device) and all(_groupable(module, weights, n) for n in _names(module))


def _fast_on(device: torch.device) -> bool:
    if device.type != "cuda" or not hasattr(F, "grouped_mm"):
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


def _names(module: Any) -> tuple[str, str]:
    return ("gate_up_proj" if module.has_gate else "up_proj"), "down_proj"


def _groupable(module: nn.Module, weights: Sequence[Mapping[str, Any]], name: str) -> bool:
    """Tell whether a map is one frozen stack, with adapters on every expert, in whole rows."""
    if not all(f"{name}.lora_A" in tensors for tensors in weights):
        return False  # an expert is trained itself, or is not loaded here
    if any(name + RESIDUAL in tensors for tensors in weights):
        return False  # one by one
    stack = _base(module, name)
    lora_a, lora_b = weights[0][f"{name}.lora_A"], weights[0][f"{name}.lora_B"]
    inner, outer, rank = lora_a.shape[1], lora_b.shape[0], lora_a.shape[0]
    dtype = module.get_parameter(name).dtype
    rows = (inner * dtype.itemsize, outer * dtype.itemsize, rank * lora_a.dtype.itemsize)
    small = len(weights) * inner * outer < _MOST_VALUES
    return stack is not None and small and not any(row % _ALIGNED for row in rows)


def _base(module: nn.Module, name: str) -> PackedStack | Tensor | None:
    """Return a map's stacked weights; None where they lie apart."""
    stack = packed_stacks(module).get(name)
    if stack is not None:
        return stack
    parameter = module.get_parameter(name)
    return parameter.detach() if parameter.numel() and not parameter.requires_grad else None


def run_grouped(
    module: Any,
    x: Tensor,
    expert_ids: Tensor,
    counts: Tensor,
    weights: Sequence[Mapping[str, Any]],
    scaling: float,
) -> Tensor:
    """Return the experts' outputs ``[S, H]`` for tokens ``[S, H]`` that are sorted by expert.

    Args:
        module: the experts module.
        x: the tokens.
        expert_ids: expert of each, ``[S]``.
        counts: tokens of each expert, ``[E]``.
        weights, scaling: of :class:`fedmoe_app.moe.training.slots.ExpertSlots`.
    """
    ends = counts.cumsum(0).to(torch.int32)
    up_name, down_name = _names(module)
    up = _linear(module, x, up_name, expert_ids, ends, weights, scaling)
    hidden = module._apply_gate(up) if module.has_gate else module.act_fn(up)
    out = _linear(module, hidden, down_name, expert_ids, ends, weights, scaling)
    return module.post_expert_norm(out) if module.has_post_expert_norm else out


def _linear(
    module: Any,
    x: Tensor,
    name: str,
    expert_ids: Tensor,
    ends: Tensor,
    weights: Sequence[Mapping[str, Any]],
    scaling: float,
) -> Tensor:
    """x·Wᵀ + b + scaling·x·Aᵀ·Bᵀ with each token's own W, b, A and B."""
    dtype = module.get_parameter(name).dtype
    base = _base(module, name)
    if isinstance(base, PackedStack):
        out_features = weights[0][f"{name}.lora_B"].shape[0]
        out: Tensor = _PackedLinear.apply(x.to(dtype), base, out_features, ends)
    else:
        assert base is not None
        turned = base if module.is_transposed else base.transpose(1, 2)  # [E, in, out]
        out = F.grouped_mm(x.to(dtype), turned, offs=ends)
    if f"{name}_bias" in weights[0]:
        out = out + module.get_parameter(f"{name}_bias").detach()[expert_ids]
    lora_a = torch.stack([tensors[f"{name}.lora_A"] for tensors in weights])  # [E, r, in]
    lora_b = torch.stack([tensors[f"{name}.lora_B"] for tensors in weights])  # [E, out, r]
    low = F.grouped_mm(x.to(lora_a.dtype), lora_a.transpose(1, 2), offs=ends)  # [S, r]
    added = F.grouped_mm(scaling * low, lora_b.transpose(1, 2), offs=ends)
    return out + added.to(out.dtype)


class _PackedLinear(torch.autograd.Function):
    """Grouped x·Wᵀ that keeps the weights packed until the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, stack: PackedStack, out_features: int, ends: Tensor) -> Tensor:
        ctx.stack, ctx.out_features = stack, out_features
        ctx.save_for_backward(ends)
        weight = stack.dequantise(out_features, x.dtype)  # [E, out, in]
        return F.grouped_mm(x, weight.transpose(1, 2), offs=ends)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = gradients
        (ends,) = ctx.saved_tensors
        weight = ctx.stack.dequantise(ctx.out_features, gradient.dtype)
        return F.grouped_mm(gradient.contiguous(), weight, offs=ends), None, None, None
