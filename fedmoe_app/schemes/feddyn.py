"""FedDyn: a dynamic regulariser that lets local optima agree with the global one.

Acar et al., "Federated Learning Based on Dynamic Regularization", ICLR 2021, arXiv:2111.04263,
algorithm 1, with S the clients of the round, P all clients:

    client i:   loss(θ) − ⟨g_i, θ⟩ + (α/2)·‖θ − θ_received‖²,   then   g_i ← g_i − α·Δ_i
    server:     h ← h − (α/P)·Σ_{i∈S} Δ_i,   θ ← mean of S − h/α

Decisions: an expert that the client did not train keeps its g_i, and counts as unchanged in the
mean of S. Only what FedAvg sends travels. A client that lost its g_i starts from 0 again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedmoe_app.config.errors import ConfigError
from fedmoe_app.moe.shape import ModelShape
from fedmoe_app.moe.state import Tensors
from fedmoe_app.schemes.base import Run, Scheme
from fedmoe_app.schemes.equal import Equal
from fedmoe_app.schemes.parts import Client, Keeps, Server, Step, WeightTerm
from fedmoe_app.schemes.ranges import in_range, whole
from fedmoe_app.schemes.views import LocalStep, Now, Trained

BUILT_IN = {"feddyn": "FedDyn"}

_ZERO = torch.zeros(())


@dataclass(frozen=True)
class Dynamic(WeightTerm, Keeps):
    """The client's regulariser, and g_i."""

    alpha: float = 0.1

    def loss(self, step: LocalStep) -> Tensor | None:
        """Return (α/2)·‖θ − θ_received‖² − ⟨g_i, θ⟩."""
        parts = []
        for key, parameter in step.parameters.items():
            away = (parameter - step.received[key]).float().square().sum()
            parts.append(self.alpha / 2 * away)
            if key in step.kept:
                parts.append(-(step.kept[key].to(parameter) * parameter).sum())
        return torch.stack(parts).sum() if parts else None

    def keep(self, done: Trained) -> Tensors:
        """Keep g_i − α·Δ_i; g_i where nothing was trained."""
        moved = {
            key: done.kept.get(key, _ZERO) - self.alpha * change
            for key, change in done.changes.named()
        }
        return {**done.kept, **moved}


@dataclass(frozen=True)
class Dual(Step):
    """h, and the global model that it moves."""

    alpha: float
    population: int

    def init(self, values: Mapping[str, Tensor]) -> Tensors:
        """Return h = 0."""
        return {key: torch.zeros_like(value) for key, value in values.items()}

    def step(self, now: Now, state: Mapping[str, Tensor]) -> tuple[Tensors, Tensors]:
        """Return Δ̄ − h/α, and h; Δ̄ is the mean over S."""
        share = self.alpha * now.num_clients / self.population
        h = {key: state[key] - share * change for key, change in now.change.items()}
        return {key: change - h[key] / self.alpha for key, change in now.change.items()}, h


@dataclass(frozen=True)
class FedDyn(Scheme):
    """FedDyn.

    Attributes:
        alpha: α.
        population: P, the number of all clients, also of those that are not asked in a round.
    """

    alpha: float = 0.1
    population: int = 10

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        whole("feddyn", population=self.population)
        in_range("feddyn", alpha=(self.alpha, 0, None), population=(self.population, 1, None))

    def check(self, run: Run) -> Sequence[str]:
        """Refuse discounted changes: h and the clients' g_i would no longer agree."""
        if run.buffered:
            raise ConfigError(
                'rounds = "buffered": feddyn\'s server and clients add up the same changes, which '
                'older ones, being discounted, are not; choose rounds = "sync"'
            )
        return ()

    def client(self, model: ModelShape) -> Client:
        """Regularise."""
        return Client(terms=(Dynamic(self.alpha),))

    def server(self, model: ModelShape) -> Server:
        """Average all alike, and move by h."""
        return Server(Equal(), Equal(), Equal(), steps=(Dual(self.alpha, self.population),))
