"""Server optimisers: the round's change is a gradient for an optimiser of the server.

Reddi et al., "Adaptive Federated Optimization", ICLR 2021, arXiv:2003.00295, algorithm 2, with Δ
the mean of the clients' changes and by value:

    m ← β1·m + (1−β1)·Δ
    v ← β2·v + (1−β2)·Δ²                          FedAdam
    v ← v − (1−β2)·Δ²·sign(v − Δ²)                FedYogi
    θ ← θ + η·m/(√v + τ)                          v = τ² before the first round, m = 0

Hsu et al., "Measuring the Effects of Non-Identical Data Distribution", 2019, arXiv:1909.06335:

    m ← β·m + Δ,   θ ← θ + η·m                    FedAvgM; β = 0 and η = 1 is FedAvg

Decision: as printed, in every round for every tensor. An expert that nobody trained has Δ = 0, and
still moves by what is left of its momentum.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedmoe_app.moe.shape import ModelShape
from fedmoe_app.moe.state import Tensors
from fedmoe_app.schemes.base import Scheme
from fedmoe_app.schemes.parts import Server, Step
from fedmoe_app.schemes.ranges import decay, in_range
from fedmoe_app.schemes.views import Now

BUILT_IN = {"fedavgm": "FedAvgM", "fedadam": "FedAdam", "fedyogi": "FedYogi"}


@dataclass(frozen=True)
class Momentum(Step):
    """m ← β·m + Δ, θ ← θ + η·m."""

    lr: float = 1.0
    beta: float = 0.9

    def init(self, values: Mapping[str, Tensor]) -> Tensors:
        """Return m = 0."""
        return {key: torch.zeros_like(value) for key, value in values.items()}

    def step(self, now: Now, state: Mapping[str, Tensor]) -> tuple[Tensors, Tensors]:
        """Return η·m, and m."""
        m = {key: self.beta * state[key] + change for key, change in now.change.items()}
        return {key: self.lr * value for key, value in m.items()}, m


@dataclass(frozen=True)
class Adaptive(Step):
    """Adam or Yogi of the server."""

    lr: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3
    yogi: bool = False

    def init(self, values: Mapping[str, Tensor]) -> Tensors:
        """Return m = 0 and v = τ²."""
        m = {f"m.{key}": torch.zeros_like(value) for key, value in values.items()}
        return m | {f"v.{k}": torch.full_like(v, self.tau**2) for k, v in values.items()}

    def step(self, now: Now, state: Mapping[str, Tensor]) -> tuple[Tensors, Tensors]:
        """Return η·m/(√v + τ), and m and v."""
        change: Tensors = {}
        new: Tensors = {}
        for key, delta in now.change.items():
            m = self.beta1 * state[f"m.{key}"] + (1 - self.beta1) * delta
            v = self._second(state[f"v.{key}"], delta.square())
            new |= {f"m.{key}": m, f"v.{key}": v}
            change[key] = self.lr * m / (v.sqrt() + self.tau)
        return change, new

    def _second(self, v: Tensor, square: Tensor) -> Tensor:
        if self.yogi:
            return v - (1 - self.beta2) * square * (v - square).sign()
        return self.beta2 * v + (1 - self.beta2) * square


@dataclass(frozen=True)
class FedAvgM(Scheme):
    """FedAvg with server momentum.

    Attributes:
        lr: η.
        beta: β.
    """

    lr: float = 1.0
    beta: float = 0.9

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        in_range("fedavgm", lr=(self.lr, 0, None), beta=(self.beta, 0, 1))

    def server(self, model: ModelShape) -> Server:
        """Step by momentum."""
        return Server(steps=(Momentum(self.lr, self.beta),))


@dataclass(frozen=True)
class FedAdam(Scheme):
    """FedAvg whose change is a gradient for Adam.

    Attributes:
        lr, beta1, beta2, tau: η, β1, β2 and τ; β1 and β2 in [0, 1).
    """

    lr: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        name = type(self).__name__.lower()  # FedYogi's, too
        in_range(name, lr=(self.lr, 0, None), tau=(self.tau, 0, None))
        decay(name, beta1=self.beta1, beta2=self.beta2)

    def server(self, model: ModelShape) -> Server:
        """Step by Adam."""
        return Server(steps=(Adaptive(self.lr, self.beta1, self.beta2, self.tau),))


@dataclass(frozen=True)
class FedYogi(FedAdam):
    """FedAdam whose v grows only as fast as Δ² asks for."""

    def server(self, model: ModelShape) -> Server:
        """Step by Yogi."""
        return Server(steps=(Adaptive(self.lr, self.beta1, self.beta2, self.tau, yogi=True),))
