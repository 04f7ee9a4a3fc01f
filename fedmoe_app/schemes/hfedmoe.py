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

import torch
from torch import Tensor
from torch.nn.functional import normalize


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
    return _shares(_qualifies(usage, tau) * num_examples.double().unsqueeze(1))


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
        return _shares(preference)
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


def _shares(values: Tensor) -> Tensor:
    """Divide values ≥ 0 by their sum over the clients (dim 0), float32; a zero sum gives zeros."""
    tiny = torch.finfo(torch.float64).tiny
    return normalize(values.double(), p=1.0, dim=0, eps=tiny).float()
