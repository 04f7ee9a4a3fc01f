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
from fedmoe_app.schemes.base import LocalClient, RoundInfo, Scheme
from fedmoe_app.schemes.sums import shares


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


def usage_shares(usage: Tensor, num_examples: Tensor, tau: float) -> Tensor:
    """n_i of the clients with u_i(e) ≥ τ, 0 of the others, ``[N, E]``.

    Args:
        usage: u_i(e), ``[N, E]``.
        num_examples: n_i, ``[N]``.
        tau: τ, the least mean probability that counts as usage; 0 keeps everybody.
    """
    return _qualifies(usage, tau) * num_examples.unsqueeze(1)


def expert_weights(usage: Tensor, num_examples: Tensor, tau: float) -> Tensor:
    """n_i over the clients with u_i(e) ≥ τ, ``[N, E]`` float32.

    Args:
        usage: u_i(e), ``[N, E]``.
        num_examples: n_i, ``[N]``.
        tau: τ, the least mean probability that counts as usage; 0 keeps everybody.

    Returns:
        Columns that sum to 1, or to 0 where nobody qualifies.
    """
    return shares(usage_shares(usage, num_examples, tau)).float()


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

    def advice(self, shape: ModelShape) -> str:
        """Warn where τ leaves hardly any expert that qualifies: the mean usage is 1/E."""
        if self.tau < 1 / shape.num_experts or not (self.usage_weights or self.importance_gates):
            return ""
        return (
            f"hfedmoe.tau = {self.tau:g}: the mean probability of an expert is 1/E = "
            f"{1 / shape.num_experts:g}, so that most experts qualify nowhere and stay as they "
            "are; choose a smaller one"
        )

    # -- on the client -------------------------------------------------------------------------

    def needs_client_number(self, has_budget: bool) -> bool:
        """Whether the budget goes by turn."""
        return self.selection != "none" and not has_budget

    def budget(self, client: LocalClient) -> int:
        """Return C: the node's own ``expert-budget``, else the one of its turn."""
        if client.expert_budget is not None:
            return client.expert_budget
        turn = client.client % len(self.budgets)
        return experts_in(self.budgets[turn], client.shape.num_experts)

    def choose_experts(self, client: LocalClient) -> Sequence[Collection[int]] | None:
        """Choose the round's experts by their scores over local examples, for "round"."""
        if self.selection != "round":
            return None
        stats = client.usage(self.usage_examples)
        scores = self._importance(stats) - self.beta * stats.kl  # [L, E]
        chosen = [
            select_experts(score, self.budget(client), count > 0)
            for score, count in zip(scores, stats.count, strict=True)
        ]
        return [mask.nonzero().squeeze(1).tolist() for mask in chosen]

    @property
    def chooses_per_round(self) -> bool:
        """Whether experts are chosen once a round."""
        return self.selection == "round"

    @property
    def selects_per_batch(self) -> bool:
        """Whether experts are chosen in every step."""
        return self.selection == "batch"

    def select_in_batch(self, probs: Tensor, routed: Tensor, client: LocalClient) -> Tensor:
        """Return A_i of a batch and layer, ``[E]`` bool (eq. 15)."""
        scores = information_bottleneck(probs, self.lam, self.beta)
        return select_experts(scores, self.budget(client), routed)

    # -- on the server -------------------------------------------------------------------------

    @property
    def stale_fault(self) -> str:
        """Gates that are scaled as a whole are more than the sum of changes."""
        if self.importance_gates and not self.normalise:
            return "hfedmoe.normalise = false scales the gates themselves; set it to true"
        return ""

    def expert_shares(self, info: RoundInfo, layer: int) -> Tensor:
        """Return n_i of the clients with u_i(e) ≥ τ."""
        if not self.usage_weights:
            return super().expert_shares(info, layer)
        return usage_shares(info.routing_of("prob", layer), info.num_examples, self.tau)

    @property
    def absent_count(self) -> bool:
        """Not where usage decides."""
        return not self.usage_weights

    def gate_weights(self, info: RoundInfo, layer: int) -> Tensor:
        """Return α, or n_i's weights, ``[N]``."""
        if not self.importance_gates:
            return super().gate_weights(info, layer)
        usage = info.routing_of("prob", layer)  # [N, E]
        scores = torch.stack([self._importance(stats)[layer] for stats in info.routing])  # [N, E]
        return gate_weights(usage, scores, self.tau, self.normalise)

    def gate_scale(self, info: RoundInfo, layer: int) -> float:
        """Return Σα: the gates themselves are added up, not only their changes.

        It is 1 when α is normalised. Where nobody qualifies the gate stays as it was.
        """
        if self.normalise or not self.importance_gates:
            return 1.0
        return float(self.gate_weights(info, layer).double().sum()) or 1.0

    def diagnose(self, info: RoundInfo) -> dict[str, Any]:
        """Return α ``[L, N]`` and r(c) ``[L, N]``."""
        layers = range(len(info.routing[0].prob))
        return {
            "gate_weights": torch.stack([self.gate_weights(info, layer) for layer in layers]),
            "selection_ratio": self._selection_ratio(info),
        }

    def _selection_ratio(self, info: RoundInfo) -> Tensor:
        """Return the share of all experts' importance that was trained, ``[L, N]`` in 0 to 1.

        An expert counts by the share of the client's steps in which it was trained.
        """
        ratios = []
        for stats, steps in zip(info.routing, info.num_steps, strict=True):
            scores = self._importance(stats).double()  # [L, E]
            share = (stats.trained / steps.clamp_min(1)).clamp_max(1)
            total = scores.sum(dim=1).clamp_min(torch.finfo(torch.float64).tiny)
            ratios.append((scores * share).sum(dim=1) / total)
        return torch.stack(ratios, dim=1)

    def _importance(self, stats: RoutingStats) -> Tensor:
        """Return s(e) over all tokens of a histogram, ``[L, E]``."""
        return self.lam * stats.prob + (1 - self.lam) * stats.peak
