"""Find the Mixture-of-Experts layers of any transformers model; read and write single experts.

The rule needs no list of model names. An *experts module* either owns a 3-D parameter whose first
size is its ``num_experts`` (fused experts), or is a ``ModuleList`` / ``ModuleDict`` of at least two
structurally identical children (listed experts). Its *router* is the sibling that holds exactly one
2-D parameter, of first size ``num_experts``. Find the layers before any PEFT or quantisation
wrapper is put around the model.

Shapes: ``L`` MoE layers, ``E`` experts a layer, ``K`` experts a token uses.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fedmoe_app.moe.state import ModelState, Tensors
from fedmoe_app.moe.structure import (
    LOOKED_FOR,
    UnsupportedModelError,
    adapters_of,
    check_interface,
    count_experts,
    find_logits_index,
    find_router,
    find_top_k,
    found_instead,
    is_fused,
    is_listed,
    listed_experts,
    stacked_parameters,
)

__all__ = [
    "MoELayer",
    "UnsupportedModelError",
    "dense_parameters",
    "find_moe_layers",
    "read_state",
    "write_state",
]

# Families whose experts are found but do not work, with the reason that the user is told.
_BROKEN = {
    "nllb-moe": "its transformers implementation only ever runs experts 0 and 1 of each layer",
}

logger = logging.getLogger("fedmoe")


@dataclass(frozen=True, eq=False)
class MoELayer:
    """One MoE layer of a model; holds references to its modules, no values of its own.

    Attributes:
        index: position among the model's MoE layers, an encoder's before a decoder's.
        name: module path of the MoE block, such as ``model.layers.3.mlp``.
        router: the module whose forward returns the router logits.
        router_name: module path of the router.
        experts_module: the module that holds all experts.
        num_experts: E.
        top_k: K.
        in_decoder: True in the decoder of an encoder-decoder model, False everywhere else.
        fused: True when ``experts_module`` stacks its experts in parameters of first size E.
        logits_index: element of the router's output tuple that holds the logits; None if unknown.
    """

    index: int
    name: str
    router: nn.Module
    router_name: str
    experts_module: nn.Module
    num_experts: int
    top_k: int
    in_decoder: bool
    fused: bool
    logits_index: int | None

    @property
    def adapters(self) -> tuple[dict[str, nn.Parameter], ...]:
        """The experts' LoRA parameters by expert, which travel in their place; often empty."""
        return adapters_of(self.experts_module)

    @property
    def separate(self) -> bool:
        """Whether what travels of an expert are parameters of its own, not slices of stacks."""
        return bool(self.adapters) or not self.fused

    def expert(self, e: int) -> Tensors:
        """Return detached views of what travels of expert ``e``, keyed by short names.

        Names are ``gate_up_proj``, ``down_proj``, ``down_proj_bias`` ... for fused experts, the
        child's own (``wi.weight``) for listed ones, ``down_proj.lora_A`` ... for adapters.

        Raises:
            IndexError: ``e`` is not in 0..E-1.
        """
        self.check_expert(e)
        if self.separate:
            return {name: p.detach() for name, p in self.own_parameters(e).items()}
        return {name: p.detach()[e] for name, p in self.fused_parameters().items()}

    def set_expert(self, e: int, tensors: Mapping[str, Tensor]) -> None:
        """Copy ``tensors`` into expert ``e`` in place; every tensor of the expert must be there.

        Raises:
            IndexError: ``e`` is not in 0..E-1.
            ValueError: unknown or missing names, or a wrong shape.
        """
        _copy(tensors, self.expert(e), f"expert {e} of MoE layer {self.index}")

    def gate(self) -> Tensors:
        """Return detached views of the router's parameters by their names inside the router.

        Empty where the router is frozen.
        """
        return {name: p.detach() for name, p in self.gate_parameters().items()}

    def gate_parameters(self) -> dict[str, nn.Parameter]:
        """Return the router's parameters that are trained."""
        return {name: p for name, p in self.router.named_parameters() if p.requires_grad}

    def set_gate(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy ``tensors`` into the router in place; every parameter of it must be there."""
        _copy(tensors, self.gate(), f"gate of MoE layer {self.index}")

    def fused_parameters(self) -> dict[str, nn.Parameter]:
        """Return the stacked parameters, each ``[E, ...]``; empty for listed experts."""
        return stacked_parameters(self.experts_module) if self.fused else {}

    def own_parameters(self, e: int) -> dict[str, nn.Parameter]:
        """Return the parameters that travel of a :attr:`separate` expert."""
        return self.adapters[e] if self.adapters else self.listed_parameters(e)

    def listed_parameters(self, e: int) -> dict[str, nn.Parameter]:
        """Return the parameters of listed expert ``e``; empty for fused experts."""
        return {} if self.fused else dict(listed_experts(self.experts_module)[e].named_parameters())

    def expert_parameters(self) -> Iterator[nn.Parameter]:
        """Yield every parameter of the model that holds expert values in this layer."""
        if self.fused:
            yield from self.fused_parameters().values()
        else:
            for child in listed_experts(self.experts_module):
                yield from child.parameters()
        for adapter in self.adapters:
            yield from adapter.values()

    def check_expert(self, e: int) -> None:
        """Raise IndexError unless ``e`` is in 0..E-1."""
        if not 0 <= e < self.num_experts:
            raise IndexError(
                f"expert {e}: MoE layer {self.index} ({self.name}) has {self.num_experts} "
                f"experts, choose 0..{self.num_experts - 1}"
            )


def find_moe_layers(model: PreTrainedModel) -> tuple[MoELayer, ...]:
    """Return the model's MoE layers in model order.

    Raises:
        UnsupportedModelError: no MoE layers; a family known to be broken; experts without a
            router, or that cannot be run one by one; layers that differ in their number of experts.
    """
    _refuse_broken(model)
    modules = dict(model.named_modules())
    decoder = _decoder_modules(model)
    layers: list[MoELayer] = []
    for name, module in modules.items():
        if not (is_fused(module) or is_listed(module, name)):
            continue
        block, router = _router_of(model, modules, name)
        layers.append(_layer(model, len(layers), block, router, module, modules, decoder))
    _check(model, layers)
    return tuple(layers)


def read_state(model: PreTrainedModel, layers: Sequence[MoELayer]) -> ModelState:
    """Clone what is trained of a model, sorted into dense tensors, gates and experts.

    Dense tensors and gates take part where they require a gradient, which in a new model is all of
    them. Tied weights appear once, under the model's first name for them. Buffers are not included.
    """
    state = ModelState()
    for name, parameter in dense_parameters(model, layers).items():
        state.dense[name] = parameter.detach().clone()
    for layer in layers:
        if gate := _clones(layer.gate()):
            state.gates[layer.index] = gate
        for e in range(layer.num_experts):
            if expert := _clones(layer.expert(e)):  # nothing of an expert that is not loaded
                state.experts[layer.index, e] = expert
    return state


def write_state(model: PreTrainedModel, layers: Sequence[MoELayer], state: ModelState) -> None:
    """Copy a state's values into the model in place; what the state lacks stays as it is.

    Raises:
        ValueError: an unknown name, an incomplete gate or expert, or a wrong shape.
        IndexError: a layer or an expert that the model does not have.
    """
    dense = dense_parameters(model, layers)
    unknown = sorted(set(state.dense) - set(dense))
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: {type(model).__name__} has no such dense tensor")
    targets = {name: dense[name].detach() for name in state.dense}
    _copy(state.dense, targets, type(model).__name__)
    for index, tensors in state.gates.items():
        _at(layers, index).set_gate(tensors)
    for (index, e), tensors in state.experts.items():
        _at(layers, index).set_expert(e, tensors)


def dense_parameters(model: PreTrainedModel, layers: Sequence[MoELayer]) -> dict[str, nn.Parameter]:
    """Return the trained parameters that belong to no gate and no expert; tied weights once."""
    special = _special_parameters(layers)
    return {
        name: p for name, p in model.named_parameters() if p.requires_grad and id(p) not in special
    }


def _refuse_broken(model: PreTrainedModel) -> None:
    family = getattr(model.config, "model_type", "")
    if family in _BROKEN:
        raise UnsupportedModelError(f"{type(model).__name__} cannot be used: {_BROKEN[family]}")


def _router_of(
    model: PreTrainedModel, modules: Mapping[str, nn.Module], experts: str
) -> tuple[str, str]:
    """Return the paths of the MoE block and of its router; say what is there if there is none."""
    try:
        return find_router(modules, experts)
    except UnsupportedModelError as error:
        raise UnsupportedModelError(
            f"{type(model).__name__}: {error}: {LOOKED_FOR}; {found_instead(model)}; choose "
            "another model"
        ) from None


def _check(model: PreTrainedModel, layers: Sequence[MoELayer]) -> None:
    name = type(model).__name__
    if not layers:
        raise UnsupportedModelError(
            f"{name} has no Mixture-of-Experts layers of a form that can be trained: {LOOKED_FOR}; "
            f"{found_instead(model)}; choose a model of an MoE family such as Mixtral, Qwen3Moe, "
            "Olmoe, DeepseekV3, GptOss or Switch"
        )
    sizes = sorted({layer.num_experts for layer in layers})
    if len(sizes) > 1:
        raise UnsupportedModelError(
            f"{name}: its MoE layers have {' and '.join(map(str, sizes))} experts; routing "
            "statistics are [layers, experts], so all layers must have the same number"
        )
    blocks = [layer.name for layer in layers]
    twice = next((block for block in blocks if blocks.count(block) > 1), None)
    if twice:
        raise UnsupportedModelError(
            f"{name}: {twice} spreads its experts over several modules, which is not supported"
        )
    for layer in layers:
        if layer.fused:
            check_interface(f"{name}, {layer.name}", layer.experts_module)


def _layer(
    model: PreTrainedModel,
    index: int,
    block: str,
    router: str,
    experts: nn.Module,
    modules: Mapping[str, nn.Module],
    decoder: set[int],
) -> MoELayer:
    return MoELayer(
        index=index,
        name=block,
        router=modules[router],
        router_name=router,
        experts_module=experts,
        num_experts=count_experts(experts),
        top_k=find_top_k(model, modules[router], modules[block]),
        in_decoder=id(experts) in decoder,
        fused=is_fused(experts),
        logits_index=find_logits_index(model, modules[router]),
    )


def _decoder_modules(model: PreTrainedModel) -> set[int]:
    """Return the ids of the modules in the decoder of an encoder-decoder model."""
    if not getattr(model.config, "is_encoder_decoder", False):
        return set()
    return {id(module) for module in model.get_decoder().modules()}


def _special_parameters(layers: Sequence[MoELayer]) -> set[int]:
    gates = {id(p) for layer in layers for p in layer.router.parameters()}
    return gates | {id(p) for layer in layers for p in layer.expert_parameters()}


def _clones(tensors: Mapping[str, Tensor]) -> Tensors:
    return {name: tensor.clone() for name, tensor in tensors.items()}


def _at(layers: Sequence[MoELayer], index: int) -> MoELayer:
    if not 0 <= index < len(layers):
        raise IndexError(f"MoE layer {index}: the model has {len(layers)}, 0..{len(layers) - 1}")
    return layers[index]


@torch.no_grad()
def _copy(values: Mapping[str, Tensor], targets: Mapping[str, Tensor], place: str) -> None:
    """Copy by name, all or nothing: names and shapes are checked before the first write."""
    if set(values) != set(targets):
        raise ValueError(
            f"{place}: got tensors {', '.join(sorted(values)) or 'none'}; "
            f"expected {', '.join(sorted(targets))}"
        )
    for name, target in targets.items():
        if values[name].shape != target.shape:
            raise ValueError(
                f"{place}: {name} has shape {tuple(values[name].shape)}, "
                f"expected {tuple(target.shape)}"
            )
    for name, target in targets.items():
        target.copy_(values[name])


@torch.no_grad()
def passes(model: PreTrainedModel, layers: Sequence[MoELayer]) -> int:
    """Return how often the same layer sees a token in one forward pass: 1, more in a looped model.

    Counted in a pass over a few tokens. 1 where the model cannot be run without more inputs.
    """
    counts = [0] * len(layers)

    def count(index: int) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            counts[index] += 1

        return hook

    handles = [layer.router.register_forward_hook(count(i)) for i, layer in enumerate(layers)]
    was_training = model.training
    try:
        tokens = torch.tensor([[1, 2, 1]], device=model.device)
        decoder = {"decoder_input_ids": tokens} if model.config.is_encoder_decoder else {}
        model.eval()(input_ids=tokens, attention_mask=torch.ones_like(tokens), **decoder)
    except Exception as error:  # whatever a family wants beside tokens
        logger.debug("passes of %s: %s", type(model).__name__, error)
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    return max(1, *counts)
