"""FedProx: FedAvg with a proximal term that keeps local models near the global one.

Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020, arXiv:1812.06127, eq. 2:

    loss_i(θ) + (μ/2)·‖θ − θ_global‖²

The norm runs over all tensors that the client trains. μ = 0 is FedAvg.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedmoe_app.config.schema import RunConfig
from fedmoe_app.moe.shape import ModelShape
from fedmoe_app.schemes.base import Scheme
from fedmoe_app.schemes.parts import Client, WeightTerm
from fedmoe_app.schemes.views import LocalStep


@dataclass(frozen=True)
class Proximal(WeightTerm):
    """(μ/2)·‖θ − θ_global‖² (eq. 2)."""

    mu: float = 0.01

    def loss(self, step: LocalStep) -> Tensor | None:
        """Return the term, a scalar."""
        squares = [
            (parameter - step.received[key]).float().square().sum()
            for key, parameter in step.parameters.items()
        ]
        return self.mu / 2 * torch.stack(squares).sum() if squares else None


@dataclass(frozen=True)
class FedProx(Scheme):
    """FedAvg plus (μ/2)·‖θ − θ_global‖² in the local loss."""

    proximal_mu: float = 0.01

    @classmethod
    def from_config(cls, config: RunConfig) -> FedProx:
        """Take ``fedprox.proximal-mu``."""
        return cls(proximal_mu=config.fedprox.proximal_mu)

    def client(self, model: ModelShape) -> Client:
        """Add the proximal term."""
        return Client(terms=(Proximal(self.proximal_mu),) if self.proximal_mu else ())
