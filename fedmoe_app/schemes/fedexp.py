"""FedExP: the mean change is extrapolated where the clients' changes point apart.

Jhunjhunwala et al., "FedExP: Speeding Up Federated Averaging via Extrapolation", ICLR 2023,
arXiv:2301.09604, eq. 4, with p_i = n_i/Σn in place of 1/M:

    θ ← θ + η·Δ̄,   Δ̄ = Σ p_i·Δ_i,   η = max(1, Σ p_i·‖Δ_i‖² / (2·(‖Δ̄‖² + ε)))

Decisions: η by block (a dense tensor, a gate, an expert) and at most ``cap``: the norms of experts
that few clients trained differ by orders of magnitude from those of the rest, and one η for all
would be the dense tensors'. ``cap = 1`` is FedAvg. The paper reports the mean of the last two
models; here it is the last. All of it are sums, so that replies do not wait.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedmoe_app.moe.shape import ModelShape
from fedmoe_app.moe.state import Tensors
from fedmoe_app.schemes.base import Scheme
from fedmoe_app.schemes.parts import Mean, Scaled, Server, Summed
from fedmoe_app.schemes.ranges import in_range
from fedmoe_app.schemes.views import DENSE, Block, Reply

BUILT_IN = {"fedexp": "FedExP"}

MEAN = Mean()


@dataclass(frozen=True)
class Extrapolated(Summed):
    """η·Δ̄ of a block.

    Attributes:
        eps: ε.
        cap: the largest η.
        mean: gives Δ̄.
        spared: dense tensors whose names begin so have η = 1; "" spares none.
    """

    eps: float = 1e-3
    cap: float = 2.0
    mean: Summed = MEAN
    spared: str = ""

    def add(self, reply: Reply, block: Block) -> Mapping[str, Scaled | float]:
        """Add what the mean adds, n_i·‖Δ_i‖² and n_i."""
        n = reply.num_examples
        own = {"eta.of": n, "eta.squares": n * reply.norm(block) ** 2}
        return {**self.mean.add(reply, block), **own}

    def result(self, sums: Mapping[str, Any], block: Block) -> Tensors:
        """Extrapolate the mean."""
        of_mean = {name: total for name, total in sums.items() if not name.startswith("eta.")}
        mean = self.mean.result(of_mean, block)
        if block.kind == DENSE and self.spared and block.key.startswith(self.spared):
            return mean
        length = sum(float(t.double().square().sum()) for t in mean.values())
        eta = sums["eta.squares"] / sums["eta.of"] / (2 * (length + self.eps))
        return {name: t.mul_(min(max(eta, 1.0), self.cap)) for name, t in mean.items()}


@dataclass(frozen=True)
class FedExP(Scheme):
    """FedAvg with extrapolation.

    Attributes:
        eps: ε.
        cap: the largest η.
    """

    eps: float = 1e-3
    cap: float = 2.0

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        in_range("fedexp", eps=(self.eps, 0, None), cap=(self.cap, 1, None))

    def server(self, model: ModelShape) -> Server:
        """Extrapolate every block."""
        rule = Extrapolated(self.eps, self.cap)
        return Server(dense=rule, gates=rule, experts=rule)
