"""Make chosen experts trainable, and tell what training changed.

Each expert has parameters of its own, or the chosen ones of a layer share a stack a map
(:mod:`fedmoe_app.moe.training.stacks`): few large tensors, which a GPU needs.

Order of use::

    trainables = Trainables(model, layers, experts=[[0, 3], [1]])
    optimizer = AdamW(trainables.named_parameters().values())
    for batch in batches:
        optimizer.zero_grad(set_to_none=True)
        model(**batch).loss.backward()
        trainables.count_step()                 # after backward, before the step
        optimizer.step()
    changes = trainables.changes()              # before merge()
    trainables.merge()                          # only where the local model is used further
    trainables.detach()                         # the plain transformers model again

With stacks the optimiser is :class:`fedmoe_app.moe.training.rows.RowsAdamW`, which gets
:meth:`Trainables.plain` and :meth:`Trainables.stacks`.

Dense parameters and gates are trained where they require a gradient. Shapes: ``L`` MoE layers,
``E`` experts a layer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fedmoe_app.moe.layers import MoELayer, dense_parameters
from fedmoe_app.moe.state import ExpertKey, ModelState, Tensors, expert_of, moved_by_server
from fedmoe_app.moe.structure import loaded_of
from fedmoe_app.moe.training.grouped import can_stack
from fedmoe_app.moe.training.slots import (
    attach_slots,
    attach_stacks,
    detach_slots,
    detach_stacks,
    use_slots,
)
from fedmoe_app.moe.training.stacks import ExpertStacks

_MARK = "_fedmoe_trainables"  # attribute of a model that has trainables attached


class Trainables:
    """The trainable parameters of a model during one local training.

    Write the received values into the model first: they are what changes are measured against.
    Until :meth:`merge` the model's own expert tensors keep the received values where experts are
    fused; adapters, and the experts of families with one module per expert (Switch), are moved
    directly.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        layers: Sequence[MoELayer],
        experts: Sequence[Collection[int]] | None = None,
        *,
        stacked: bool = False,
    ) -> None:
        """Attach to the model; ``experts`` lists the chosen experts per layer, None means all.

        ``stacked`` asks for one tensor a map for a layer's chosen experts, which is done where
        every layer's experts lie in stacks; else each has parameters of its own.

        Raises:
            ValueError: ``experts`` has not one entry per layer, or names an expert beyond E.
            UnsupportedModelError: the family's experts cannot be run one by one.
            RuntimeError: the model has trainables already.
        """
        if hasattr(model, _MARK):
            raise RuntimeError("the model has trainables already; call their detach() first")
        self._model = model
        self._layers = tuple(layers)
        self._chosen = _check_experts(self._layers, experts)
        self._stacked = stacked and all(_is_stackable(layer) for layer in self._layers)
        self._stacks: dict[int, ExpertStacks] = {}  # by layer; none of a layer with none chosen
        self._local = ModelState()
        self._merged = False
        self._implementation = model.get_experts_implementation()
        self._flags = [(p, p.requires_grad) for p in _all_parameters(model, self._layers)]
        device = model.device if self._stacked else torch.device("cpu")
        shape = (len(layers), layers[0].num_experts)
        self._trained = torch.zeros(shape, dtype=torch.int64, device=device)
        setattr(model, _MARK, True)
        try:
            self._local = self._attach()
        except BaseException:
            self.detach()
            raise
        self._received = self._copy_received()

    def __enter__(self) -> Trainables:
        """Return self; leaving the ``with`` block detaches."""
        return self

    def __exit__(self, *error: object) -> None:
        """Detach, without merging."""
        self.detach()

    @property
    def trained(self) -> Tensor:
        """Optimiser steps in which each expert had a gradient, ``[L, E]`` int64 on the CPU."""
        return self._trained.cpu()

    def named_parameters(self) -> Mapping[str, Tensor]:
        """Return the trainable parameters by the keys of :mod:`fedmoe_app.moe.state`, in order.

        A stack's rows are made when they are asked for, with graph; they hold no gradients.
        """
        if self._stacked:
            return _Rows(self._local, self._stacks)
        return {key: p for key, p in self._local.named() if isinstance(p, nn.Parameter)}

    def plain(self) -> list[nn.Parameter]:
        """Return the trainable parameters that are in no stack, in order."""
        return [p for _, p in self._local.named() if isinstance(p, nn.Parameter)]

    def stacks(self) -> list[ExpertStacks]:
        """Return the layers' stacks, in order; empty where each expert has its own parameters."""
        return list(self._stacks.values())

    def leaves(self) -> list[nn.Parameter]:
        """Return every tensor that gets a gradient: the plain ones and the stacks."""
        return self.plain() + [p for layer in self.stacks() for p in layer.trained.values()]

    def reference(self) -> Tensors:
        """Return the received values by the same keys; read them, do not write to them."""
        return dict(self._received.named())

    def train_only(self, layer: int, experts: Tensor) -> None:
        """Freeze the chosen experts of a layer that are not in ``experts`` ``[E]`` bool.

        Call it before the layer's experts run; it holds until the next call. A frozen expert's
        weights get no gradient; the gradient of its input still flows to the layers below.

        Raises:
            RuntimeError: the experts are stacked.
        """
        if self._stacks:
            raise RuntimeError("train_only() needs experts with parameters of their own")
        for e, wanted in enumerate(experts.tolist()):
            for parameter in self._local.experts.get((layer, e), {}).values():
                parameter.requires_grad_(wanted)

    def count_step(self, routed: Tensor | None = None) -> None:
        """Count the experts that this step trains; call it between ``backward`` and ``step``.

        An expert that only padding reached has a gradient of exact zeros. It counts as not
        reached: the gradient is dropped, so that the optimiser leaves the expert alone. So does
        one that no token reached, whatever a regulariser on its weights says.

        Args:
            routed: whether a real token of the step went to e, ``[L, E]`` bool; None if not known.
        """
        if self._stacked:
            for index, stacks in self._stacks.items():
                of_layer = None if routed is None else routed[index].to(stacks.ids.device)
                reached = stacks.keep_reached(of_layer)  # where the layer lies
                self._trained[index] += reached.to(self._trained.device)
            return
        # Read at once: a GPU would be waited for once an expert.
        flags = None if routed is None else routed.tolist()
        used = [key for key in self._local.experts if flags is None or flags[key[0]][key[1]]]
        trained = _with_gradient({key: self._local.experts[key] for key in used})
        for key, tensors in self._local.experts.items():
            if key in trained:
                self._trained[key] += 1
            else:
                for parameter in tensors.values():
                    parameter.grad = None

    def count_all(self) -> None:
        """Count a step that trains every expert, whatever was routed, as one with noise does."""
        self._trained += 1

    def changes(self) -> ModelState:
        """Return local minus received in float32: dense, gates, and the experts that were trained.

        Raises:
            RuntimeError: called after :meth:`merge`, when the received values are gone.
        """
        if self._merged:
            raise RuntimeError("changes() must be called before merge()")
        local, received, trained = self._local, self._received, self.trained
        return ModelState(
            dense=_difference(local.dense, received.dense),
            gates={i: _difference(t, received.gates[i]) for i, t in local.gates.items()},
            experts={
                key: _difference(tensors, received.experts[key])
                for key, tensors in local.experts.items()
                if trained[key] > 0
            },
        )

    def merge(self) -> None:
        """Write the trained experts into the model's own tensors; call :meth:`changes` before."""
        for (index, e), tensors in self._local.experts.items():
            if not self._layers[index].separate:
                self._layers[index].set_expert(e, tensors)
        self._merged = True

    def detach(self) -> None:
        """Give the model back as it was: own experts implementation, ``requires_grad`` flags."""
        self._model.__dict__.pop(_MARK, None)
        shared = [layer for layer in self._layers if not layer.separate]
        for layer in self._layers:
            detach_stacks(layer)
        for layer in shared:
            detach_slots(layer)
        if shared:
            self._model.set_experts_implementation(self._implementation)
        for parameter, flag in self._flags:
            parameter.requires_grad_(flag)
        for parameter in self.leaves():
            parameter.grad = None

    def _attach(self) -> ModelState:
        """Set ``requires_grad`` and slots; return the trainable parameters."""
        local = ModelState(dense=_trainable(dense_parameters(self._model, self._layers)))
        for layer, chosen in zip(self._layers, self._chosen, strict=True):
            if gate := _trainable(layer.gate_parameters()):
                local.gates[layer.index] = gate
            for parameter in layer.expert_parameters():
                parameter.requires_grad_(False)
            for e, tensors in self._attach_experts(layer, chosen).items():
                local.experts[layer.index, e] = tensors
        if not all(layer.separate for layer in self._layers):
            use_slots(self._model, self._layers)
        return local

    def _attach_experts(self, layer: MoELayer, chosen: Sequence[int]) -> dict[int, Tensors]:
        """Make the chosen experts of one layer trainable; return their values by expert."""
        if self._stacked and chosen:
            stacks = self._stacks[layer.index] = attach_stacks(layer, chosen)
            return {e: stacks.values(e) for e in chosen}
        if layer.separate:
            return {e: _trainable(layer.own_parameters(e)) for e in chosen}
        slots = attach_slots(layer, chosen)
        return {e: slots.weights[e] for e in chosen}

    def _copy_received(self) -> ModelState:
        """Copy what training overwrites; a fused expert's received values stay in the model."""
        local, layers = self._local, self._layers
        experts = {}
        for (index, e), tensors in local.experts.items():
            separate = layers[index].separate
            experts[index, e] = _clones(tensors) if separate else layers[index].expert(e)
        gates = {index: _clones(tensors) for index, tensors in local.gates.items()}
        return ModelState(dense=_clones(local.dense), gates=gates, experts=experts)


def _all_parameters(model: PreTrainedModel, layers: Sequence[MoELayer]) -> list[nn.Parameter]:
    """Return the model's parameters and the adapters, which it does not know of, each once."""
    adapters = [p for layer in layers for adapter in layer.adapters for p in adapter.values()]
    return list(dict.fromkeys([*model.parameters(), *adapters]))


def _check_experts(
    layers: Sequence[MoELayer], experts: Sequence[Collection[int]] | None
) -> list[list[int]]:
    """Return the sorted chosen experts of every layer."""
    if experts is None:
        return [list(range(layer.num_experts)) for layer in layers]
    if len(experts) != len(layers):
        raise ValueError(
            f"experts lists {len(experts)} layers: the model has {len(layers)} MoE layers"
        )
    for layer, chosen in zip(layers, experts, strict=True):
        for e in chosen:
            if not 0 <= e < layer.num_experts:
                raise ValueError(
                    f"experts[{layer.index}] holds {e}: layer {layer.index} has "
                    f"{layer.num_experts} experts, choose 0..{layer.num_experts - 1}"
                )
    return [sorted({int(e) for e in chosen}) for chosen in experts]


def _is_stackable(layer: MoELayer) -> bool:
    """Tell whether a layer's experts can be trained as stacks."""
    module = layer.experts_module
    has_residual = any(moved_by_server(name) for own in layer.adapters for name in own)
    whole = layer.fused and loaded_of(module) is None and not has_residual
    return whole and can_stack(module)


class _Rows(Mapping[str, Tensor]):
    """Plain parameters, and the stacks' rows with graph, each made when it is asked for."""

    def __init__(self, local: ModelState, stacks: Mapping[int, ExpertStacks]) -> None:
        self._values = dict(local.named())
        self._stacks = stacks

    def __getitem__(self, key: str) -> Tensor:
        value, found = self._values[key], expert_of(key)
        if found is None:
            return value
        layer, e = found
        return self._stacks[layer].row(e, key.split(".experts.")[1].partition(".")[2])

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def _with_gradient(experts: Mapping[ExpertKey, Tensors]) -> set[ExpertKey]:
    """Return the experts that have a gradient which is not all zeros."""
    # The smaller tensors come last.
    last = {key: g for key, t in experts.items() if (g := next(_gradients(t), None)) is not None}
    if not last:
        return set()
    # One answer for all experts: a GPU would be waited for once an expert.
    device = next(iter(last.values())).device
    nonzero = torch.stack([gradient.any().to(device) for gradient in last.values()]).tolist()
    found = {key for key, flag in zip(last, nonzero, strict=True) if flag}
    rest = (key for key in last if key not in found)
    return found | {k for k in rest if any(bool(g.any()) for g in _gradients(experts[k]))}


def _gradients(tensors: Tensors) -> Iterator[Tensor]:
    """Yield the gradients that there are, those of the last tensor first."""
    return (p.grad for p in reversed(tensors.values()) if p.grad is not None)


def _trainable(parameters: Mapping[str, nn.Parameter]) -> Tensors:
    """Return those to train, with ``requires_grad``; quantised weights and residuals stay out."""
    return {
        name: p.requires_grad_()
        for name, p in parameters.items()
        if p.is_floating_point() and not moved_by_server(name)
    }


def _clones(tensors: Mapping[str, Tensor]) -> Tensors:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def _difference(local: Mapping[str, Tensor], received: Mapping[str, Tensor]) -> Tensors:
    # On the CPU, where the received state is and from where it is sent.
    return {name: (local[name].detach().float() - received[name].float()).cpu() for name in local}
