"""Hold only some experts of each layer in memory; the router keeps its full size, masked.

Equal to the full model whose routers may choose only those experts. The other experts' tensors are
dropped: fused stacks become empty placeholders of the same name, listed experts (Switch) lose their
values. What is held are parameters of their own, which train, travel and are measured like any
expert's (:mod:`fedmoe_app.moe.training.trainable`).
"""

from __future__ import annotations

import types
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from fedmoe_app.moe.layers import MoELayer
from fedmoe_app.moe.structure import set_adapters
from fedmoe_app.moe.training.slots import ExpertSlots, put_slots, use_slots

_REFUSED = "_fedmoe_refused"  # attribute of a router: experts that it must not choose, [E] bool


class SubsetError(ValueError):
    """A subset of experts that a layer cannot run on; the message says why."""


def restrict_router(layer: MoELayer, allowed: Collection[int]) -> None:
    """Let a router choose among ``allowed`` experts only: the others' logits become −inf.

    Raises:
        SubsetError: fewer experts than a token uses, or one that the layer does not have.
    """
    check_subset(layer, allowed)
    refused = torch.ones(layer.num_experts, dtype=torch.bool)  # [E]
    refused[list(allowed)] = False
    router: Any = layer.router
    router.__dict__[_REFUSED] = refused
    # Bound to the module, so that a deep copy of the model masks by its own router.
    router.__dict__["forward"] = types.MethodType(_masked_forward, router)


def check_subset(layer: MoELayer, subset: Collection[int]) -> None:
    """Raise SubsetError or IndexError, as :func:`restrict_router`."""
    for e in subset:
        layer.check_expert(e)
    if len(set(subset)) < layer.top_k:
        raise SubsetError(
            f"experts {sorted(set(subset))} of MoE layer {layer.index}: a token uses "
            f"{layer.top_k}; choose at least so many"
        )


def release_router(layer: MoELayer) -> None:
    """Undo :func:`restrict_router`."""
    layer.router.__dict__.pop("forward", None)
    layer.router.__dict__.pop(_REFUSED, None)


def hold_experts(
    model: PreTrainedModel, layers: Sequence[MoELayer], subsets: Sequence[Collection[int]]
) -> None:
    """Drop all experts but ``subsets``, one collection a layer, and mask the routers.

    Raises:
        SubsetError: as :func:`restrict_router`, before anything is dropped.
        UnsupportedModelError: the family's experts cannot be run one by one.
    """
    for layer, subset in zip(layers, subsets, strict=True):
        restrict_router(layer, subset)
    for layer, subset in zip(layers, subsets, strict=True):
        if layer.fused:
            _hold_fused(layer, set(subset))
        else:
            _hold_listed(layer, set(subset))
    if any(layer.fused for layer in layers):
        use_slots(model, layers)


def _hold_fused(layer: MoELayer, subset: set[int]) -> None:
    held: list[dict[str, nn.Parameter]] = [
        {name: nn.Parameter(view.clone()) for name, view in layer.expert(e).items()}
        if e in subset
        else {}
        for e in range(layer.num_experts)
    ]
    put_slots(layer, ExpertSlots(held))
    set_adapters(layer.experts_module, held)
    for parameter in layer.fused_parameters().values():
        # Same number of dimensions and first size: the layer is still found by its shape.
        empty = parameter.new_empty((*parameter.shape[:-1], 0))
        parameter.data = empty
        parameter.requires_grad_(False)


def _hold_listed(layer: MoELayer, subset: set[int]) -> None:
    held = [layer.listed_parameters(e) if e in subset else {} for e in range(layer.num_experts)]
    for e in range(layer.num_experts):
        if e not in subset:
            for parameter in layer.listed_parameters(e).values():
                parameter.data = parameter.new_empty(0)
                parameter.requires_grad_(False)
    set_adapters(layer.experts_module, held)


def _masked_forward(router: Any, *args: Any, **kwargs: Any) -> Any:
    refused: Tensor = router.__dict__[_REFUSED]
    with _selection_bias_masked(router, refused), _MaskLogits(refused):
        return type(router).forward(router, *args, **kwargs)


class _MaskLogits(TorchFunctionMode):
    """Puts −inf on the refused experts wherever a linear map gives E values or E are ranked.

    The second is for families whose scores are not below all others where the logit is −inf: a bias
    may be added to them for the choice alone.
    """

    def __init__(self, refused: Tensor) -> None:
        super().__init__()
        self._refused = refused

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.topk, Tensor.topk) and args and args[0].shape[-1] == len(self._refused):
            args = (self._masked(args[0]), *args[1:])
        out = func(*args, **(kwargs or {}))
        if func is F.linear and out.shape[-1] == len(self._refused):
            out = self._masked(out)
        return out

    def _masked(self, values: Tensor) -> Tensor:
        return values.masked_fill(self._refused.to(values.device), float("-inf"))


@contextmanager
def _selection_bias_masked(router: nn.Module, refused: Tensor) -> Iterator[None]:
    """Some families add a bias to the scores for selection only (DeepSeek-V3).

    It is a buffer, or a parameter that they do not train (Ernie 4.5).
    """
    named = [*router.named_buffers(), *router.named_parameters()]
    biases = [
        bias.detach()
        for name, bias in named
        if bias.numel() == len(refused) and "bias" in name and not bias.requires_grad
    ]
    saved = [bias.clone() for bias in biases]
    try:
        for bias in biases:
            bias.view(-1)[refused.to(bias.device)] = float("-inf")
        yield
    finally:
        for bias, values in zip(biases, saved, strict=True):
            bias.copy_(values)
