"""Find the layers of a model that nobody trains, below the first one that is trained.

Only a plain list of decoder layers is taken, in which nothing is random: there a token's hidden
state after the prefix depends on nothing but the tokens before it. Whatever else a family does
between its layers is found by a trial (:func:`fedmoe_app.moe.prefix.replay.check`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from fedmoe_app.moe.layers import MoELayer


class NoPrefixError(ValueError):
    """A model without a frozen prefix that can be computed once; the message says why."""


@dataclass(frozen=True)
class Prefix:
    """The frozen layers of a model.

    Attributes:
        decoder: the module whose forward runs the layers one after the other.
        layers: all of its layers.
        length: how many of them, from the first on, are frozen; at least 1.
    """

    decoder: nn.Module
    layers: Sequence[nn.Module]
    length: int

    @property
    def saved(self) -> float:
        """Share of a training step that the prefix takes, 0 to 1: its forward, no backward.

        A trained layer counts three times, once forward and twice backward.
        """
        return self.length / (self.length + 3 * (len(self.layers) - self.length))


def find_prefix(model: PreTrainedModel, moe_layers: Sequence[MoELayer]) -> Prefix:
    """Return the frozen prefix of a model in which what is trained requires a gradient.

    It ends below the first MoE layer, even a frozen one: the routing of all of them is recorded in
    every round.

    Raises:
        NoPrefixError: there is none, or the model is not plainly a list of layers.
    """
    if model.config.is_encoder_decoder:
        raise NoPrefixError("it is an encoder-decoder model")
    decoder = model.base_model
    layers = _layers(model, decoder)
    inside = {id(p) for layer in layers for p in layer.parameters()}
    for name, parameter in decoder.named_parameters():
        if parameter.requires_grad and id(parameter) not in inside:
            raise NoPrefixError(f"{name}, which lies outside its layers, is trained")
    special = {id(layer.router) for layer in moe_layers}
    length = 0
    while length < len(layers) and _is_plain(layers[length], special):
        length += 1
    if length == 0:
        raise NoPrefixError("its first layer is trained or has experts")
    if length == len(layers):
        raise NoPrefixError("none of its layers is trained")
    if random := _random(decoder, layers[length:]):
        raise NoPrefixError(f"{random} of its frozen layers is random (dropout)")
    return Prefix(decoder, layers, length)


def _layers(model: PreTrainedModel, decoder: nn.Module) -> list[nn.Module]:
    number = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    lists = [
        child
        for child in decoder.children()
        if isinstance(child, nn.ModuleList) and len(child) == number
    ]
    if len(lists) != 1:
        raise NoPrefixError(f"{type(decoder).__name__} is not plainly one list of layers")
    return list(lists[0])


def _is_plain(layer: nn.Module, routers: set[int]) -> bool:
    """Tell whether nothing of a layer is trained and it has no router that is recorded."""
    if any(parameter.requires_grad for parameter in layer.parameters()):
        return False
    return not any(id(module) in routers for module in layer.modules())


def _random(decoder: nn.Module, above: Sequence[nn.Module]) -> str:
    """Return the first module below the trained layers that drops values at random, else ""."""
    trained = {id(module) for layer in above for module in layer.modules()}
    for name, module in decoder.named_modules():
        rates = [v for k, v in vars(module).items() if "drop" in k and isinstance(v, float)]
        rates += [module.p] if isinstance(module, nn.Dropout) else []
        if id(module) not in trained and any(rate > 0 for rate in rates):
            return name or type(module).__name__
    return ""
