"""FLAME's activation-aware averaging: an expert follows the clients whose tokens it serves.

Le et al., "FLAME: Towards Federated Fine-Tuning Large Language Models Through Adaptive SMoE",
arXiv:2506.16600, with a_i(e) the share of client i's tokens that go to expert e, and t a
temperature:

    Δ_e = Σ_{i∈S_e} n_i·a_i(e)^t·Δ_i,e / Σ_{i∈S_e} n_i·a_i(e)^t
    a_i(e) = count_i(e) / tokens_i

t = 0 is the mean by examples over the clients that trained the expert; with equal use of an expert
by all of them every t is.

Decisions: the averaging alone. That clients activate different numbers of experts, and the rescaler
that makes up for it, are not here: K belongs to the model, and what is averaged is one model. In
the paper the experts' LoRA matrices are averaged so; here whatever is trained of an expert. The
form of the weights is our reading: no public code was found to check it against. Sums of single
clients' numbers: replies do not wait.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedmoe_app.moe.shape import ModelShape
from fedmoe_app.schemes.base import Scheme
from fedmoe_app.schemes.parts import Mean, Server
from fedmoe_app.schemes.ranges import in_range
from fedmoe_app.schemes.views import Block, Reply

BUILT_IN = {"flame": "Flame"}


@dataclass(frozen=True)
class ByActivation(Mean):
    """n_i·a_i(e)^t over the clients that trained the expert."""

    over: str = "members"
    temperature: float = 1.0

    def weight(self, reply: Reply, block: Block) -> float:
        """Return it; 0 for an expert without tokens, unless t = 0."""
        layer, _ = block.key
        tokens = max(float(reply.routing.tokens[layer]), 1.0)
        share = float(reply.routing_of("count", block)) / tokens
        return float(reply.num_examples * share**self.temperature)


@dataclass(frozen=True)
class Flame(Scheme):
    """FedAvg with experts averaged by their use.

    Attributes:
        temperature: t; 0 is the mean over the clients that trained an expert.
    """

    temperature: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        in_range("flame", temperature=(self.temperature, 0, 100))

    def server(self, model: ModelShape) -> Server:
        """Weigh experts."""
        return Server(experts=ByActivation(temperature=self.temperature))
