"""Two cards that are made up: tensors that say they are on one, and refuse to meet another's.

A CPU has no second device to leave tensors on by mistake. Here a tensor wraps one of the CPU and
has a card's name; every operation of PyTorch runs on what it wraps, so that the values are the
CPU's to the last bit, and fails, as on real cards, where its tensors are on different devices.
What is not seen: kernels that cards alone have, streams, copies between cards, memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import _engine_run_backward
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

KIND = "mtia"  # a kind of device that PyTorch knows by name, and that is not here
CARDS = (f"{KIND}:0", f"{KIND}:1")
_CPU = torch.device("cpu")
_PLAIN_TO = torch.Tensor.to
# The optimiser and clipping sort tensors by device in C++, which sees the CPU.
_OF_MANY = ("_foreach_", "_fused_")


class CardTensor(torch.Tensor):
    """A tensor on a card; ``raw`` is its values."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    raw: Tensor
    card: torch.device

    @staticmethod
    def __new__(cls: type[CardTensor], raw: Tensor, card: torch.device) -> CardTensor:
        made: CardTensor = torch.Tensor._make_wrapper_subclass(
            cls,
            raw.size(),
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            device=_CPU,
        )
        return made

    def __init__(self, raw: Tensor, card: torch.device) -> None:
        self.raw, self.card = raw, card

    @property
    def device(self) -> torch.device:
        return self.card

    @property
    def data(self) -> Tensor:  # type: ignore[override]
        return self.detach()

    @data.setter
    def data(self, value: CardTensor) -> None:
        self.raw, self.card = value.raw, value.card

    def data_ptr(self) -> int:
        return self.raw.data_ptr()

    def tolist(self) -> Any:
        return self.raw.tolist()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(f"a tensor on {self.card} has no NumPy array")

    def __format__(self, how: str) -> str:
        return format(self.raw, how)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            new: Tensor = CardTensor(self.raw.clone(), self.card)
            is_parameter = isinstance(self, nn.Parameter)
            memo[id(self)] = nn.Parameter(new, self.requires_grad) if is_parameter else new
        found: Tensor = memo[id(self)]
        return found

    def __repr__(self) -> str:  # type: ignore[override]
        return f"{self.raw!r} on {self.card}"

    @classmethod
    def __torch_dispatch__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
        name = function.overloadpacket.__name__
        if not name.startswith(_OF_MANY):
            _check(name, tensors)
        raw = tree_map(_raw, args)
        if name == "histc" and not raw[0].is_floating_point():  # which the CPU cannot
            out = function(raw[0].double(), *raw[1:], **kwargs).to(raw[0].dtype)
        else:
            out = function(*raw, **tree_map(_raw, kwargs))
        card = args[0].device if name == "copy_" else _card_of(tensors)
        own = {id(t.raw): t for t in tensors if isinstance(t, CardTensor)}

        def wrapped(value: Any) -> Any:
            if not isinstance(value, Tensor) or card == _CPU:
                return value
            return own.get(id(value)) if id(value) in own else CardTensor(value, card)

        if name.startswith(_OF_MANY) and isinstance(out, list):  # one for each of the first list
            return [CardTensor(o, t.device) for o, t in zip(out, args[0], strict=True)]
        return tree_map(wrapped, out)


def _raw(value: Any) -> Any:
    return value.raw if isinstance(value, CardTensor) else value


def _card_of(tensors: list[Tensor]) -> torch.device:
    return next((t.device for t in tensors if isinstance(t, CardTensor)), _CPU)


def _check(name: str, tensors: list[Tensor]) -> None:
    """Raise as a real card does; single numbers and indices may come from the CPU."""
    if name == "copy_":
        return
    tensors = [t for t in tensors if isinstance(t, CardTensor) or t.dim()]
    if name.startswith("index") and isinstance(tensors[0], CardTensor):
        is_index = (torch.int64, torch.bool)
        tensors = [t for t in tensors if isinstance(t, CardTensor) or t.dtype not in is_index]
    found = sorted({str(t.device) for t in tensors})
    if len(found) > 1:
        raise RuntimeError(f"{name}: expected all tensors to be on one device, found {found}")


class _Move(torch.autograd.Function):
    """A copy to another device, and of its gradient back."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, device: torch.device) -> Tensor:
        ctx.source = values.device
        return _put(values, device)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return _put(gradient, ctx.source), None


def _put(values: Tensor, device: torch.device) -> Tensor:
    raw: Tensor = _raw(values).detach().clone()
    return raw if device == _CPU else CardTensor(raw, device)


def _to(values: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    copy = kwargs.pop("copy", False)
    if args and isinstance(args[0], Tensor):
        args = (args[0].device, args[0].dtype, *args[1:])
    device, dtype, _, _ = torch._C._nn._parse_to(*args, **kwargs)
    out = values if dtype in (None, values.dtype) else _PLAIN_TO(values, dtype)
    if device is not None and device.type != "meta" and device != out.device:
        out = _Move.apply(out, torch.device(device))
    elif device is not None and device.type == "meta":
        out = _PLAIN_TO(_raw(out), device)
    return out.clone() if copy and out is values else out


class _Cards(TorchFunctionMode):
    """Makes tensors on cards, and moves them."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if function is torch.Tensor.backward:  # which may compute activations again
            with self:
                return _engine_run_backward(
                    (args[0],),
                    *((torch.ones_like(args[0]),), False, False, ()),
                    allow_unreachable=True,
                    accumulate_grad=True,
                )
        if function is F.one_hot:  # numbers the classes in C++, which sees the CPU
            return _to(function(_to(args[0], _CPU), *args[1:], **kwargs), args[0].device)
        if function is torch.Tensor.to:
            return _to(*args, **kwargs)
        if function is torch.Tensor.cpu:
            return _to(args[0], _CPU)
        device = kwargs.get("device")
        if device is None or torch.device(device).type == "meta":
            return function(*args, **kwargs)
        out = function(*args, **{**kwargs, "device": _CPU})
        return _to(out, torch.device(device)) if isinstance(out, Tensor) else out


def _same_kind(one: Tensor, other: Tensor) -> bool:
    """Tell whether a parameter can take over the other's values, or a new one takes its place."""
    return isinstance(one, CardTensor) == isinstance(other, CardTensor)


@contextmanager
def two_cards() -> Iterator[None]:
    """Have the two cards inside."""
    with patch.object(torch, "_has_compatible_shallow_copy_type", _same_kind), _Cards():
        yield
