"""ClientUpdate: what a client sends back after a round of local training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fedmoe_app.moe.routing import RoutingStats
from fedmoe_app.moe.state import ModelState
from fedmoe_app.wire.errors import InvalidUpdateError

if TYPE_CHECKING:
    from fedmoe_app.wire.choice import Choice


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
