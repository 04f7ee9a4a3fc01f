"""Which experts each node has, and what of the global state it is sent.

A node with a budget gets dense tensors, gates and the experts that it chose itself. Before its
first round it is asked (``query.choose``, with dense tensors and gates only); afterwards every
training reply brings the choice for the next round. The server's book is the only one: a node that
is not in it, or has a new node id, is asked again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from flwr.app import ArrayRecord, Message, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from fedmoe_app.moe.shape import ModelShape
from fedmoe_app.moe.state import expert_of
from fedmoe_app.server.checkpoint import StoredPlacement
from fedmoe_app.server.clients import ClientRegistry
from fedmoe_app.server.transport import Reply, exchange
from fedmoe_app.wire.errors import InvalidUpdateError
from fedmoe_app.wire.numbers import decode_number
from fedmoe_app.wire.question import Question
from fedmoe_app.wire.update import RECORD, ClientUpdate, Placement, decode_placement

QUERY = "query.choose"


def placed_arrays(arrays: ArrayRecord, experts: Tensor | None) -> ArrayRecord:
    """Return what a node is sent of an encoded state: all but the experts that it has not.

    Args:
        arrays: of the whole state, by the keys of :mod:`fedmoe_app.moe.state`.
        experts: ``[L, E]`` bool; None for no expert at all.
    """
    sent = {}
    for key, array in arrays.items():
        expert = expert_of(key)
        if expert is None or (experts is not None and bool(experts[expert])):
            sent[key] = array
    return ArrayRecord(sent)


@dataclass
class Placements:
    """The book of placements by client number.

    Attributes:
        shape: of the model.
        timeout: seconds that nodes have to choose.
    """

    shape: ModelShape
    timeout: float
    by_client: dict[int, Placement] = field(default_factory=dict)

    def of(self, registry: ClientRegistry, node: int) -> Placement | None:
        """Return a node's placement, None if it has to be asked."""
        client = registry.client(node)
        return None if client is None else self.by_client.get(client)

    def book(self) -> dict[int, StoredPlacement]:
        """Return the placements as a checkpoint has them."""
        return {
            client: StoredPlacement(placement.budget, placement.by_layer())
            for client, placement in self.by_client.items()
        }

    def restore(self, book: Mapping[int, StoredPlacement]) -> None:
        """Take the placements of a checkpoint, so that their nodes are not asked again."""
        for client, entry in book.items():
            placed = torch.zeros(self.shape.num_layers, self.shape.num_experts, dtype=torch.bool)
            for layer, experts in enumerate(entry.subsets):
                placed[layer, experts] = True
            self.by_client[client] = Placement(placed, entry.budget)

    def content_for(self, registry: ClientRegistry, node: int, content: RecordDict) -> RecordDict:
        """Return a message's content with only the experts that a node has."""
        placement = self.of(registry, node)
        experts = None if placement is None else placement.experts
        own = RecordDict(dict(content))
        own["arrays"] = placed_arrays(content.array_records["arrays"], experts)
        return own

    def ask(
        self, grid: Grid, nodes: Sequence[int], content: RecordDict, registry: ClientRegistry
    ) -> list[tuple[Reply, str | None]]:
        """Ask nodes to choose.

        Returns:
            each reply with the reason why it cannot be used, or None.
        """
        messages = [Message(content, node, QUERY) for node in nodes]
        question = Question.of(content)
        chosen: dict[int, tuple[int, Placement]] = {}  # node -> its client and placement
        replies: list[tuple[Reply, str | None]] = []
        for reply in exchange(grid, messages, self.timeout):
            why = reply.failure
            if why is None and reply.message is not None:
                try:
                    chosen[reply.node_id] = self._decode(reply, question, registry)
                except InvalidUpdateError as error:
                    why = f"choice rejected: {error}"
            replies.append((reply, why))
        refused = {node: f"choice rejected: {why}" for node, why in registry.settle().items()}
        for node, (client, placement) in chosen.items():
            if registry.client(node) == client:
                self.by_client[client] = placement
        return [(reply, why or refused.get(reply.node_id)) for reply, why in replies]

    def accept(self, updates: Sequence[ClientUpdate]) -> tuple[list[ClientUpdate], dict[str, str]]:
        """Enter what training replies brought for the next round.

        Returns:
            the updates that may be aggregated, and the reasons why others may not, by client: those
            that trained experts which the client was not sent.
        """
        good, rejected = [], {}
        for update in updates:
            reason = self._reason_against(update)
            if reason is not None:
                rejected[f"client {update.client}"] = f"reply rejected: {reason}"
                continue
            good.append(update)
            if update.placement is not None:
                self.by_client[update.client] = update.placement
        return good, rejected

    def _reason_against(self, update: ClientUpdate) -> str | None:
        placement = self.by_client.get(update.client)
        if placement is None:
            return "it comes under another client's number than the choice of its experts"
        strange = ((update.routing.trained > 0) & ~placement.experts).nonzero().tolist()
        if not strange:
            return None
        layer, expert = strange[0]
        return f"it trained expert {expert} of MoE layer {layer}, which it does not hold"

    def _decode(
        self, reply: Reply, question: Question, registry: ClientRegistry
    ) -> tuple[int, Placement]:
        """Return the client's number and placement of a reply, when all of it is checked."""
        assert reply.message is not None
        content = reply.message.content
        client = decode_number(content, question, (RECORD,))
        size = (self.shape.num_layers, self.shape.num_experts)
        placement = decode_placement(content, size, self.shape.top_k)
        registry.claim(reply.node_id, client, worked=False)
        return client, placement
