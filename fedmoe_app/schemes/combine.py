"""Combination: the parts of several schemes in one.

    selection   which experts a client trains             hfedmoe, fedmoe, ...
    loss        what is added to the local loss           fedprox, fedalign, ...
    gates       how gates are averaged, or kept           fedalign, hfedmoe, ...
    experts     how an expert's changes are combined      fcmoe, fedalign, hfedmoe, ...

Each part runs with the parameters of its own table in the run config. Dense tensors go by n_i.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from fedmoe_app.moe.shape import ModelShape
from fedmoe_app.moe.state import ModelState, Tensors
from fedmoe_app.schemes.base import ExpertUpdates, LocalClient, LocalStep, RoundInfo, Scheme

_GATES, _EXPERTS = "gates/", "experts/"  # prefixes of what is kept for either part
# Diagnostics of a round that belong to one part of the schemes that come with fedmoe.
_OF_SELECTION = ("selection_ratio",)
_OF_LOSS = ("reference", "reference_distance")


@dataclass(frozen=True)
class Combination(Scheme):
    """Selection, loss, gates and experts, each as another scheme has it."""

    selection: Scheme = field(default_factory=Scheme)
    loss: Scheme = field(default_factory=Scheme)
    gates: Scheme = field(default_factory=Scheme)
    experts: Scheme = field(default_factory=Scheme)

    def check(self, shape: ModelShape) -> None:
        """Let every part check itself."""
        self.gates.check(shape)
        # The other parts' own ways with gates are not used, be the gates frozen or not.
        others = replace(shape, gates_trained=True)
        for part in (self.selection, self.loss, self.experts):
            part.check(others)

    def advice(self, shape: ModelShape) -> str:
        """What the parts say, each once."""
        parts = (self.selection, self.loss, self.gates, self.experts)
        return "; ".join(dict.fromkeys(filter(None, (part.advice(shape) for part in parts))))

    # -- selection -----------------------------------------------------------------------------

    def needs_client_number(self, has_budget: bool) -> bool:
        """As the selection has it, or as anything is kept."""
        return self.keeps_state or self.selection.needs_client_number(has_budget)

    def budget(self, client: LocalClient) -> int | None:
        """As the selection has it."""
        return self.selection.budget(client)

    def choose_experts(self, client: LocalClient) -> Sequence[Collection[int]] | None:
        """As the selection has it."""
        return self.selection.choose_experts(client)

    @property
    def chooses_per_round(self) -> bool:
        """As the selection has it."""
        return self.selection.chooses_per_round

    @property
    def selects_per_batch(self) -> bool:
        """As the selection has it."""
        return self.selection.selects_per_batch

    def select_in_batch(self, probs: Tensor, routed: Tensor, client: LocalClient) -> Tensor:
        """As the selection has it."""
        return self.selection.select_in_batch(probs, routed, client)

    # -- loss ----------------------------------------------------------------------------------

    @property
    def needs_router_probs(self) -> bool:
        """As the loss has it."""
        return self.loss.needs_router_probs

    def extra_loss(self, step: LocalStep) -> Tensor | None:
        """As the loss has it."""
        return self.loss.extra_loss(step)

    def broadcast(self, info: RoundInfo) -> dict[str, Tensor]:
        """What the loss needs."""
        return self.loss.broadcast(info)

    # -- gates and experts ---------------------------------------------------------------------

    @property
    def needs_regions(self) -> bool:
        """As the experts have it."""
        return self.experts.needs_regions

    @property
    def keeps_state(self) -> bool:
        """Whether gates or experts keep anything."""
        return self.gates.keeps_state or self.experts.keeps_state

    @property
    def stale_fault(self) -> str:
        """As gates or experts have it."""
        return self.gates.stale_fault or self.experts.stale_fault

    def keep(self, received: ModelState, changes: ModelState) -> Tensors:
        """Keep for both parts, under names that tell them apart."""
        parts = ((_GATES, self.gates), (_EXPERTS, self.experts))
        return {
            prefix + name: tensor
            for prefix, part in parts
            if part.keeps_state
            for name, tensor in part.keep(received, changes).items()
        }

    def start(self, received: ModelState, kept: Mapping[str, Tensor]) -> ModelState:
        """Take the gates as their part starts them, the experts as theirs does."""
        gates, experts = received.gates, received.experts
        if self.gates.keeps_state:
            gates = self.gates.start(received, _of_part(kept, _GATES)).gates
        if self.experts.keeps_state:
            experts = self.experts.start(received, _of_part(kept, _EXPERTS)).experts
        return ModelState(received.dense, gates, experts)

    def gate_weights(self, info: RoundInfo, layer: int) -> Tensor:
        """As the gates have it."""
        return self.gates.gate_weights(info, layer)

    def gate_scale(self, info: RoundInfo, layer: int) -> float:
        """As the gates have it."""
        return self.gates.gate_scale(info, layer)

    @property
    def means_of_experts(self) -> bool:
        """As the experts have it."""
        return self.experts.means_of_experts

    @property
    def absent_count(self) -> bool:
        """As the experts have it."""
        return self.experts.absent_count

    def expert_shares(self, info: RoundInfo, layer: int) -> Tensor:
        """As the experts have it."""
        return self.experts.expert_shares(info, layer)

    def expert_weights(self, updates: ExpertUpdates) -> Tensor:
        """As the experts have it."""
        return self.experts.expert_weights(updates)

    def combine_expert(self, updates: ExpertUpdates) -> Tensor:
        """As the experts have it."""
        return self.experts.combine_expert(updates)

    # -- what a researcher looks at ------------------------------------------------------------

    def diagnose(self, info: RoundInfo) -> dict[str, Any]:
        """Take from each part the numbers of what it does here; the gates' part gives the rest."""
        own = {"selection": _OF_SELECTION, "loss": _OF_LOSS}
        found: dict[str, Any] = {}
        for part, names in own.items():
            numbers = getattr(self, part).diagnose(info)
            found |= {name: value for name, value in numbers.items() if name in names}
        others = self.gates.diagnose(info)
        return found | {
            name: value
            for name, value in others.items()
            if name not in _OF_SELECTION and name not in _OF_LOSS
        }

    def diagnose_expert(self, updates: ExpertUpdates, change: Tensor) -> dict[str, Any]:
        """As the experts have it."""
        return self.experts.diagnose_expert(updates, change)


def _of_part(kept: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in kept.items() if k.startswith(prefix)}
