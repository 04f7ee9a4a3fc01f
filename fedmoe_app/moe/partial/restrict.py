"""Let a layer's router choose among some experts only, by a mask; it keeps its full size."""

from __future__ import annotations

import types
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fedmoe_app.moe.layers import MoELayer

_REFUSED = "_fedmoe_refused"  # attribute of a router: experts that it must not choose, [E] bool


ExpertsByLayer = Sequence[Collection[int]]  # indices of experts, one collection a layer


class PlacementError(ValueError):
    """Experts that are too few for a layer to run on; the message says why."""


def restrict_router(layer: MoELayer, allowed: Collection[int]) -> None:
    """Let a router choose among ``allowed`` experts only: the others' logits become −inf.

    Raises:
        PlacementError: fewer experts than a token uses, or one that the layer does not have.
    """
    check_experts(layer, allowed)
    refused = torch.ones(layer.num_experts, dtype=torch.bool)  # [E]
    refused[list(allowed)] = False
    router: Any = layer.router
    router.__dict__[_REFUSED] = refused
    # Bound to the module, so that a deep copy of the model masks by its own router.
    router.__dict__["forward"] = types.MethodType(_masked_forward, router)


def check_experts(layer: MoELayer, experts: Collection[int]) -> None:
    """Raise PlacementError or IndexError, as :func:`restrict_router`."""
    for e in experts:
        layer.check_expert(e)
    if len(set(experts)) < layer.top_k:
        raise PlacementError(
            f"experts {sorted(set(experts))} of MoE layer {layer.index}: a token uses "
            f"{layer.top_k}; choose at least so many"
        )


def release_router(layer: MoELayer) -> None:
    """Undo :func:`restrict_router`."""
    layer.router.__dict__.pop("forward", None)
    layer.router.__dict__.pop(_REFUSED, None)


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
