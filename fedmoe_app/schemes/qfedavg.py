"""q-FedAvg: clients with a larger loss weigh more, so that accuracies come closer together.

Li et al., "Fair Resource Allocation in Federated Learning", ICLR 2020, arXiv:1905.10497, algorithm
2, with F_i the received model's mean loss on client i's training data and Λ the Lipschitz constant,
1/learning rate:

    h_i = q·F_i^(q−1)·Λ²·‖Δ_i‖² + Λ·F_i^q            ‖Δ_i‖ over all that the client trained
    θ ← θ + Σ_i Λ·F_i^q·Δ_i / Σ_i h_i

q = 0 is the mean with equal weights. Decision: F_i is measured, by one more pass over the training
data before training; the loss while training is that of another model.

Nobody can check F_i and ‖Δ_i‖², so the guard bounds them by the median client's: F_i^q and ‖Δ_i‖
from above, and F_i from below where a small one makes h_i large (q < 1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from fedmoe_app.config.schema import RunConfig
from fedmoe_app.moe.shape import ModelShape
from fedmoe_app.moe.state import Tensors
from fedmoe_app.schemes.base import Scheme
from fedmoe_app.schemes.parts import Field, OfReceived, OfUpdate, Scaled, Server, Summed
from fedmoe_app.schemes.ranges import in_range
from fedmoe_app.schemes.views import Block, Reply, Trained

if TYPE_CHECKING:
    from fedmoe_app.tasks.base import Score

BUILT_IN = {"qfedavg": "QFedAvg"}

_LEAST = 1e-10  # added to F, as the authors' code does: F^(q−1) at F = 0


@dataclass(frozen=True)
class ReceivedLoss(OfReceived):
    """F_i, which weighs a client by its power q."""

    q: float = 1.0

    def spec(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Field]:
        """One number in nats."""
        if not self.q:  # it weighs nothing
            return {"mean": Field((), 0, 1e4)}
        falls = 1 - self.q if self.q < 1 else 0.0
        return {"mean": Field((), 0, 1e4, mass="loss", rises=self.q, falls=falls)}

    def of_received(self, score: Score) -> Tensors:
        """Return the mean loss."""
        return {"mean": torch.tensor(score.mean_loss)}


@dataclass(frozen=True)
class SquaredChange(OfUpdate):
    """‖Δ_i‖² over all that the client trained."""

    def spec(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Field]:
        """One number, whose root is a length."""
        return {"all": Field((), 0, 1e20, mass="squared change", rises=0.5)}

    def of_update(self, done: Trained) -> Tensors:
        """Return it."""
        squares = [change.double().square().sum() for _, change in done.changes.named()]
        return {"all": torch.stack(squares).sum()}


LOSS, SQUARED = ReceivedLoss(), SquaredChange()


@dataclass(frozen=True)
class Fair(Summed):
    """Σ Λ·F^q·Δ / Σ h."""

    q: float = 1.0
    lipschitz: float = 1.0
    loss: ReceivedLoss = LOSS
    squared: SquaredChange = SQUARED

    def add(self, reply: Reply, block: Block) -> Mapping[str, Scaled | float]:
        """Add Λ·F^q·Δ_i, and h_i; nothing of a client that was not admitted."""
        mean, squared = reply.measured(self.loss, "mean"), reply.measured(self.squared, "all")
        if mean is None or squared is None:
            return {"of": 0.0}
        loss = float(mean) + _LEAST
        length = self.lipschitz**2 * float(squared)
        weight = self.lipschitz * loss**self.q
        change = reply.change(block) or {}
        sums: dict[str, Scaled | float] = {f"sum.{k}": Scaled(weight, t) for k, t in change.items()}
        return sums | {"of": self.q * loss ** (self.q - 1) * length + weight}

    def result(self, sums: Mapping[str, Any], block: Block) -> Tensors:
        """Divide."""
        return {k[4:]: t.div_(sums["of"]) for k, t in sums.items() if k.startswith("sum.")}


@dataclass(frozen=True)
class QFedAvg(Scheme):
    """q-FedAvg.

    Attributes:
        q: 0 is the equal mean; the larger, the more the clients with a large loss weigh.
        lipschitz: Λ; 0 takes 1/``train.learning-rate``.
    """

    q: float = 1.0
    lipschitz: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        in_range("qfedavg", q=(self.q, 0, 100), lipschitz=(self.lipschitz, 0, 1e12))

    @classmethod
    def from_config(cls, config: RunConfig) -> QFedAvg:
        """Take ``scheme-args``, and the learning rate."""
        found = cls(**config.scheme_kwargs)
        return cls(found.q, found.lipschitz or 1 / config.train.learning_rate)

    def server(self, model: ModelShape) -> Server:
        """Weigh by loss."""
        rule = Fair(self.q, self.lipschitz or 1.0, ReceivedLoss(self.q))
        return Server(dense=rule, gates=rule, experts=rule)
