"""Train the chosen experts of a fused layer as one tensor a map: few large tensors for a GPU.

With parameters of its own for every expert, a model of 16 layers of 64 experts hands thousands of
small tensors to the optimiser, and a GPU waits for Python. Here the chosen experts of a layer share
one leaf a map, ``[C, ...]``; single experts, and their names, are views of its rows. An expert that
is not chosen is in no stack: it has neither gradient nor optimiser state.

Shapes: ``E`` experts of a layer, ``C`` chosen ones, ``r`` the rank of LoRA.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fedmoe_app.moe.state import Tensors

_LORA = "lora_"


class ExpertStacks:
    """The trainable stacks of one fused layer.

    Attributes:
        ids: the chosen experts, ascending, ``[C]`` int64.
        trained: leaves by short name, such as ``down_proj`` or ``down_proj.lora_A``, ``[C, ...]``.
        reached: which of them the last step trains, ``[C]`` bool; set before the optimiser's step.
    """

    def __init__(self, weights: Sequence[Mapping[str, Any]], chosen: Sequence[int]) -> None:
        """Copy the chosen experts' values.

        Args:
            weights: what is trained of each of the E experts, by short name.
            chosen: the experts, ascending, at least one.
        """
        device = next(iter(weights[0].values())).device
        self.ids = torch.tensor(chosen, device=device)
        self.rows = {e: row for row, e in enumerate(chosen)}
        self.reached = torch.ones(len(chosen), dtype=torch.bool, device=device)
        self.trained: dict[str, nn.Parameter] = {}
        self._fixed: Tensors = {}  # all E experts' adapters, where only some are trained
        self._num_experts = len(weights)
        for name in weights[0]:
            tensors = [expert[name].detach() for expert in weights]
            self.trained[name] = nn.Parameter(torch.stack([tensors[e] for e in chosen]))
            if not self.all_chosen and _LORA in name:
                self._fixed[name] = torch.stack(tensors)
        others = [e for e in range(len(weights)) if e not in self.rows]
        self.others = torch.tensor(others, dtype=torch.int64, device=device)  # [E - C]
        order = torch.cat([self.ids, self.others])
        self._places = torch.empty_like(order)  # [E]
        self._places[order] = torch.arange(len(weights), device=device)

    @property
    def all_chosen(self) -> bool:
        """Whether every expert of the layer is trained."""
        return len(self.rows) == self._num_experts

    @property
    def are_adapters(self) -> bool:
        """Whether LoRA is trained, not the maps themselves."""
        return any(_LORA in name for name in self.trained)

    def place(self, expert_ids: Tensor) -> Tensor:
        """Number the experts in the order in which they run, same shape as ``expert_ids``.

        Where some maps are trained themselves their experts come first, so that the products that
        give their gradients touch no other expert's tokens.
        """
        in_own_order = self.are_adapters or self.all_chosen
        return expert_ids if in_own_order else self._places[expert_ids]

    def values(self, e: int) -> Tensors:
        """Return views of what is trained of chosen expert ``e``, without graph."""
        return {name: stack.detach()[self.rows[e]] for name, stack in self.trained.items()}

    def row(self, e: int, name: str) -> Tensor:
        """Return the same of one tensor, with graph."""
        return self.trained[name][self.rows[e]]

    def adapter(self, name: str) -> Tensor:
        """Return all experts' A ``[E, r, in]`` or B ``[E, out, r]``, with graph."""
        if self.all_chosen:
            return self.trained[name]
        return self._fixed[name].index_copy(0, self.ids, self.trained[name])

    def keep_reached(self, routed: Tensor | None) -> Tensor:
        """Drop the gradients of experts that the step does not train; return them, ``[E]`` bool.

        Args:
            routed: whether a real token of the step went to e, ``[E]`` bool; None if not known.
        """
        gradients = [p.grad for p in self.trained.values() if p.grad is not None]
        reached = torch.zeros_like(self.reached)
        for gradient in gradients:
            reached |= gradient.any(dim=tuple(range(1, gradient.dim())))
        if routed is not None:
            reached &= routed.index_select(0, self.ids)
        rests = ~reached
        for gradient in gradients:  # not times 0: what nothing was written to may be NaN
            gradient.masked_fill_(in_rows(rests, gradient), 0)
        self.reached = reached
        return torch.zeros_like(self._places, dtype=torch.bool).index_copy(0, self.ids, reached)


def in_rows(values: Tensor, like: Tensor) -> Tensor:
    """Return ``[C]`` in a shape that is broadcast along the rows of ``[C, ...]``."""
    return values.view(-1, *[1] * (like.dim() - 1))
