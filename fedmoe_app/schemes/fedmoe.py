"""FedMoE: each client trains the experts it uses most; an expert is averaged over those clients.

Mei et al., "FedMoE: Personalized Federated Learning via Heterogeneous Mixture of Experts",
arXiv:2408.11304, in the form that the alignment papers use as their baseline:

    E_i = the C experts a layer to which client i's data routes most tokens
    θ_e ← θ_e + Σ_{i∈S_e} (n_i / Σ_{j∈S_e} n_j)·Δ_i,e        S_e = {i : e ∈ E_i, i trained e}

Gates and dense tensors are averaged by n_i over all clients. With C = E it differs from FedAvg
only in an expert that some client's data never reached. The experts outside E_i take part in the
client's forward pass, frozen.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch

from fedmoe_app.config.errors import ConfigError
from fedmoe_app.config.schema import RunConfig
from fedmoe_app.moe.shape import ModelShape
from fedmoe_app.schemes.base import Run, Scheme
from fedmoe_app.schemes.parts import Client, Mean, Once, Server
from fedmoe_app.schemes.views import LocalClient


@dataclass(frozen=True)
class MostUsed(Once):
    """E_i: the C experts of each layer with the most local tokens.

    Attributes:
        experts: C.
        examples: local examples that are counted.
    """

    experts: int = 4
    examples: int = 256

    def budget(self, own: LocalClient) -> int:
        """Return C, or the node's own ``expert-budget`` where that is smaller."""
        limit = own.expert_budget
        return self.experts if limit is None else min(limit, self.experts)

    def choose(self, own: LocalClient) -> Sequence[Collection[int]]:
        """Choose the C experts with the most tokens in each layer; a tie takes the lower index."""
        count = own.usage(self.examples).count  # [L, E]
        ranked = torch.argsort(count, dim=1, descending=True, stable=True)
        return [sorted(row[: self.budget(own)].tolist()) for row in ranked]


@dataclass(frozen=True)
class FedMoE(Scheme):
    """Per-expert averaging over the clients that trained the expert."""

    experts_per_client: int = 4
    usage_examples: int = 256

    @classmethod
    def from_config(cls, config: RunConfig) -> FedMoE:
        """Take ``fedmoe.experts-per-client`` and ``fedmoe.usage-examples``."""
        return cls(config.fedmoe.experts_per_client, config.fedmoe.usage_examples)

    def check(self, run: Run) -> Sequence[str]:
        """Refuse more experts than a layer has."""
        most = run.model.num_experts
        if not 1 <= self.experts_per_client <= most:
            raise ConfigError(
                f"fedmoe.experts-per-client = {self.experts_per_client}: the model has "
                f"{most} experts a layer; choose 1 to {most}"
            )
        return ()

    def client(self, model: ModelShape) -> Client:
        """Train the most used experts."""
        return Client(select=MostUsed(self.experts_per_client, self.usage_examples))

    def server(self, model: ModelShape) -> Server:
        """Average an expert over those that trained it."""
        return Server(experts=Mean("members"))
