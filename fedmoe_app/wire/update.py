"""ClientUpdate: what a client sends back after a round of local training."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from flwr.app import ArrayRecord, RecordDict
from torch import Tensor

from fedmoe_app.moe.routing import RoutingStats
from fedmoe_app.moe.state import ModelState
from fedmoe_app.wire.errors import InvalidUpdateError
from fedmoe_app.wire.packing import raw_array, read_raw

__all__ = ["ClientScore", "ClientUpdate", "InvalidUpdateError"]


@dataclass(frozen=True)
class ClientUpdate:
    """A sparse update: changes of the trained experts only, of the gates and dense tensors.

    Attributes:
        client: stable number of the client (its partition id, else its node id).
        num_examples: local training examples, > 0.
        num_partitions: into how many parts the client splits the data; 0 if it has its own file.
        changes: local − received, float32; experts only where ``routing.trained`` > 0.
        routing: the routing histogram of the round, ``[L, E]``.
        metrics: finite numbers by name; a metric that does not exist is absent.
        codec: in which it travelled.
        choice: which experts the node holds in its next round; None where nodes hold all.
        server_round: of the message that it answers; 0 before it was sent.
        statistics: what the scheme's parts measured, float32, by ``Statistic/name``.
    """

    client: int
    num_examples: int
    changes: ModelState
    routing: RoutingStats
    metrics: dict[str, float] = field(default_factory=dict)
    num_partitions: int = 0
    codec: str = "fp32"
    choice: Choice | None = None
    server_round: int = 0
    statistics: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class ClientScore:
    """A client's score of the global model on its own test examples, as sums over its items.

    Attributes:
        client: stable number of the client.
        loss: summed cross-entropy in nats.
        correct: items that were right.
        items: examples, or response tokens; 0 if the client has no test examples.
    """

    client: int
    loss: float
    correct: int
    items: int


RECORD = "choice"
_BUDGET_BYTES = 4


@dataclass(frozen=True)
class Choice:
    """The experts that a node holds in its next round.

    Attributes:
        held: ``[L, E]`` bool, at least top-k and at most ``budget`` true a layer.
        budget: experts a layer that the node can hold.
    """

    held: Tensor
    budget: int

    def subsets(self) -> list[list[int]]:
        """Return the held experts by layer."""
        return [row.nonzero().flatten().tolist() for row in self.held]


def encode_choice(choice: Choice) -> ArrayRecord:
    """Encode a choice for a reply."""
    held = choice.held.to(torch.uint8).numpy().tobytes()
    budget = choice.budget.to_bytes(_BUDGET_BYTES, "little")
    return ArrayRecord({"held": raw_array(held), "budget": raw_array(budget)})


def decode_choice(content: RecordDict, shape: tuple[int, int], top_k: int) -> Choice:
    """Decode and validate the choice in a reply.

    Args:
        content: of the reply.
        shape: L layers, E experts.
        top_k: experts a token uses, which every layer must have.

    Raises:
        InvalidUpdateError: it is missing, of another shape, or has too few or too many experts.
    """
    record = content.array_records.get(RECORD)
    if record is None or set(record) != {"held", "budget"}:
        raise InvalidUpdateError("choice: which experts the node will hold is missing")
    flat = _bytes(record, "held", shape[0] * shape[1])
    held = torch.frombuffer(bytearray(flat), dtype=torch.uint8).view(shape)  # [L, E]
    budget = int.from_bytes(_bytes(record, "budget", _BUDGET_BYTES), "little")
    if bool((held > 1).any()):
        raise InvalidUpdateError(f"choice.held: {int(held.max())} is neither 0 nor 1")
    if not top_k <= budget <= shape[1]:
        raise InvalidUpdateError(f"choice.budget = {budget}: must be {top_k} to {shape[1]} experts")
    counts = held.sum(dim=1)  # [L]
    for layer, count in enumerate(counts.tolist()):
        if not top_k <= count <= budget:
            raise InvalidUpdateError(
                f"choice.held: {count} experts of MoE layer {layer}; a token uses {top_k}, the "
                f"node's budget is {budget}"
            )
    return Choice(held.bool(), budget)


def _bytes(record: ArrayRecord, key: str, size: int) -> memoryview:
    data = read_raw(record[key], f"choice.{key}", size)
    if len(data) != size:
        raise InvalidUpdateError(f"choice.{key}: {len(data)} bytes, expected {size}", "size")
    return data
