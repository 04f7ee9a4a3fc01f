"""PFL-MoE: a personal copy beside the global model, and a gate that mixes their outputs.

Guo et al., "PFL-MoE: Personalized Federated Learning Based on Mixture of Experts", 2020,
arXiv:2012.15589. On client i, for input x:

    y = g_i(x)·f(x; θ_i) + (1 − g_i(x))·f(x; θ)

θ is the global copy, averaged as in FedAvg; θ_i and the mixing gate g_i never leave the client,
which trains them in every round that it takes part in, on the loss of the mixed output:
``fedmoe_app/client/personal.py``.

Against the authors' code: there, θ_i is the last layers only and trains on a loss of its own, after
federated training has ended, and the gate then trains alone on a quarter of the data set aside.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedmoe_app.config.schema import RunConfig
from fedmoe_app.moe.shape import ModelShape
from fedmoe_app.schemes.base import Scheme
from fedmoe_app.schemes.parts import Client, PersonalCopy


@dataclass(frozen=True)
class PFLMoE(Scheme):
    """FedAvg of the global copies; what is personal is trained on the client.

    Attributes:
        joint: the mixed output trains the global copy, too. Otherwise it trains on its own loss,
            and the global model is bit for bit that of FedAvg.
        gate_learning_rate: of the mixing gate; θ_i has that of the global copy.
    """

    joint: bool = False
    gate_learning_rate: float = 1e-2

    @classmethod
    def from_config(cls, config: RunConfig) -> PFLMoE:
        """Take the ``pflmoe`` table."""
        return cls(**config.pflmoe.model_dump())

    def client(self, model: ModelShape) -> Client:
        """Keep a personal copy."""
        return Client(personal=PersonalCopy(self.joint, self.gate_learning_rate))
