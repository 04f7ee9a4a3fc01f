"""Run all experts of a fused layer at once on a GPU: a frozen stack, and what is trained of it.

Run one by one, the 64 experts of a layer are thousands of small kernels, and the GPU waits for
Python. Here a packed stack is unpacked by one kernel for the moment of its use, in the backward
pass anew, and grouped matrix products multiply each expert's tokens by that expert's matrix. Beside
the layer's tokens one map of all experts is in memory in the type that the model computes in.

LoRA is multiplied in that type, too, with adapters kept in float32: PyTorch has a fast grouped
product for bfloat16 only (compute capability 9.0 and 10.0); for all else it waits for the GPU and
runs expert by expert.

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
from fedmoe_app.moe.training.stacks import ExpertStacks

_ALIGNED = 16  # bytes that a row of a grouped product's matrices must be a multiple of
_MOST_VALUES = 2**31  # bitsandbytes counts the values that it unpacks in 32 bits


def can_group(module: nn.Module, weights: Sequence[Mapping[str, Any]], x: Tensor) -> bool:
    """Tell whether a layer's experts can run by :func:`run_grouped`; else they run one by one.

    Args:
        module: the experts module.
        weights: what each expert runs on, as of :class:`fedmoe_app.moe.training.slots.ExpertSlots`.
        x: the tokens of the layer.
    """
    return _fast_on(x.device) and all(_frozen_stack(module, weights, n) for n in _names(module))


def can_stack(module: nn.Module) -> bool:
    """Tell whether a layer's experts lie in whole stacks, so that they can be trained as some.

    Args:
        module: the experts module.
    """
    return hasattr(F, "grouped_mm") and all(_fits(module, name) for name in _names(module))


def pays_on(device: torch.device) -> bool:
    """Tell whether few large tensors are trained faster than many small ones."""
    return _fast_on(device)


def _fast_on(device: torch.device) -> bool:
    if device.type != "cuda" or not hasattr(F, "grouped_mm"):
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


def _names(module: Any) -> tuple[str, str]:
    return ("gate_up_proj" if module.has_gate else "up_proj"), "down_proj"


def _frozen_stack(module: nn.Module, weights: Sequence[Mapping[str, Any]], name: str) -> bool:
    """Tell whether a map is one frozen stack, with adapters on every expert."""
    if not all(f"{name}.lora_A" in tensors for tensors in weights):
        return False  # an expert is trained itself, or is not loaded here
    if any(name + RESIDUAL in tensors for tensors in weights):
        return False  # one by one
    return not module.get_parameter(name).requires_grad and _fits(module, name)


def _fits(module: nn.Module, name: str) -> bool:
    """Tell whether a map is one stack whose rows a grouped product takes."""
    stack = _base(module, name)
    if stack is None:
        return False
    experts, outer, inner = _shape(module, name, stack)
    width = module.get_parameter(name).dtype.itemsize
    rows = (inner * width, outer * width)
    return experts * inner * outer < _MOST_VALUES and not any(row % _ALIGNED for row in rows)


def _shape(module: Any, name: str, stack: PackedStack | Tensor) -> tuple[int, int, int]:
    """Return E, out and in of a map."""
    if isinstance(stack, PackedStack):
        experts, outer = module.get_parameter(name).shape[:2]
        return experts, outer, stack.in_features
    experts, outer, inner = stack.shape
    return (experts, inner, outer) if module.is_transposed else (experts, outer, inner)


def _base(module: nn.Module, name: str) -> PackedStack | Tensor | None:
    """Return a map's stacked weights; None where they lie apart."""
    stack = packed_stacks(module).get(name)
    if stack is not None:
        return stack
    parameter = module.get_parameter(name)
    return parameter.detach() if parameter.numel() else None


def run_grouped(
    module: Any,
    x: Tensor,
    places: Tensor,
    weights: Sequence[Mapping[str, Any]],
    scaling: float,
    stacks: ExpertStacks | None = None,
) -> Tensor:
    """Return the experts' outputs ``[S, H]`` for tokens ``[S, H]`` that are sorted by expert.

    Args:
        module: the experts module.
        x: the tokens.
        places: expert of each, ``[S]``, ascending; numbered by the stacks, if there are any.
        weights, scaling, stacks: of :class:`fedmoe_app.moe.training.slots.ExpertSlots`.
    """
    numbers = torch.arange(len(weights), device=places.device)
    # Counting by bincount would wait for the GPU.
    ends = torch.searchsorted(places, numbers, right=True, out_int32=True)  # [E]
    maps = _Maps(module, places, ends, weights, scaling, stacks)
    up_name, down_name = _names(module)
    up = _linear(maps, x, up_name)
    hidden = module._apply_gate(up) if module.has_gate else module.act_fn(up)
    out = _linear(maps, hidden, down_name)
    return module.post_expert_norm(out) if module.has_post_expert_norm else out


class _Maps:
    """What the tokens of one pass through a layer are multiplied by."""

    def __init__(
        self,
        module: Any,
        places: Tensor,
        ends: Tensor,
        weights: Sequence[Mapping[str, Any]],
        scaling: float,
        stacks: ExpertStacks | None,
    ) -> None:
        self.module, self.places, self.ends = module, places, ends
        self.weights, self.scaling, self.stacks = weights, scaling, stacks

    def base(self, x: Tensor, name: str) -> Tensor:
        """Return x·Wᵀ ``[S, out]``."""
        if self.stacks is not None and name in self.stacks.trained:
            return self._trained(x, name, self.stacks)
        base = _base(self.module, name)
        assert base is not None
        if isinstance(base, PackedStack):
            outer = _shape(self.module, name, base)[1]
            out: Tensor = _PackedLinear.apply(x, base, outer, self.ends)
            return out
        return F.grouped_mm(x, self._turned(base), offs=self.ends)

    def _trained(self, x: Tensor, name: str, stacks: ExpertStacks) -> Tensor:
        weight = stacks.trained[name]
        if stacks.all_chosen:
            return F.grouped_mm(x, self._turned(weight), offs=self.ends)
        base = self.module.get_parameter(name).detach()
        transposed = bool(self.module.is_transposed)
        out: Tensor = _PartlyTrained.apply(x, weight, base, stacks.others, self.ends, transposed)
        return out

    def _turned(self, stack: Tensor) -> Tensor:
        """Return ``[E, in, out]``."""
        return stack if self.module.is_transposed else stack.transpose(1, 2)

    def bias(self, name: str) -> Tensor | None:
        """Return each token's b ``[S, out]``; None where there is none."""
        key = f"{name}_bias"
        if key not in self.weights[0]:
            return None
        frozen = self.module.get_parameter(key).detach()  # [E, out]
        if self.stacks is None or key not in self.stacks.trained:
            return frozen[self.places]
        bias: Tensor = self.stacks.trained[key]
        if not self.stacks.all_chosen:
            bias = torch.cat([bias, frozen[self.stacks.others]])
        # A product, whose gradient is the same each time; that of a gather is not.
        numbers = torch.arange(len(self.weights), device=bias.device)
        return (self.places.unsqueeze(1) == numbers).to(bias.dtype) @ bias

    def adapter(self, name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor] | None:
        """Return all experts' A ``[E, r, in]`` and B ``[E, out, r]``; None without LoRA."""
        keys = (f"{name}.lora_A", f"{name}.lora_B")
        if keys[0] not in self.weights[0]:
            return None
        a, b = (self._stacked(key).to(dtype) for key in keys)
        missing = -a.shape[1] % (_ALIGNED // dtype.itemsize)
        if missing:  # zeros change nothing, but rows of 16 bytes do
            a, b = F.pad(a, (0, 0, 0, missing)), F.pad(b, (0, missing))
        return a, b

    def _stacked(self, key: str) -> Tensor:
        if self.stacks is not None:
            return self.stacks.adapter(key)
        return torch.stack([tensors[key] for tensors in self.weights])


def _linear(maps: _Maps, x: Tensor, name: str) -> Tensor:
    """x·Wᵀ + b + scaling·x·Aᵀ·Bᵀ with each token's own W, b, A and B."""
    x = x.to(maps.module.get_parameter(name).dtype)
    out = maps.base(x, name)
    bias = maps.bias(name)
    if bias is not None:
        out = out + bias
    adapter = maps.adapter(name, x.dtype)
    if adapter is None:
        return out
    a, b = adapter
    low = F.grouped_mm(x, a.transpose(1, 2), offs=maps.ends)  # [S, r]
    added = F.grouped_mm(low, b.transpose(1, 2), offs=maps.ends)
    return torch.add(out, added, alpha=maps.scaling)


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


class _PartlyTrained(torch.autograd.Function):
    """Grouped x·Wᵀ of trained experts, whose tokens come first, and of frozen ones."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        trained: Tensor,
        base: Tensor,
        others: Tensor,
        ends: Tensor,
        transposed: bool,
    ) -> Tensor:
        ctx.base, ctx.transposed = base, transposed
        ctx.save_for_backward(x, trained, others, ends)
        weight = _joined(trained, base, others)
        return F.grouped_mm(x, weight if transposed else weight.transpose(1, 2), offs=ends)

    @staticmethod
    def backward(
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        gradient = gradients[0].contiguous()
        x, trained, others, ends = ctx.saved_tensors
        of_x = of_trained = None
        if ctx.needs_input_grad[0]:
            weight = _joined(trained, ctx.base, others)
            turned = weight.transpose(1, 2) if ctx.transposed else weight
            of_x = F.grouped_mm(gradient, turned, offs=ends)
        if ctx.needs_input_grad[1]:
            rows = ends[: trained.shape[0]]
            left, right = (x, gradient) if ctx.transposed else (gradient, x)
            of_trained = F.grouped_mm(left.t(), right, offs=rows)
        return of_x, of_trained, None, None, None, None


def _joined(trained: Tensor, base: Tensor, others: Tensor) -> Tensor:
    """Return the stack of all experts ``[E, ...]``, the trained ones first."""
    return torch.cat([trained, base.index_select(0, others)])
