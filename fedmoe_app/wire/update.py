"""ClientUpdate: what a client sends back after a round of local training."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from flwr.app import ArrayRecord, RecordDict
from torch import Tensor

from fedmoe_app.moe.routing import RoutingStats
from fedmoe_app.moe.state import ModelState
from fedmoe_app.wire.errors import InvalidUpdateError
from fedmoe_app.wire.metrics import EXPERT_BUDGET
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
        placement: which experts the node has in its next round; None where nodes have all.
        server_round: of the message that it answers; 0 before it was sent.
        statistics: what the scheme's parts measured, float32, by ``Statistic/name``.
        counts_as: examples that the guard lets it count for; 0 for all that it has.
    """

    client: int
    num_examples: int
    changes: ModelState
    routing: RoutingStats
    metrics: dict[str, float] = field(default_factory=dict)
    num_partitions: int = 0
    codec: str = "fp32"
    placement: Placement | None = None
    server_round: int = 0
    statistics: dict[str, Tensor] = field(default_factory=dict)
    counts_as: int = 0

    @property
    def counted(self) -> int:
        """The examples that it is weighed by."""
        return self.counts_as or self.num_examples

    @property
    def expert_budget(self) -> int:
        """Experts a layer that the client can train; 0 where it said none."""
        return int(self.metrics.get(EXPERT_BUDGET, 0))


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


RECORD = "choice"  # its arrays are held and budget; these names are the protocol's
_BUDGET_BYTES = 4


@dataclass(frozen=True)
class Placement:
    """Which experts a node has in its next round: those that its scheme chose.

    Attributes:
        experts: ``[L, E]`` bool, at least top-k and at most ``budget`` true a layer.
        budget: experts a layer that the node can have.
    """

    experts: Tensor
    budget: int

    def by_layer(self) -> list[list[int]]:
        """Return the indices of the experts, a list a layer."""
        return [row.nonzero().flatten().tolist() for row in self.experts]


def encode_placement(placement: Placement) -> ArrayRecord:
    """Encode a placement for a reply."""
    experts = placement.experts.to(torch.uint8).numpy().tobytes()
    budget = placement.budget.to_bytes(_BUDGET_BYTES, "little")
    return ArrayRecord({"held": raw_array(experts), "budget": raw_array(budget)})


def decode_placement(content: RecordDict, shape: tuple[int, int], top_k: int) -> Placement:
    """Decode and validate the placement in a reply.

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
    experts = torch.frombuffer(bytearray(flat), dtype=torch.uint8).view(shape)  # [L, E]
    budget = int.from_bytes(_bytes(record, "budget", _BUDGET_BYTES), "little")
    if bool((experts > 1).any()):
        raise InvalidUpdateError(f"choice.held: {int(experts.max())} is neither 0 nor 1")
    if not top_k <= budget <= shape[1]:
        raise InvalidUpdateError(f"choice.budget = {budget}: must be {top_k} to {shape[1]} experts")
    counts = experts.sum(dim=1)  # [L]
    for layer, count in enumerate(counts.tolist()):
        if not top_k <= count <= budget:
            raise InvalidUpdateError(
                f"choice.held: {count} experts of MoE layer {layer}; a token uses {top_k}, the "
                f"node's budget is {budget}"
            )
    return Placement(experts.bool(), budget)


def _bytes(record: ArrayRecord, key: str, size: int) -> memoryview:
    data = read_raw(record[key], f"choice.{key}", size)
    if len(data) != size:
        raise InvalidUpdateError(f"choice.{key}: {len(data)} bytes, expected {size}", "size")
    return data
