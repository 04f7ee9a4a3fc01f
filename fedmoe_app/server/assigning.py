"""Which experts the server has each client train, where a scheme assigns them.

After each round the scheme's part is asked; what it says holds for a client's next rounds until it
says otherwise. Where all nodes have all experts, a client is told them with its task. Where nodes
hold chosen ones only, they are entered in the book of placements, by which a node is sent no
others. All of it lies in the checkpoint beside the state of the scheme's steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from flwr.app import RecordDict
from torch import Tensor

from fedmoe_app.moe.shape import ModelShape
from fedmoe_app.moe.state import ModelState, Tensors
from fedmoe_app.schemes.base import Plan
from fedmoe_app.schemes.faults import PartError, call, named, shown
from fedmoe_app.schemes.parts import Assign
from fedmoe_app.schemes.views import Reply
from fedmoe_app.server.clients import ClientRegistry
from fedmoe_app.server.placement import Placements
from fedmoe_app.wire.tasks import ASSIGNED, encode_assigned
from fedmoe_app.wire.update import Placement

_STATE, _TO = "assign.state.", "assign.to."  # how names in the checkpoint begin


@dataclass
class Assignments:
    """The experts by client, and the state of the part that assigns them.

    Attributes:
        part: the scheme's.
        shape: of the model.
        placements: the book of who holds what; None where all nodes have all experts.
        by_client: ``[L, E]`` bool; a client that is not there chooses for itself.
    """

    part: Assign
    shape: ModelShape
    placements: Placements | None = None
    by_client: dict[int, Tensor] = field(default_factory=dict)
    _own: Tensors = field(default_factory=dict)

    @classmethod
    def of(cls, plan: Plan, shape: ModelShape, placements: Placements | None) -> Assignments | None:
        """Return the book of a scheme; None if it assigns nothing."""
        return None if plan.server.assign is None else cls(plan.server.assign, shape, placements)

    def renew(self, replies: Sequence[Reply]) -> None:
        """Let the part assign experts for the next round.

        Raises:
            PartError: it raised, or returned what cannot be used; nothing has changed then.
        """
        bare = [replace(reply, changes=ModelState()) for reply in replies]
        found = call(self.part, "assign", bare, dict(self._own))
        if not isinstance(found, tuple) or len(found) != 2:
            raise self._fault(f"returned {shown(found)}: must be (experts by client, state)")
        assigned, state = found
        own = dict(named(self.part, "assign", "its state", state))
        if not isinstance(assigned, Mapping):
            raise self._fault(f"its experts are {shown(assigned)}: must be tensors by client")
        budgets = {reply.client: reply.expert_budget for reply in replies}
        for client, experts in assigned.items():
            self._check(client, experts, self._budget(client, budgets))
        self._own = own
        self.by_client |= {int(client): experts for client, experts in assigned.items()}
        if self.placements is not None:
            self.placements.by_client |= {
                client: Placement(experts, self._budget(client, budgets))
                for client, experts in self.by_client.items()
            }

    def records(self, registry: ClientRegistry, nodes: Sequence[int]) -> dict[int, RecordDict]:
        """Return what each node is told beside its task; nothing where it chooses for itself."""
        clients = {node: registry.client(node) for node in nodes}
        return {
            node: RecordDict({ASSIGNED: encode_assigned(self.by_client[client])})
            for node, client in clients.items()
            if client is not None and client in self.by_client
        }

    def state(self) -> Tensors:
        """Return everything as a checkpoint has it."""
        to = {f"{_TO}{client}": experts for client, experts in sorted(self.by_client.items())}
        return {f"{_STATE}{name}": tensor for name, tensor in self._own.items()} | to

    def restore(self, stored: Mapping[str, Tensor]) -> None:
        """Go on after a checkpoint."""
        self._own = {
            name.removeprefix(_STATE): tensor
            for name, tensor in stored.items()
            if name.startswith(_STATE)
        }
        self.by_client = {
            int(name.removeprefix(_TO)): experts.bool()
            for name, experts in stored.items()
            if name.startswith(_TO)
        }

    def _budget(self, client: int, told: Mapping[int, int]) -> int:
        """Return how many experts a layer a client can hold, as it has told; E if it has not."""
        known = self.placements.by_client.get(client) if self.placements is not None else None
        return told.get(client) or (self.shape.num_experts if known is None else known.budget)

    def _check(self, client: object, experts: object, budget: int) -> None:
        shape = (self.shape.num_layers, self.shape.num_experts)
        is_mask = isinstance(experts, Tensor) and experts.dtype == torch.bool
        if not isinstance(experts, Tensor) or not is_mask or tuple(experts.shape) != shape:
            raise self._fault(
                f"returned {shown(experts)} for client {client}: must be bool of shape "
                f"{list(shape)}, the model's MoE layers and experts"
            )
        # Where a node holds no others, its router must find as many as a token uses.
        least = self.shape.top_k if self.placements is not None else 1
        counts = experts.sum(dim=1)  # [L]
        wrong = ((counts < least) | (counts > budget)).nonzero().flatten().tolist()
        if wrong:
            raise self._fault(
                f"returned {int(counts[wrong[0]])} experts of MoE layer {wrong[0]} for client "
                f"{client}: must be {least} to {budget}"
            )

    def _fault(self, what: str) -> PartError:
        return PartError.of(self.part, "assign", what)
