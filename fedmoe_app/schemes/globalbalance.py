"""Load balancing over all clients: by a term of the loss, or by the routers' biases.

With the round's counts, F_e = Σ_i count_i(e) / Σ_i Σ_e' count_i(e') by layer, and P_e the mean over
the batch of p(x, e):

    loss_i = L + λ·mean over layers of E·Σ_e F_e·P_e          F of the round before; gradient by P
    b_e ← b_e + u·sign(1/E − F_e)                             after every round, on the server

Balancing within a batch, as transformers' own term does, forces a client of two classes to spread
its tokens over all experts. Frequencies over all clients do not: they only ask that all experts be
used by somebody. Qiu et al., "Demons in the Detail: On Implementing Load Balancing Loss for
Training Specialized Mixture-of-Expert Models", ACL 2025, arXiv:2501.11873: F over the global
batch. Wang et al., "Auxiliary-Loss-Free Load Balancing Strategy for Mixture-of-Experts",
arXiv:2408.15664: b.

Decisions: F comes from the histograms that travel anyway, summed over the clients that answered;
the first round has none, and no term. λ = u = 0 is FedAvg. Wang et al. add b for the choice of
experts only; here it is the router's own bias, which weighs the chosen ones, too: a bias for the
choice alone is no parameter in most families of transformers and would be lost in an export. So
u > 0 needs a router that has a bias, and trains it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedmoe_app.config.errors import ConfigError
from fedmoe_app.moe.shape import ModelShape
from fedmoe_app.moe.state import Tensors, gate_of
from fedmoe_app.schemes.base import Run, Scheme
from fedmoe_app.schemes.parts import Client, RouterTerm, Server, Signal, Step, Telling
from fedmoe_app.schemes.ranges import in_range
from fedmoe_app.schemes.views import LocalStep, Now, RoundInfo

BUILT_IN = {"globalbalance": "GlobalBalancing"}

SHARES = Signal("global-shares")


def global_shares(info: RoundInfo) -> Tensor:
    """Return F, ``[L, E]`` float32; uniform in a layer that saw no token."""
    count = torch.stack([stats.count for stats in info.routing]).sum(dim=0).double()  # [L, E]
    total = count.sum(dim=1, keepdim=True)
    return torch.where(total > 0, count / total.clamp_min(1), 1 / count.shape[1]).float()


@dataclass(frozen=True)
class TellShares(Telling):
    """F, told to all."""

    shares: Signal = SHARES

    def tell(self, now: Now, state: Mapping[str, Tensor]) -> dict[Signal, Tensor | Tensors]:
        """Return it."""
        return {self.shares: global_shares(now.info)}


@dataclass(frozen=True)
class GlobalBalance(RouterTerm):
    """λ·mean over layers of E·Σ_e F_e·P_e; nothing in the first round."""

    lam: float = 0.01
    shares: Signal = SHARES

    def loss(self, step: LocalStep) -> Tensor | None:
        """Return the term, a scalar."""
        if self.shares not in step.told:
            return None
        layers = zip(step.router_probs, step.told[self.shares], strict=True)
        terms = [
            len(share) * (share * probs.mean(dim=0)).sum() for probs, share in layers if len(probs)
        ]
        return self.lam * torch.stack(terms).mean() if terms else None


@dataclass(frozen=True)
class MoveBiases(Step):
    """b_e ← b_e + u·sign(1/E − F_e), beside what clients changed of it."""

    speed: float

    def step(self, now: Now, state: Mapping[str, Tensor]) -> tuple[Tensors, Tensors]:
        """Return the change with that of the routers' biases moved."""
        shares, change = global_shares(now.info), dict(now.change)
        for key, moved in now.change.items():
            layer = gate_of(key)
            if layer is not None and moved.dim() == 1:
                away = 1 / shares.shape[1] - shares[layer]  # [E]
                change[key] = moved + self.speed * away.sign()
        return change, {}


@dataclass(frozen=True)
class GlobalBalancing(Scheme):
    """FedAvg with experts balanced over all clients.

    Attributes:
        lam: λ; 0 leaves the term out.
        bias_speed: u; 0 leaves the biases to the clients.
    """

    lam: float = 0.01
    bias_speed: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        in_range("globalbalance", lam=(self.lam, 0, 1e6), bias_speed=(self.bias_speed, 0, 1e3))

    def check(self, run: Run) -> Sequence[str]:
        """Refuse routers that do not train, or have no bias to move."""
        if (self.lam or self.bias_speed) and not run.model.gates_trained:
            raise ConfigError(
                "globalbalance: the routers are frozen, nothing can balance them; set "
                "model.gates = true"
            )
        if self.bias_speed and not run.model.gate_bias:
            raise ConfigError(
                f"globalbalance: bias_speed = {self.bias_speed}: the routers of this model have no "
                "bias that is trained; set bias_speed = 0 and balance by lam"
            )
        return ()

    def client(self, model: ModelShape) -> Client:
        """Add the term."""
        return Client(terms=(GlobalBalance(self.lam),) if self.lam else ())

    def server(self, model: ModelShape) -> Server:
        """Tell F, move the biases."""
        steps: tuple[Step | Telling, ...] = (TellShares(),) if self.lam else ()
        return Server(steps=(*steps, MoveBiases(self.bias_speed)) if self.bias_speed else steps)
