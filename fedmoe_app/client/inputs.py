"""Statistics of what goes into the linear maps that a client trains, taken while it trains.

A token counts where its output has a gradient: those are the tokens that move the map. Padding has
none, nor have the tokens that a head does not look at; a forward pass without gradients, such as
the first one under gradient checkpointing, counts nothing. A text's first token looks at itself
only, so that its query has a gradient of 0, or of the size of rounding.

Shapes: T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from fedmoe_app.moe.state import Tensors
from fedmoe_app.moe.training.slots import tapped
from fedmoe_app.moe.training.trainable import Trainables
from fedmoe_app.schemes.base import Plan
from fedmoe_app.schemes.parts import OfInputs
from fedmoe_app.schemes.sums import add_named
from fedmoe_app.tasks.setup import Setup


class InputSums:
    """Sums over a round's batches.

    Args:
        statistics: what is summed up.
        weights: parameters of the maps, by full name; empty if there are no statistics.
    """

    def __init__(self, statistics: Sequence[OfInputs], weights: Mapping[str, Tensor]) -> None:
        self._statistics = statistics
        self._keys = {id(weight): key for key, weight in weights.items()}
        self._totals: Tensors = {}

    def numbers(self) -> Tensors:
        """Return them as they travel, float32, by ``Statistic/name``."""
        return {name: total.float().cpu() for name, total in self._totals.items()}

    def note(self, weight: Any, x: Tensor, out: Tensor) -> None:
        """Count x ``[..., in]`` when the gradient of the map's output ``[..., out]`` is there."""
        key = self._keys.get(id(weight))
        if key is not None and weight.requires_grad and out.requires_grad:
            x = x.detach()
            out.register_hook(lambda gradient: self._add(key, x, gradient))

    def note_module(self, module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        """As a forward hook of a linear module."""
        self.note(module.weight, args[0], out)

    def _add(self, key: str, x: Tensor, gradient: Tensor) -> None:
        counts = gradient.reshape(-1, gradient.shape[-1]).any(dim=1)  # [T]
        x = x.reshape(-1, x.shape[-1])[counts].float()
        for statistic in self._statistics:
            add_named(self._totals, type(statistic).__name__, statistic.of_inputs(key, x))


@contextmanager
def sums_of_inputs(plan: Plan, setup: Setup, trainables: Trainables) -> Iterator[InputSums]:
    """Sum up the plan's statistics of inputs over the training inside it."""
    statistics = [part for part in plan.measured if isinstance(part, OfInputs)]
    gates = {id(p) for layer in setup.layers for p in layer.gate_parameters().values()}
    weights = {key: p for key, p in trainables.named_parameters().items() if p.dim() == 2}
    maps = {key: p for key, p in weights.items() if id(p) not in gates} if statistics else {}
    sums, own = InputSums(statistics, maps), {id(p) for p in maps.values()}
    with ExitStack() as stack:
        if maps:
            for module in setup.model.modules():
                if isinstance(module, nn.Linear) and id(module.weight) in own:
                    handle = module.register_forward_hook(sums.note_module)
                    stack.callback(handle.remove)
            for layer in setup.layers:
                stack.enter_context(tapped(layer, sums.note))
        yield sums
