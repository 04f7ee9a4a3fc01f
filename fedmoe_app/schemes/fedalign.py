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

A client takes its own prob_i(e) of the overlap from the batch at hand and the mean from the server.
The regulariser is summed over the MoE layers; the first round has no reference and so none.

Two consequences: in ω the factor mean_j prob_j(e) of the overlap cancels, so that
ω_i(e) = prob_i(e)·margin_i(e) / Σ_j prob_j(e)·margin_j(e); and since S and D are symmetric, two
clients always get the expert weights 1/2 and 1/2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedmoe_app.config.errors import ConfigError
from fedmoe_app.config.schema import RunConfig
from fedmoe_app.moe.shape import ModelShape
from fedmoe_app.moe.state import ModelState, Tensors, gate_name
from fedmoe_app.schemes.base import Run, Scheme
from fedmoe_app.schemes.parts import (
    REGIONS,
    ByExamples,
    Client,
    ExpertProbe,
    Histogram,
    Mean,
    RoundProbe,
    RouterTerm,
    Server,
    Signal,
    Start,
    Telling,
    Weighted,
)
from fedmoe_app.schemes.sums import cosines, mean_of_pairs, shares
from fedmoe_app.schemes.views import BlockUpdates, LocalStep, Now, RoundInfo, Trained

REFERENCE, MEAN_PROB = Signal("reference"), Signal("mean-prob")  # [L, E] each
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
    return shares(score.where(score.sum(dim=0) > 0, prob.double())).float()


def routing_reference(prob: Tensor, margin: Tensor, *, uniform: bool = False) -> Tensor:
    """p_g(e) = Σ_i ω_i(e)·prob_i(e), renormalised to sum 1, ``[E]`` float32.

    Zeros if no client routed a token; :func:`gate_regulariser` takes that as no reference.

    Args:
        prob: mean of p(x, e) over client i's tokens, ``[N, E]``.
        margin: mean lead over the next expert, ``[N, E]``.
        uniform: the plain mean over clients (ablation "uniform weights").
    """
    weights = consistency_weights(prob, margin, uniform=uniform).double()
    return shares((weights * prob.double()).sum(dim=0)).float()


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
    similarity = cosines(regions)  # S [N, N]
    if threshold is None:
        threshold = similarity_threshold(similarity, beta)
    agreement = cosines(deltas) if direction else None  # D [N, N]
    return pair_weights(similarity, agreement, threshold, temperature)


def similarity_threshold(similarity: Tensor, beta: float) -> float:
    """τ = mean(S) − β·std(S) over all ordered pairs, i = j included; S is ``[N, N]``."""
    return float(similarity.mean() - beta * similarity.std(correction=0))


def pair_weights(
    similarity: Tensor, agreement: Tensor | None, threshold: float, temperature: float = 1.0
) -> Tensor:
    """weight_i = Σ_j γ_ij / Σ_i Σ_j γ_ij from S and D, ``[N, N]`` each; D = None is D = 1."""
    pair = _soft_step(similarity - threshold, temperature)  # γ [N, N]
    if agreement is not None:
        pair = pair * agreement.clamp_min(0)
    votes = pair.sum(dim=1)  # [N]
    return shares(votes if votes.any() else torch.ones_like(votes)).float()


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


def _mean(probs: Tensor) -> Tensor:
    """Return the batch's mean p(x, e), ``[E]`` without graph; zeros without tokens."""
    return probs.detach().sum(dim=0) / max(len(probs), 1)


# -- gates -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GatePull(RouterTerm):
    """λ times the regulariser, summed over the layers; nothing in the first round.

    Attributes:
        lam, eta, kl, temperature, adaptive: as :class:`FedAlignMoE` has them.
    """

    lam: float = 0.1
    eta: float = 0.1
    kl: str = "pointwise"
    temperature: float = 1.0
    adaptive: bool = True
    reference: Signal = REFERENCE
    mean_prob: Signal = MEAN_PROB

    def loss(self, step: LocalStep) -> Tensor | None:
        """Return the term, a scalar."""
        if self.reference not in step.told:
            return None
        told = zip(
            step.router_probs, step.told[self.reference], step.told[self.mean_prob], strict=True
        )
        terms = [
            gate_regulariser(
                probs,
                reference,
                _mean(probs) * mean_prob,
                step.top_k,
                self.eta,
                self.kl,
                temperature=self.temperature,
                adaptive=self.adaptive,
            )
            for probs, reference, mean_prob in told
        ]
        return self.lam * torch.stack(terms).sum()


@dataclass(frozen=True)
class Reference(Telling):
    """Tells p_g and the clients' mean prob, ``[L, E]`` each."""

    uniform: bool = False
    reference: Signal = REFERENCE
    mean_prob: Signal = MEAN_PROB

    def tell(self, now: Now, state: Mapping[str, Tensor]) -> dict[Signal, Tensor | Tensors]:
        """Return both."""
        mean = torch.stack([prob.mean(dim=0) for prob in _by_layer(now.info, "prob")])
        return {self.reference: reference_of(now.info, self.uniform), self.mean_prob: mean}


@dataclass(frozen=True)
class ByConsistency(Weighted):
    """Rows of the gates by ω."""

    uniform: bool = False

    def weights(self, updates: BlockUpdates) -> Tensor:
        """Return ω, ``[M, E]``."""
        prob, margin = updates.routing_of("prob"), updates.routing_of("margin")
        return consistency_weights(prob, margin, uniform=self.uniform)


@dataclass(frozen=True)
class PrivateGates(Start):
    """Each client goes on with its own gates."""

    def keep(self, done: Trained) -> Tensors:
        """Keep the gates as trained."""
        return {
            gate_name(layer, name): done.received.gates[layer][name] + change
            for layer, tensors in done.changes.gates.items()
            for name, change in tensors.items()
        }

    def start(self, received: ModelState, kept: Mapping[str, Tensor]) -> ModelState:
        """Take the client's own gates in place of the received ones."""
        own = ModelState()
        for key, tensor in kept.items():
            own.insert(key, tensor)
        return ModelState(received.dense, received.gates | own.gates, received.experts)


# -- experts -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Semantic(Weighted):
    """Experts by the agreement of regions and directions.

    Attributes:
        direction, beta, temperature: as :class:`FedAlignMoE` has them.
        threshold: a fixed τ; None adapts it.
    """

    direction: bool = True
    beta: float = 1.0
    threshold: float | None = None
    temperature: float = 1.0
    regions: Histogram = REGIONS

    def weights(self, updates: BlockUpdates) -> Tensor:
        """Return the semantic weights of the members, ``[M]``."""
        similarity = cosines(updates.routing_of("region"))  # S [M, M]
        agreement = updates.cosines if self.direction else None
        return pair_weights(similarity, agreement, self._tau(similarity), self.temperature)

    def _tau(self, similarity: Tensor) -> float:
        if self.threshold is None:
            return similarity_threshold(similarity, self.beta)
        return self.threshold


# -- what a researcher looks at ----------------------------------------------------------------


@dataclass(frozen=True)
class Omega(RoundProbe):
    """Tells ω, and its entropy over the clients in nats."""

    of: str = "gates"
    uniform: bool = False

    def of_round(self, info: RoundInfo) -> dict[str, Any]:
        """Return ``[L, N, E]`` and ``[L, E]``."""
        pairs = zip(_by_layer(info, "prob"), _by_layer(info, "margin"), strict=True)
        weights = [consistency_weights(p, m, uniform=self.uniform) for p, m in pairs]
        omega = torch.stack(weights)  # [L, N, E]
        return {"omega": omega, "omega_entropy": torch.special.entr(omega).sum(dim=1)}


@dataclass(frozen=True)
class Distance(RoundProbe):
    """Tells p_g, and each client's distance to it: ½·Σ_e |prob_i(e) − p_g(e)|, 0 to 1."""

    of: str = "loss"
    uniform: bool = False

    def of_round(self, info: RoundInfo) -> dict[str, Any]:
        """Return ``[L, E]`` and ``[L, N]``."""
        reference = reference_of(info, self.uniform)  # [L, E]
        prob = torch.stack(_by_layer(info, "prob"))  # [L, N, E]
        distance = (prob - reference.unsqueeze(1)).abs().sum(dim=2) / 2
        return {"reference": reference, "reference_distance": distance}


@dataclass(frozen=True)
class Agreement(ExpertProbe):
    """Tells S, D ``[M, M]``, their means over pairs, and τ."""

    of: str = "experts"
    rule: Semantic = Semantic()

    def of_expert(self, updates: BlockUpdates, change: Tensor) -> dict[str, Any]:
        """Return them by name."""
        similarity = cosines(updates.routing_of("region"))
        return {
            "similarity": similarity,
            "agreement": updates.cosines,
            "similarity_mean": mean_of_pairs(similarity),
            "agreement_mean": mean_of_pairs(updates.cosines),
            "threshold": self.rule._tau(similarity),
        }


def reference_of(info: RoundInfo, uniform: bool = False) -> Tensor:
    """Return p_g of every layer, ``[L, E]``; see :func:`routing_reference`."""
    pairs = zip(_by_layer(info, "prob"), _by_layer(info, "margin"), strict=True)
    return torch.stack([routing_reference(p, m, uniform=uniform) for p, m in pairs])


def _by_layer(info: RoundInfo, name: str) -> list[Tensor]:
    """Return one routing statistic, L tensors ``[N, E]``."""
    return [info.routing_of(name, layer) for layer in range(len(info.routing[0].prob))]


@dataclass(frozen=True)
class FedAlignMoE(Scheme):
    """FedAlign-MoE; every component can be switched off.

    Attributes:
        gates: "private" (the paper: each client keeps its own, the server's is for evaluation and
            export), "consistency" (rows averaged with ω and sent to all) or "average" (by n_i).
        uniform_weights: 1/N in place of ω.
        lam, eta, kl, adaptive: of the regulariser; λ = 0 leaves it out.
        experts: "semantic", or "index" for averaging by n_i.
        direction: False leaves out the direction consensus D.
        beta, adaptive_threshold, threshold: τ = mean − β·std, or the fixed one.
        temperature: of both sigmoids.
    """

    gates: str = "private"
    uniform_weights: bool = False
    lam: float = 0.1
    eta: float = 0.1
    kl: str = "pointwise"
    adaptive: bool = True
    experts: str = "semantic"
    direction: bool = True
    beta: float = 1.0
    adaptive_threshold: bool = True
    threshold: float = 0.5
    temperature: float = 1.0

    @classmethod
    def from_config(cls, config: RunConfig) -> FedAlignMoE:
        """Take the ``fedalign`` table."""
        return cls(**config.fedalign.model_dump())

    def check(self, run: Run) -> Sequence[str]:
        """Refuse to align gates that are not trained."""
        if self.gates != "average" and self.lam > 0 and not run.model.gates_trained:
            raise ConfigError(
                f'fedalign.gates = "{self.gates}" with fedalign.lam = {self.lam:g}: the model\'s '
                "gates are frozen (model.gates = false), so that there is nothing to align or to "
                'keep; choose model.gates = true, or fedalign.gates = "average"'
            )
        return ()

    def client(self, model: ModelShape) -> Client:
        """Keep the gates, and hold them near the reference."""
        pull = GatePull(self.lam, self.eta, self.kl, self.temperature, self.adaptive)
        return Client(
            start_gates=PrivateGates() if self.gates == "private" else None,
            terms=(pull,) if self.lam else (),
        )

    def server(self, model: ModelShape) -> Server:
        """Average gates by consistency, experts by meaning; tell the reference."""
        uniform = self.uniform_weights
        threshold = None if self.adaptive_threshold else self.threshold
        semantic = Semantic(self.direction, self.beta, threshold, self.temperature)
        by_meaning = self.experts != "index"
        return Server(
            gates=ByExamples() if self.gates == "average" else ByConsistency(uniform),
            experts=semantic if by_meaning else Mean("members"),
            steps=(Reference(uniform),) if self.lam else (),
            probes=(
                Omega(uniform=uniform),
                Distance(uniform=uniform),
                *((Agreement(rule=semantic),) if by_meaning else ()),
            ),
        )
