"""PFL-MoE: a personal copy beside the global model, and a gate that mixes their outputs.

Guo et al., "PFL-MoE: Personalized Federated Learning Based on Mixture of Experts", 2020,
arXiv:2012.15589. On client i, for input x:

    y = g_i(x)·f(x; θ_i) + (1 − g_i(x))·f(x; θ)

θ is the global copy, averaged as in FedAvg; θ_i and the mixing gate g_i never leave the client.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedmoe_app.config import RunConfig
from fedmoe_app.schemes.base import Scheme


@dataclass(frozen=True)
class PFLMoE(Scheme):
    """FedAvg of the global copies; what is personal is trained by the client's training loop."""

    joint: bool = False
    gate_learning_rate: float = 1e-2

    @classmethod
    def from_config(cls, config: RunConfig) -> PFLMoE:
        """Take the ``pflmoe`` table."""
        return cls(**config.pflmoe.model_dump())

    @property
    def keeps_state(self) -> bool:
        """The personal copy and the mixing gate."""
        return True

    @property
    def personal_copy(self) -> bool:
        """Each client has one."""
        return True
