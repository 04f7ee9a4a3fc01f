"""Run fused experts from one weight tensor per expert: an experts implementation of transformers.

transformers stores the experts of a layer stacked in ``[E, ...]`` parameters. An optimiser that
gets such a parameter moves all E experts, by weight decay and momentum even those without a
gradient. Here every chosen expert has a *slot*, its own leaf parameter per tensor, and the others
are frozen views of the stacked parameter. ``ALL_EXPERTS_FUNCTIONS`` is transformers' seam for it.

Shapes: ``T`` tokens, ``K`` experts a token uses, ``S = T * K`` token-expert pairs, ``H`` hidden.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from fedmoe_app.moe.layers import MoELayer, UnsupportedModelError
from fedmoe_app.moe.quantised.packed import packed_weights
from fedmoe_app.moe.state import RESIDUAL
from fedmoe_app.moe.structure import check_interface
from fedmoe_app.moe.training.grouped import can_group, run_grouped
from fedmoe_app.moe.training.stacks import ExpertStacks

IMPLEMENTATION = "fedmoe_slots"
_ATTRIBUTE = "_fedmoe_slots"

OnLinear = Callable[[Any, Tensor, Tensor], None]


class ExpertSlots:
    """The weights that one fused experts module runs on, expert by expert.

    It is no ``nn.Module``, so that the model's ``state_dict`` and ``named_parameters`` stay as they
    are while it is attached.
    """

    def __init__(self, weights: Sequence[dict[str, Any]], scaling: float = 1.0) -> None:
        """Run on ``weights``, one dict of tensors by short name an expert.

        A weight is a tensor, or an object with a method ``linear(x, bias)`` (four bits). Beside
        ``down_proj`` there may be ``down_proj.lora_A`` and ``down_proj.lora_B``, whose product
        times ``scaling`` is added to it, and ``down_proj.lora_R``, which is, too.
        """
        self.weights = list(weights)
        self.scaling = scaling
        self.stacks: ExpertStacks | None = None  # what of it is trained as one tensor a map
        # Called with weight, input [T, in] and output [T, out] of every map of every expert.
        self.on_linear: OnLinear | None = None

    def each(self) -> list[dict[str, Any]]:
        """Return what every expert runs on by itself, with the graph of what is trained."""
        stacks = self.stacks
        if stacks is None:
            return self.weights
        return [
            {name: stacks.row(e, name) if name in stacks.trained else w for name, w in own.items()}
            if e in stacks.rows
            else own
            for e, own in enumerate(self.weights)
        ]


def attach_slots(layer: MoELayer, chosen: Iterable[int]) -> ExpertSlots:
    """Give each chosen expert of a fused layer its own parameters, the others views.

    The model must then run the implementation above (:func:`use_slots`).

    Raises:
        UnsupportedModelError: the family's experts do not go through transformers' interface.
    """
    if packed_weights(layer.experts_module):
        raise UnsupportedModelError(
            f"{layer.name}: its experts are quantised and cannot be trained themselves; add "
            'adapters (model.train = "expert-lora")'
        )
    weights = [layer.expert(e) for e in range(layer.num_experts)]
    for e in chosen:
        weights[e] = {name: nn.Parameter(view.clone()) for name, view in weights[e].items()}
    return put_slots(layer, ExpertSlots(weights))


def attach_stacks(layer: MoELayer, chosen: Sequence[int]) -> ExpertStacks:
    """Train the chosen experts of a fused layer, or their adapters, as one tensor a map.

    Adapters are moved directly: each becomes a view of its row. The model must then run the
    implementation above.
    """
    if layer.adapters:
        slots = slots_of(layer)
        stacks = ExpertStacks(layer.adapters, chosen)
        for e in chosen:
            for name, value in stacks.values(e).items():
                layer.adapters[e][name].data = value
    else:
        weights = [layer.expert(e) for e in range(layer.num_experts)]
        stacks = ExpertStacks(weights, chosen)
        for e in chosen:
            weights[e] = stacks.values(e)
        slots = put_slots(layer, ExpertSlots(weights))
    slots.stacks = stacks
    return stacks


def detach_stacks(layer: MoELayer) -> None:
    """Run the experts on tensors of their own again, if they ran on stacks."""
    slots: ExpertSlots | None = layer.experts_module.__dict__.get(_ATTRIBUTE)
    if slots is not None:
        slots.stacks = None


def put_slots(layer: MoELayer, slots: ExpertSlots) -> ExpertSlots:
    """Let a fused layer run on ``slots``; raises as :func:`attach_slots`."""
    check_slots_possible(layer)
    layer.experts_module.__dict__[_ATTRIBUTE] = slots
    return slots


def check_slots_possible(layer: MoELayer) -> None:
    """Raise UnsupportedModelError unless a fused layer's experts can be run one by one."""
    check_interface(layer.name, layer.experts_module)


def use_slots(model: PreTrainedModel, layers: Sequence[MoELayer]) -> None:
    """Switch a model's experts to the implementation above.

    Raises:
        UnsupportedModelError: transformers could not switch a fused layer.
    """
    model.set_experts_implementation(IMPLEMENTATION)
    for layer in layers:
        config = getattr(layer.experts_module, "config", None)
        if layer.fused and getattr(config, "_experts_implementation", "") != IMPLEMENTATION:
            raise UnsupportedModelError(
                f"{layer.name}: transformers could not switch its experts implementation"
            )


def slots_of(layer: MoELayer) -> ExpertSlots:
    """Return the slots that a layer runs on."""
    slots: ExpertSlots = layer.experts_module.__dict__[_ATTRIBUTE]
    return slots


@contextmanager
def tapped(layer: MoELayer, on_linear: OnLinear) -> Iterator[None]:
    """Let a fused layer's experts tell what goes through their maps; they run one by one for it."""
    slots: ExpertSlots | None = layer.experts_module.__dict__.get(_ATTRIBUTE)
    if slots is not None:
        slots.on_linear = on_linear
    try:
        yield
    finally:
        if slots is not None:
            slots.on_linear = None


def detach_slots(layer: MoELayer) -> None:
    """Remove the slots of a layer, if it has any."""
    layer.experts_module.__dict__.pop(_ATTRIBUTE, None)


def slots_forward(
    self: nn.Module, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """Mix the experts' outputs: ``[T, H]``, ``[T, K]``, ``[T, K]`` to ``[T, H]``.

    Tokens are sorted by expert once; each expert that got a token runs once, or all run at once
    (:mod:`fedmoe_app.moe.training.grouped`). Every gather is a permutation and the sum over K is a
    plain reduction, so the result does not depend on the order of concurrent additions.
    """
    slots: ExpertSlots | None = getattr(self, _ATTRIBUTE, None)
    if slots is None and (packed := packed_weights(self)):  # quantised, without adapters
        slots = ExpertSlots(packed)
    if slots is None:  # a module that shares its config with one that has slots
        eager = inspect.unwrap(type(self).forward)
        return eager(self, hidden_states, top_k_index, top_k_weights)
    tokens, top_k = top_k_index.shape
    stacks = slots.stacks if slots.on_linear is None else None
    numbers = top_k_index if stacks is None else stacks.place(top_k_index)
    places, order = torch.sort(numbers.reshape(-1), stable=True)  # [S], [S]
    pairs = hidden_states.unsqueeze(1).expand(-1, top_k, -1).reshape(tokens * top_k, -1)
    pairs = pairs.index_select(0, order)  # [S, H]
    alone = slots.on_linear is not None  # each expert by itself
    if stacks is not None or (not alone and can_group(self, slots.weights, pairs)):
        outputs = run_grouped(self, pairs, places, slots.weights, slots.scaling, stacks)
    else:
        counts = torch.bincount(places, minlength=len(slots.weights)).tolist()  # [E]
        outputs = _run_each(self, pairs, counts, slots)
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(order.shape[0], device=order.device)
    mixed = outputs.index_select(0, inverse).view(tokens, top_k, -1)  # [T, K, H]
    return (mixed * top_k_weights.unsqueeze(-1)).sum(dim=1).to(hidden_states.dtype)


def _run_each(module: Any, x: Tensor, counts: Sequence[int], slots: ExpertSlots) -> Tensor:
    """Run the experts one by one on their parts of ``[S, H]``, which is sorted by expert."""
    outputs = [
        _expert(module, part, weights, slots)
        for part, weights in zip(x.split(counts), slots.each(), strict=True)
        if part.shape[0]
    ]
    return torch.cat(outputs)


def _expert(module: Any, x: Tensor, weights: dict[str, Any], slots: ExpertSlots) -> Tensor:
    """Run one expert on its tokens ``[count, H]``, as transformers' own implementations do."""
    up_name = "gate_up_proj" if module.has_gate else "up_proj"
    up = _linear(module, x, weights, up_name, slots)
    hidden = module._apply_gate(up) if module.has_gate else module.act_fn(up)
    out = _linear(module, hidden, weights, "down_proj", slots)
    return module.post_expert_norm(out) if module.has_post_expert_norm else out


def _linear(
    module: Any, x: Tensor, weights: dict[str, Any], name: str, slots: ExpertSlots
) -> Tensor:
    """x·Wᵀ + b, plus scaling·(x·Aᵀ·Bᵀ + x·Rᵀ) where the expert has an adapter."""
    weight, bias = weights[name], weights.get(f"{name}_bias")
    if isinstance(weight, Tensor):
        straight = weight.T if module.is_transposed else weight  # [out, in]
        out = F.linear(x.to(straight.dtype), straight, bias)
    else:
        out = weight.linear(x, bias)
    lora_a = weights.get(f"{name}.lora_A")  # [r, in]
    if lora_a is None:
        if slots.on_linear is not None and not module.is_transposed:
            slots.on_linear(weight, x, out)
        return out
    lora_b = weights[f"{name}.lora_B"]  # [out, r]
    if (residual := weights.get(name + RESIDUAL)) is not None:  # [out, in]
        out = out + (slots.scaling * F.linear(x.to(residual.dtype), residual)).to(out.dtype)
    low = F.linear(x.to(lora_a.dtype), lora_a)  # [count, r]
    if out.dtype == lora_b.dtype:  # one pass over [count, out] instead of three
        out = torch.addmm(out, low, lora_b.T, alpha=slots.scaling)
    else:
        out = out + F.linear(slots.scaling * low, lora_b).to(out.dtype)
    if slots.on_linear is not None:
        slots.on_linear(lora_a, x, out)
        slots.on_linear(lora_b, low, out)
    return out


ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, slots_forward)
