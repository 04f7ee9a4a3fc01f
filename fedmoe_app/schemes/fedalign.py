"""FedAlign-MoE: gates aligned by their routing, experts averaged by what they mean.

Fang et al., "Aggregation Alignment for Federated Learning with Mixture-of-Experts under Data
Heterogeneity", arXiv:2603.21276. Per MoE layer, with p(x, e) the softmax over all E experts,
prob_i(e) its mean over client i's tokens and margin_i(e) the mean lead of e over the next expert:

    o_i(e) = prob_i(e)·mean_j prob_j(e)                               overlap
    ω_i(e) = s_i(e)/Σ_j s_j(e),   s_i(e) = o_i(e)·margin_i(e)         consistency weights
    p_g(e) = Σ_i ω_i(e)·prob_i(e), renormalised to sum 1              reference
    loss  += λ·mean_x Σ_e a_i(e)·KL(p(x,e)‖p_g(e))·1[e ∈ Top-k(p(x,·)) ∪ Top-k(p_g)]
    a_i(e) = sigmoid((o_i(e) − η)/t)

and per expert over the N clients that trained it, with regions r_i (mean hidden state of the tokens
whose best expert it is) and changes Δ_i:

    S_ij = cos(r_i, r_j),   D_ij = cos(Δ_i, Δ_j),   τ = mean(S) − β·std(S)    all ordered pairs
    γ_ij = sigmoid((S_ij − τ)/t)·max(0, D_ij)
    θ_e ← θ_e + Σ_i weight_i·Δ_i,   weight_i = Σ_j γ_ij / Σ_i Σ_j γ_ij

Decisions: β = 1 and t = 1 unless told otherwise (the paper gives no β and has no t). KL is the
pointwise term p·log(p/p_g). It is least at p = p_g/e (e = 2.718…), not at p_g, and may be negative;
only summed over all experts with one weight is it a divergence. "bernoulli" is the divergence
between the events "e" and "not e", at least 0 and 0 at p = p_g. An expert for which no client has a
margin is weighed by the overlap alone, the limit of equal margins: with weights of 0 it would leave
the reference, and the loss would drive it out of use. A vector is at cosine 1 to itself, be it
zero, and a zero vector at cosine 0 to all others; so a client always has its own vote.

Two consequences: in ω the factor mean_j prob_j(e) of the overlap cancels, so that
ω_i(e) = prob_i(e)·margin_i(e) / Σ_j prob_j(e)·margin_j(e); and since S and D are symmetric, two
clients always get the expert weights 1/2 and 1/2.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

KL_FORMS = ("pointwise", "bernoulli")
FLOOR = 1e-8  # probabilities below it count as this much inside logarithms


def consistency_weights(prob: Tensor, margin: Tensor, *, uniform: bool = False) -> Tensor:
    """ω_i(e) = s_i(e)/Σ_j s_j(e), ``[N, E]`` float32.

    Args:
        prob: mean of p(x, e) over client i's tokens, ``[N, E]``; zeros for a client without any.
        margin: mean of max(0, p(x,e) − max over other experts of p), ``[N, E]``.
        uniform: 1/N in place of ω (ablation "uniform weights").

    Returns:
        Columns that sum to 1, or to 0 for an expert to which no client gives any probability.
    """
    if uniform:
        return torch.full_like(prob, 1 / max(len(prob), 1), dtype=torch.float32)
    # The overlap's factor mean_j prob_j(e) is the same for all clients and cancels.
    score = prob.double() * margin.double()  # [N, E]
    return _shares(score.where(score.sum(dim=0) > 0, prob.double())).float()


def routing_reference(prob: Tensor, margin: Tensor, *, uniform: bool = False) -> Tensor:
    """p_g(e) = Σ_i ω_i(e)·prob_i(e), renormalised to sum 1, ``[E]`` float32.

    Zeros if no client routed a token; :func:`gate_regulariser` takes that as no reference.

    Args:
        prob: mean of p(x, e) over client i's tokens, ``[N, E]``.
        margin: mean lead over the next expert, ``[N, E]``.
        uniform: the plain mean over clients (ablation "uniform weights").
    """
    weights = consistency_weights(prob, margin, uniform=uniform).double()
    return _shares((weights * prob.double()).sum(dim=0)).float()


def gate_regulariser(
    probs: Tensor,
    reference: Tensor,
    overlap: Tensor,
    top_k: int,
    eta: float,
    kl: str,
    *,
    temperature: float = 1.0,
    adaptive: bool = True,
) -> Tensor:
    """mean_x Σ_e a(e)·KL(p(x,e)‖p_g(e)) over the top experts of either, a scalar, without λ.

    The gradient goes through ``probs`` alone. Values and gradients are finite for probabilities of
    0 and 1: inside logarithms everything below 1e-8 counts as 1e-8. No tokens, or a reference of
    zeros (there is none yet), give 0.

    Args:
        probs: p(x, e) of the tokens that are not padding, ``[T, E]``, with graph.
        reference: p_g(e), ``[E]``.
        overlap: o_i(e) of this client, ``[E]``.
        top_k: experts a token uses; above E it is E.
        eta: η, the overlap at which a(e) is 1/2.
        kl: "pointwise" or "bernoulli".
        temperature: t > 0 of a(e); 1 is the paper.
        adaptive: False sets a(e) = 1 (ablation "no adaptive weight").

    Raises:
        ValueError: if ``kl`` is neither, or the temperature is not above 0.
    """
    wide = probs.to(torch.promote_types(probs.dtype, torch.float32))  # [T, E]
    target = reference.detach().to(wide)  # [E]
    terms = _divergence(wide, target, kl).where(_top_experts(wide, target, top_k), 0.0)  # [T, E]
    if adaptive:
        terms = terms * _soft_step(overlap.detach().to(wide) - eta, temperature)
    return terms.sum() * target.any() / max(len(wide), 1)


def semantic_weights(
    regions: Tensor,
    deltas: Tensor,
    beta: float = 1.0,
    temperature: float = 1.0,
    *,
    direction: bool = True,
    threshold: float | None = None,
) -> Tensor:
    """weight_i = Σ_j γ_ij / Σ_i Σ_j γ_ij, ``[N]`` float32, sum 1.

    Uniform if no pair of changes agrees (D_ij ≤ 0 off the diagonal), which includes all-zero
    changes, and if every γ underflows to 0.

    Args:
        regions: mean hidden state of the tokens whose best expert this is, ``[N, D]``; zeros for a
            client without such a token.
        deltas: the clients' changes of the expert, ``[N, P]``.
        beta: β of the threshold τ = mean(S) − β·std(S), population standard deviation.
        temperature: t > 0 of the sigmoid; 1 is the paper.
        direction: False sets D = 1 (ablation "no direction consensus").
        threshold: a fixed τ (ablation "fixed threshold").

    Raises:
        ValueError: if the temperature is not above 0.
    """
    similarity = _cosines(regions)  # S [N, N]
    if threshold is None:
        threshold = (similarity.mean() - beta * similarity.std(correction=0)).item()
    pair = _soft_step(similarity - threshold, temperature)  # γ [N, N]
    if direction:
        pair = pair * _cosines(deltas).clamp_min(0)
    votes = pair.sum(dim=1)  # [N]
    return _shares(votes if votes.any() else torch.ones_like(votes)).float()


def _divergence(p: Tensor, q: Tensor, kl: str) -> Tensor:
    """KL(p(x,e)‖q(e)), ``[T, E]``, finite with a finite gradient."""
    if kl == "pointwise":
        return _log_ratio(p, q)
    if kl == "bernoulli":
        return _log_ratio(p, q) + _log_ratio(1 - p, 1 - q)
    raise ValueError(f'kl = "{kl}": unknown; choose one of {", ".join(KL_FORMS)}')


def _log_ratio(p: Tensor, q: Tensor) -> Tensor:
    """p·log(p/q) with both floored inside the logarithm."""
    return p * (p.clamp_min(FLOOR).log() - q.clamp_min(FLOOR).log())


def _top_experts(probs: Tensor, reference: Tensor, top_k: int) -> Tensor:
    """Whether e is in Top-k(p(x,·)) ∪ Top-k(p_g), ``[T, E]`` bool."""
    count = min(top_k, len(reference))
    top = torch.zeros_like(probs, dtype=torch.bool)
    top.scatter_(1, probs.detach().topk(count, dim=1).indices, True)
    # Stable: equal entries must give every client the same experts.
    top[:, reference.argsort(descending=True, stable=True)[:count]] = True
    return top


def _soft_step(values: Tensor, temperature: float) -> Tensor:
    """sigmoid(values/t)."""
    if not temperature > 0:
        raise ValueError(f"temperature = {temperature}: must be above 0; 1 is the paper's form")
    return torch.sigmoid(values / temperature)


def _cosines(vectors: Tensor) -> Tensor:
    """Return cos(v_i, v_j), ``[N, N]`` float64: 1 on the diagonal, 0 of a zero vector to others."""
    wide = vectors.to(torch.promote_types(vectors.dtype, torch.float32))  # [N, D]
    # Largest entry 1 first, so that no square overflows or vanishes.
    scaled = normalize(wide, p=torch.inf, dim=1, eps=torch.finfo(wide.dtype).tiny)
    gram = (scaled @ scaled.T).double()  # [N, N]
    lengths = gram.diagonal().sqrt()
    cosines = gram / torch.outer(lengths, lengths).where(gram != 0, 1.0)
    return cosines.clamp(-1, 1).fill_diagonal_(1.0)


def _shares(values: Tensor) -> Tensor:
    """Divide values ≥ 0 by their sum over dim 0; a zero sum gives zeros."""
    return normalize(values, p=1.0, dim=0, eps=torch.finfo(torch.float64).tiny)
