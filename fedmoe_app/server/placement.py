"""Which experts each node holds, and what of the global state it is sent.

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
from fedmoe_app.server.checkpoint import HeldExperts
from fedmoe_app.server.clients import ClientRegistry
from fedmoe_app.server.transport import Reply, exchange
from fedmoe_app.wire.errors import InvalidUpdateError
from fedmoe_app.wire.numbers import decode_number
from fedmoe_app.wire.question import Question
from fedmoe_app.wire.update import RECORD, Choice, ClientUpdate, decode_choice

QUERY = "query.choose"


def held_arrays(arrays: ArrayRecord, held: Tensor | None) -> ArrayRecord:
    """Return what a node is sent of an encoded state: all but the experts that it does not hold.

    Args:
        arrays: of the whole state, by the keys of :mod:`fedmoe_app.moe.state`.
        held: ``[L, E]`` bool; None for no expert at all.
    """
    kept = {}
    for key, array in arrays.items():
        expert = expert_of(key)
        if expert is None or (held is not None and bool(held[expert])):
            kept[key] = array
    return ArrayRecord(kept)


@dataclass
class Holding:
    """The book of choices by client number.

    Attributes:
        shape: of the model.
        timeout: seconds that nodes have to choose.
    """

    shape: ModelShape
    timeout: float
    choices: dict[int, Choice] = field(default_factory=dict)

    def choice(self, registry: ClientRegistry, node: int) -> Choice | None:
        """Return a node's choice, None if it has to be asked."""
        client = registry.client(node)
        return None if client is None else self.choices.get(client)

    def book(self) -> dict[int, HeldExperts]:
        """Return the choices as a checkpoint holds them."""
        return {
            client: HeldExperts(choice.budget, choice.subsets())
            for client, choice in self.choices.items()
        }

    def restore(self, book: Mapping[int, HeldExperts]) -> None:
        """Take the choices of a checkpoint, so that their nodes are not asked again."""
        for client, entry in book.items():
            held = torch.zeros(self.shape.num_layers, self.shape.num_experts, dtype=torch.bool)
            for layer, experts in enumerate(entry.subsets):
                held[layer, experts] = True
            self.choices[client] = Choice(held, entry.budget)

    def content_for(self, registry: ClientRegistry, node: int, content: RecordDict) -> RecordDict:
        """Return a message's content with only the experts that a node holds."""
        choice = self.choice(registry, node)
        held = None if choice is None else choice.held
        own = RecordDict(dict(content))
        own["arrays"] = held_arrays(content.array_records["arrays"], held)
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
        choices: dict[int, tuple[int, Choice]] = {}  # node -> its client and choice
        replies: list[tuple[Reply, str | None]] = []
        for reply in exchange(grid, messages, self.timeout):
            why = reply.failure
            if why is None and reply.message is not None:
                try:
                    choices[reply.node_id] = self._decode(reply, question, registry)
                except InvalidUpdateError as error:
                    why = f"choice rejected: {error}"
            replies.append((reply, why))
        refused = {node: f"choice rejected: {why}" for node, why in registry.settle().items()}
        for node, (client, choice) in choices.items():
            if registry.client(node) == client:
                self.choices[client] = choice
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
            if update.choice is not None:
                self.choices[update.client] = update.choice
        return good, rejected

    def _reason_against(self, update: ClientUpdate) -> str | None:
        choice = self.choices.get(update.client)
        if choice is None:
            return "it comes under another client's number than the choice of its experts"
        strange = ((update.routing.trained > 0) & ~choice.held).nonzero().tolist()
        if not strange:
            return None
        layer, expert = strange[0]
        return f"it trained expert {expert} of MoE layer {layer}, which it does not hold"

    def _decode(
        self, reply: Reply, question: Question, registry: ClientRegistry
    ) -> tuple[int, Choice]:
        """Return the client's number and choice of a reply, when all of it is checked."""
        assert reply.message is not None
        content = reply.message.content
        client = decode_number(content, question, (RECORD,))
        size = (self.shape.num_layers, self.shape.num_experts)
        choice = decode_choice(content, size, self.shape.top_k)
        registry.claim(reply.node_id, client, worked=False)
        return client, choice
