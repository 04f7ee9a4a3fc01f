"""HFedMoE: resource-aware choice of experts, sparsity-aware averaging.

Fang et al., "HFedMoE: Resource-aware Heterogeneous Federated Learning with Mixture-of-Experts",
arXiv:2601.00583. Per MoE layer, with p(x, e) the softmax over all E experts:

    s(e)   = λ·mean_x p(x,e) + (1−λ)·max_x p(x,e)                   importance in a batch
    I(e)   = s(e) − β·mean_x[p(x,e)·log(p(x,e)/p̄(e))]               p̄(e) = mean_x p(x,e)
    A_i    = the C_i routed experts of largest I(e)                 (eq. 15); the rest are frozen
    S_i    = {e : u_i(e) ≥ τ}                                       u_i(e) = mean_x p(x,e), all data
    θ_e   ← θ_e + Σ_{i: e∈S_i} (n_i / Σ_{j: e∈S_j} n_j)·Δ_i,e
    α_i    = Σ_{e∈S_i} u_i(e)·s_i(e) / |∪_j S_j|                    gate = Σ_i α_i·gate_i

Decisions: experts are ranked by I(e), as eq. 15 says. α is normalised to sum 1, because the printed
form multiplies the gate by Σα in every round; ``normalise=False`` gives the printed form. Where
nobody qualifies all weights are 0: the expert or the gate stays as it was.

Shapes: T tokens, E experts, N clients. Statistics are worked out in float64, returned in float32.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedmoe_app.config.node import Budget, experts_in
from fedmoe_app.config.schema import RunConfig
from fedmoe_app.moe.routing import RoutingStats
from fedmoe_app.moe.shape import ModelShape
from fedmoe_app.moe.state import flatten
from fedmoe_app.schemes.base import Run, Scheme
from fedmoe_app.schemes.parts import (
    ByExamples,
    Client,
    InBatch,
    Mean,
    Once,
    Rescaling,
    RoundProbe,
    Select,
    Server,
    Weighted,
)
from fedmoe_app.schemes.sums import shares
from fedmoe_app.schemes.views import Block, BlockUpdates, LocalClient, Reply, RoundInfo


def expert_importance(probs: Tensor, lam: float) -> Tensor:
    """s(e) = λ·mean_x p(x,e) + (1−λ)·max_x p(x,e), ``[E]`` float32; zeros without tokens.

    Args:
        probs: p(x, e) of the tokens that are not padding, ``[T, E]``.
        lam: λ in [0, 1]; 1 counts only the mean, 0 only the peak.
    """
    if len(probs) == 0:
        return torch.zeros(probs.shape[1], device=probs.device)
    wide = probs.detach().double()
    return (lam * wide.mean(dim=0) + (1 - lam) * wide.amax(dim=0)).float()


def information_bottleneck(probs: Tensor, lam: float, beta: float) -> Tensor:
    """I(e) = s(e) − β·mean_x[p(x,e)·log(p(x,e)/p̄(e))], ``[E]`` float32; zeros without tokens.

    The mean is at least 0 (Jensen), in nats; a term with p(x, e) = 0 is 0.

    Args:
        probs: p(x, e) of the tokens that are not padding, ``[T, E]``.
        lam: λ of :func:`expert_importance`.
        beta: β ≥ 0, the price of an expert whose use varies from token to token.
    """
    return expert_importance(probs, lam) - (beta * _usage_information(probs)).float()


def select_experts(scores: Tensor, budget: int, routed: Tensor | None = None) -> Tensor:
    """Choose the experts to train: the ``budget`` best of those routed to (eq. 15).

    A budget below 1 chooses none, one above the number of routed experts all of these; a tie takes
    the lower index.

    Args:
        scores: I(e), ``[E]``.
        budget: C_i, experts of this layer that the client can train.
        routed: whether the batch routed a token to e, ``[E]`` bool; None means all.

    Returns:
        Whether e is chosen, ``[E]`` bool.
    """
    if routed is None:
        routed = torch.ones_like(scores, dtype=torch.bool)
    ranked = scores.masked_fill(~routed, -torch.inf).argsort(descending=True, stable=True)
    chosen = torch.zeros_like(routed)
    chosen[ranked[: max(budget, 0)]] = True
    return chosen & routed


def expert_weights(usage: Tensor, num_examples: Tensor, tau: float) -> Tensor:
    """n_i over the clients with u_i(e) ≥ τ, ``[N, E]`` float32.

    Args:
        usage: u_i(e), ``[N, E]``.
        num_examples: n_i, ``[N]``.
        tau: τ, the least mean probability that counts as usage; 0 keeps everybody.

    Returns:
        Columns that sum to 1, or to 0 where nobody qualifies.
    """
    return shares(_qualifies(usage, tau) * num_examples.unsqueeze(1)).float()


def gate_weights(usage: Tensor, importance: Tensor, tau: float, normalise: bool = True) -> Tensor:
    """α_i = Σ_{e∈S_i} u_i(e)·s_i(e) / |∪_j S_j|, ``[N]`` float32; zeros where nobody qualifies.

    Args:
        usage: u_i(e), ``[N, E]``.
        importance: s_i(e) over the client's data, ``[N, E]``.
        tau: τ of :func:`expert_weights`.
        normalise: divide by Σα, so that the weights sum to 1 (or 0); False is the printed form,
            which is meant for the gates themselves, not for their changes.
    """
    qualifies = _qualifies(usage, tau)
    preference = (qualifies * usage.double() * importance.double()).sum(dim=1)  # [N]
    if normalise:
        return shares(preference).float()
    union = int(qualifies.any(dim=0).sum())
    return (preference / max(union, 1)).float()


def _usage_information(probs: Tensor) -> Tensor:
    """mean_x[p·log(p/p̄)] = mean p·log p − p̄·log p̄, ``[E]`` float64; p = 0 adds 0."""
    wide = probs.detach().double()
    mean = wide.sum(dim=0) / max(len(wide), 1)  # [E]
    negative_entropy = -torch.special.entr(wide).sum(dim=0) / max(len(wide), 1)  # [E]
    return (negative_entropy + torch.special.entr(mean)).clamp_min(0)


def _qualifies(usage: Tensor, tau: float) -> Tensor:
    """Whether u_i(e) ≥ τ, ``[N, E]`` bool."""
    # In the type of usage: a float32 0.7, widened, would lie below the number 0.7.
    return usage >= tau


def importance_of(stats: RoutingStats, lam: float) -> Tensor:
    """Return s(e) over all tokens of a histogram, ``[L, E]``."""
    return lam * stats.prob + (1 - lam) * stats.peak


# -- on the client -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Budgets(Select):
    """C of a client: the node's own ``expert-budget``, else the one of its turn."""

    lam: float = 0.5
    beta: float = 0.1
    budgets: tuple[Budget, ...] = (2, 4, 8)

    def budget(self, own: LocalClient) -> int:
        """Return C."""
        if own.expert_budget is not None:
            return own.expert_budget
        turn = own.number % len(self.budgets)
        return experts_in(self.budgets[turn], own.shape.num_experts)


@dataclass(frozen=True)
class BottleneckInBatch(_Budgets, InBatch):
    """A_i of every batch (eq. 15)."""

    def choose(self, probs: Tensor, routed: Tensor, own: LocalClient) -> Tensor:
        """Return A_i of a batch and layer, ``[E]`` bool."""
        scores = information_bottleneck(probs, self.lam, self.beta)
        return select_experts(scores, self.budget(own), routed)


@dataclass(frozen=True)
class BottleneckOnce(_Budgets, Once):
    """A_i of a round, by the routing of local examples."""

    examples: int = 256

    def choose(self, own: LocalClient) -> Sequence[Collection[int]]:
        """Choose the round's experts by their scores over local examples."""
        stats = own.usage(self.examples)
        scores = importance_of(stats, self.lam) - self.beta * stats.kl  # [L, E]
        chosen = [
            select_experts(score, self.budget(own), count > 0)
            for score, count in zip(scores, stats.count, strict=True)
        ]
        return [mask.nonzero().squeeze(1).tolist() for mask in chosen]


# -- on the server -----------------------------------------------------------------------------


@dataclass(frozen=True)
class ByUsage(Mean):
    """Experts: n_i of the clients with u_i(e) ≥ τ."""

    over: str = "members"
    tau: float = 0.05

    def weight(self, reply: Reply, block: Block) -> float:
        """Return n_i or 0."""
        return reply.num_examples * float(_qualifies(reply.routing_of("prob", block), self.tau))


@dataclass(frozen=True)
class ByPreference(Weighted):
    """Gates: α, normalised to sum 1."""

    tau: float = 0.05
    lam: float = 0.5

    def weights(self, updates: BlockUpdates) -> Tensor:
        """Return α, ``[M]``."""
        return self._alpha(updates, normalise=True)

    def _alpha(self, updates: BlockUpdates, normalise: bool) -> Tensor:
        usage, peak = updates.routing_of("prob"), updates.routing_of("peak")  # [M, E]
        importance = self.lam * usage + (1 - self.lam) * peak
        return gate_weights(usage, importance, self.tau, normalise)


@dataclass(frozen=True)
class PrintedPreference(ByPreference, Rescaling):
    """Gates as printed: Σ_i α_i·gate_i, so that the gates themselves are scaled by Σα."""

    def weights(self, updates: BlockUpdates) -> Tensor:
        """Return α as printed, ``[M]``."""
        return self._alpha(updates, normalise=False)

    def combine(self, updates: BlockUpdates) -> Tensor:
        """Return Σ_i α_i·Δ_i + (Σα − 1)·gate; where nobody qualifies the gate stays."""
        weights = self.weights(updates)
        scale = float(weights.double().sum()) or 1.0
        gate = flatten(updates.values, updates.values)
        return updates.weighted_sum(weights) + (scale - 1) * gate

    def remedy(self) -> str:
        """Name the key."""
        return "hfedmoe.normalise = false scales the gates themselves; set it to true"


@dataclass(frozen=True)
class AlphaProbe(RoundProbe):
    """Tells α; n_i's weights where gates go by these."""

    of: str = "gates"
    rule: ByPreference | None = ByPreference()

    def of_round(self, info: RoundInfo) -> dict[str, Any]:
        """Return the gates' weights, ``[L, N]``."""
        return {"gate_weights": torch.stack([self._of(info, i) for i in range(_layers(info))])}

    def _of(self, info: RoundInfo, layer: int) -> Tensor:
        if self.rule is None:
            return info.num_examples / info.num_examples.sum()
        usage, peak = info.routing_of("prob", layer), info.routing_of("peak", layer)  # [N, E]
        importance = self.rule.lam * usage + (1 - self.rule.lam) * peak
        normalise = not isinstance(self.rule, Rescaling)
        return gate_weights(usage, importance, self.rule.tau, normalise)


@dataclass(frozen=True)
class SelectionRatio(RoundProbe):
    """Tells r(c), the share of all experts' importance that was trained."""

    of: str = "selection"
    lam: float = 0.5

    def of_round(self, info: RoundInfo) -> dict[str, Any]:
        """Return r, ``[L, N]`` in 0 to 1.

        An expert counts by the share of the client's steps in which it was trained.
        """
        ratios = []
        for stats, steps in zip(info.routing, info.num_steps, strict=True):
            scores = importance_of(stats, self.lam).double()  # [L, E]
            share = (stats.trained / steps.clamp_min(1)).clamp_max(1)
            total = scores.sum(dim=1).clamp_min(torch.finfo(torch.float64).tiny)
            ratios.append((scores * share).sum(dim=1) / total)
        return {"selection_ratio": torch.stack(ratios, dim=1)}


def _layers(info: RoundInfo) -> int:
    return len(info.routing[0].prob)


@dataclass(frozen=True)
class HFedMoE(Scheme):
    """HFedMoE; every component can be switched off.

    Attributes:
        selection: "batch" chooses experts anew in every step (the paper), "round" once a round by
            the routing of ``usage_examples`` local examples, "none" trains all.
        budgets: C of the clients whose node names none, taken in turn by client number.
        lam, beta, tau: λ, β and τ above.
        normalise: False scales the gates by Σα, as printed.
        usage_weights: False averages experts as FedAvg does.
        importance_gates: False averages gates by n_i.
    """

    selection: str = "batch"
    budgets: tuple[Budget, ...] = (2, 4, 8)
    usage_examples: int = 256
    lam: float = 0.5
    beta: float = 0.1
    tau: float = 0.05
    normalise: bool = True
    usage_weights: bool = True
    importance_gates: bool = True

    @classmethod
    def from_config(cls, config: RunConfig) -> HFedMoE:
        """Take the ``hfedmoe`` table."""
        return cls(**config.hfedmoe.model_dump() | {"budgets": config.hfedmoe.default_budgets})

    def check(self, run: Run) -> Sequence[str]:
        """Warn where τ leaves hardly any expert that qualifies: the mean usage is 1/E."""
        mean = 1 / run.model.num_experts
        if self.tau < mean or not (self.usage_weights or self.importance_gates):
            return ()
        return (
            f"hfedmoe.tau = {self.tau:g}: the mean probability of an expert is 1/E = {mean:g}, so "
            "that most experts qualify nowhere and stay as they are; choose a smaller one",
        )

    def client(self, model: ModelShape) -> Client:
        """Choose experts within the budget."""
        score = (self.lam, self.beta, self.budgets)
        if self.selection == "none":
            return Client()
        if self.selection == "round":
            return Client(select=BottleneckOnce(*score, self.usage_examples))
        return Client(select=BottleneckInBatch(*score))

    def server(self, model: ModelShape) -> Server:
        """Average by usage and by preference."""
        kind = ByPreference if self.normalise else PrintedPreference
        gates = kind(self.tau, self.lam) if self.importance_gates else None
        return Server(
            gates=gates or ByExamples(),
            experts=ByUsage(tau=self.tau) if self.usage_weights else Mean(),
            probes=(AlphaProbe(rule=gates), SelectionRatio(lam=self.lam)),
        )
