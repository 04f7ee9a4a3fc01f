"""A head in closed form as it were without one example, and examples that its sums leave out.

A head that was estimated on the very examples that clients then train on is so sure of them that
the experts get no gradient. Two ways out:

**Leave one out.** In the loss, each example i with its class y meets the head that the sums without
it would give. With f the features that went into the sums, x those of the model as it is now, and
the scatter of :mod:`fedmoe_app.schemes.closedhead` in its eigenbasis, W = Q·diag(λ)·Qᵀ,

    lda    d = f − μ_y,  ρ = n_y/(n_y − 1):   μ_y' = μ_y − d/(n_y − 1),  W' = W − ρ·d·dᵀ
    ridge  d = f,        ρ = 1:               s_y' = s_y − f,            S' = S − d·dᵀ
           (with a bias: S less n·m·mᵀ, d = f − m, ρ = n/(n − 1))
    Σ̂'⁻¹ = (G − r·d·dᵀ)⁻¹ = G⁻¹ + r·G⁻¹·d·dᵀ·G⁻¹ / (1 − r·dᵀ·G⁻¹·d)

with G diagonal and r = (1−γ)·ρ: Sherman and Morrison, 1950. The shrinkage, which is a share of the
trace, goes along. It is exact but for the scale κ, one number, which stays that of the head: a test
holds it against the head that is worked out anew. It costs a product ``[B, D]·[D, D]`` a step.

For that the server tells Q, λ, the means (or sums) by class in the eigenbasis, the counts and κ;
they do not depend on the example. The client remembers f (:mod:`fedmoe_app.client.recall`). An
example that is its class's only one meets the head as it is, and so do all of a client that has
lost its file, or whose sums are not those that the server tells of.

Where the guard lets no client count for more than N examples
(:mod:`fedmoe_app.schemes.headbounds`), an example of a client that has n > N is in the sums by
v = N/n only, and v of it is taken out: with v for 1 in the numerators and denominators above. The
server tells N.

**Hold back.** A share of each class's examples never goes into the sums, and these are what the
client trains on. Nothing is told, and nothing is remembered; both the head and the experts learn
from fewer examples.

Both are ours; that a leave-one-out error of least squares needs no second fit is old (Allen, 1974).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedmoe_app.moe.state import Tensors
from fedmoe_app.schemes.closedhead import (
    EstimateHead,
    Sums,
    centred_moment,
    class_means,
    within_scatter,
)
from fedmoe_app.schemes.parts import Logits, Signal, Split, Telling
from fedmoe_app.schemes.views import LocalStep, Now

HEAD = Signal("closed-form-head")
_MOST = "most-examples"  # N, as it is told
_ROUNDING = 1e-4  # relative: numbers travel as float32
_FLAT = 1e-9  # of the trace: a scatter below it is none


class Whole(NamedTuple):
    """What the head is worked out from, in the eigenbasis of its scatter; float64.

    Attributes:
        vectors: Q, ``[D, D]``.
        values: λ, ``[D]``.
        rows: μ_c (lda) or s_c (ridge) times Q, ``[C, D]``.
        counts: n_c, ``[C]``.
        scale: κ, a scalar.
    """

    vectors: Tensor
    values: Tensor
    rows: Tensor
    counts: Tensor
    scale: Tensor


def whole(sums: Sums, method: str, has_bias: bool, scale: float) -> Whole:
    """Return what a head is worked out from in its eigenbasis.

    Args:
        sums: of at least one example.
        method: "lda" or "ridge".
        has_bias: of the head.
        scale: κ of the head.
    """
    counts, rows = sums.counts, sums.features
    if method == "lda":
        rows = class_means(sums)
        scatter = within_scatter(sums)
    else:
        scatter = centred_moment(sums) if has_bias else sums.moment
    values, vectors = torch.linalg.eigh(scatter)
    kappa = torch.tensor(scale, dtype=values.dtype)
    return Whole(vectors, values.clamp_min(0), rows @ vectors, counts, kappa)


class _Inverse:
    """(G − r·d·dᵀ)⁻¹ for each example of a batch, in the eigenbasis.

    Args:
        values: λ, ``[D]``.
        d: what is taken out, ``[B, D]``.
        rho: ρ, ``[B]``.
        shrinkage: γ.
        share: of the scatter beside γ times the mean eigenvalue: 1 − γ (lda) or 1 (ridge).
    """

    def __init__(
        self, values: Tensor, d: Tensor, rho: Tensor, shrinkage: float, share: float
    ) -> None:
        size = len(values)
        left = values.sum() - rho * d.square().sum(dim=1)  # trace without the example, [B]
        is_flat = left <= _FLAT * values.sum().clamp_min(1e-30)
        r = torch.where(is_flat, 0.0, share * rho)  # [B]
        shrunk = share * values + shrinkage * left[:, None] / size  # [B, D]
        self._g = torch.where(is_flat[:, None], 1.0, shrunk)
        self._u = d / self._g
        self._e = (r / (1 - r * (d * self._u).sum(dim=1)))[:, None]  # [B, 1]
        self.is_flat = is_flat

    def of(self, x: Tensor) -> Tensor:
        """Return the inverse times x, ``[B, D]``."""
        return x / self._g + self._e * (self._u * x).sum(dim=1, keepdim=True) * self._u

    def squares(self, rows: Tensor) -> Tensor:
        """Return rowᵀ·inverse·row for each of ``[C, D]``, ``[B, C]``."""
        return (1 / self._g) @ rows.square().T + self._e * (self._u @ rows.T).square()


def without_one(
    known: Whole,
    method: str,
    shrinkage: float,
    has_bias: bool,
    taken: Tensor,
    labels: Tensor,
    features: Tensor,
    weight: float = 1.0,
) -> Tensor:
    """Return each example's logits by the head of the sums without it, ``[B, C]`` float64.

    Args:
        known: of all examples.
        method, shrinkage, has_bias: of the head.
        taken: f, the examples' features in the sums, ``[B, D]``.
        labels: their classes, ``[B]``, of which there are two examples or more each.
        weight: v, by which each example is in the sums: below 1 where its client has more than the
            guard lets it count for.
        features: x, their features now, ``[B, D]``, with graph.
    """
    f, x = taken.double() @ known.vectors, features.double() @ known.vectors
    take_out = _lda if method == "lda" else _ridge
    return known.scale * take_out(known, shrinkage, has_bias, f, labels, x, weight)


def _lda(
    known: Whole,
    shrinkage: float,
    has_bias: bool,
    f: Tensor,
    labels: Tensor,
    x: Tensor,
    weight: float,
) -> Tensor:
    counts, means, present = known.counts, known.rows, known.counts > 0
    total, of_class = counts.sum(), counts[labels]  # [B]
    d = f - means[labels]
    rho = weight * of_class / (of_class - weight)
    inverse = _Inverse(known.values, d, rho, shrinkage, 1 - shrinkage)
    # Σ divides the scatter by n − C; a flat one is the identity, undivided.
    free = (total - weight - present.sum()).clamp_min(1).expand(len(f))
    free = torch.where(inverse.is_flat, 1.0, free)[:, None]  # [B, 1]
    own = means[labels] - weight * d / (of_class - weight)[:, None]  # [B, D]
    moved = free * inverse.of(x)
    logits = _with_own(moved @ means.T, (moved * own).sum(dim=1), labels)
    of_own = free[:, 0] * (inverse.of(own) * own).sum(dim=1)
    bias = -0.5 * _with_own(free * inverse.squares(means), of_own, labels)
    logits = logits - logits[:, present].mean(dim=1, keepdim=True)
    bias = bias - bias[:, present].mean(dim=1, keepdim=True)
    lowest = bias[:, present].min(dim=1, keepdim=True).values
    logits, bias = torch.where(present, logits, 0.0), torch.where(present, bias, lowest)
    if has_bias:
        return logits + bias
    mean = ((counts @ means) - weight * f) / (total - weight)  # [B, D]
    length = mean.square().sum(dim=1)
    along = torch.where(length > 0, (mean * x).sum(dim=1) / length, 0.0)
    return logits + bias * along[:, None]


def _ridge(
    known: Whole,
    shrinkage: float,
    has_bias: bool,
    f: Tensor,
    labels: Tensor,
    x: Tensor,
    weight: float,
) -> Tensor:
    counts, rows, total = known.counts, known.rows, known.counts.sum()
    own = rows[labels] - weight * f
    if not has_bias:
        inverse = _Inverse(known.values, f, torch.full_like(f[:, 0], weight), shrinkage, 1.0)
        moved = inverse.of(x)
        return _with_own(moved @ rows.T, (moved * own).sum(dim=1), labels)
    mean = rows.sum(dim=0) / total  # [D]
    rho = (weight * total / (total - weight)).expand(len(f))
    inverse = _Inverse(known.values, f - mean, rho, shrinkage, 1.0)
    left = (rows.sum(dim=0) - weight * f) / (total - weight)  # the mean without the example, [B, D]
    n = counts.expand(len(f), -1).scatter_add(
        1, labels[:, None], torch.full_like(f[:, :1], -weight)
    )
    moved = inverse.of(x - left)  # W·x + b = W·(x − m) + n_c/n
    linear = _with_own(moved @ rows.T, (moved * own).sum(dim=1), labels)
    return linear - n * (moved * left).sum(dim=1, keepdim=True) + n / (total - weight)


def _with_own(values: Tensor, own: Tensor, labels: Tensor) -> Tensor:
    """Replace the value of each example's own class, of ``[B, C]``."""
    return values.scatter(1, labels[:, None], own[:, None])


@dataclass(frozen=True)
class TellHead(EstimateHead, Telling):
    """Puts the head in closed form in place, and tells what it was worked out from."""

    head: Signal = HEAD

    def tell(self, now: Now, state: Mapping[str, Tensor]) -> dict[Signal, Tensor | Tensors]:
        """Tell the eigenbasis, after which round it was taken, and N if the guard shrank sums."""
        sums = self.sums._total(now)
        if not sums.counts.sum() > 0:
            return {}
        has_bias = f"{self.sums.head}.bias" in now.values
        _, scale = self._estimated(sums, has_bias)
        known = whole(sums, self.method, has_bias, scale)
        told = {name: tensor.float() for name, tensor in known._asdict().items()}
        told["round"] = torch.tensor(float(now.info.server_round))
        if now.info.is_bounded:
            # Whoever was beyond N has N now, so that the most that one has serves as N.
            told[_MOST] = torch.stack(self.sums._examples(now)).max()
        return {self.head: told}


@dataclass(frozen=True)
class LeaveOneOut(Logits):
    """Each example's logits are those of the head that the sums without it give.

    Attributes:
        path: of the head.
        method, shrinkage: of the head.
    """

    path: str
    method: str = "lda"
    shrinkage: float = 0.1
    head: Signal = HEAD

    def logits(self, step: LocalStep) -> Tensor:
        """Return them; the model's own of what is in no sums, or alone in its class."""
        told: Mapping[str, Any] = step.told.get(self.head, {})
        if not told or int(told["round"]) != step.recalled_round:
            return step.logits
        known = Whole(**{name: told[name].double() for name in Whole._fields})
        weight = _weight(told, step)
        has_others = known.counts[step.labels] > (1 + _ROUNDING) * weight  # [B]
        at = has_others.nonzero()[:, 0]
        if not len(at):
            return step.logits
        has_bias = f"{self.path}.bias" in step.received
        of = (step.recalled[at], step.labels[at], step.features[at])
        found = without_one(known, self.method, self.shrinkage, has_bias, *of, weight)
        return step.logits.index_copy(0, at, found.to(step.logits.dtype))


def _weight(told: Mapping[str, Tensor], step: LocalStep) -> float:
    """Return v of the client's examples."""
    if _MOST not in told:
        return 1.0
    return min(1.0, float(told[_MOST].double() / step.label_counts.double().sum()))


@dataclass(frozen=True)
class HeldBack(Split):
    """A share of each class's examples, at random, is trained on, and left out of the sums.

    ⌊share·n_c⌋ of a class; one at least over all classes, where there are two examples.
    """

    share: float

    def trained(self, labels: Tensor, seed: int) -> Tensor:
        """Return whether an example is held back, ``[n]``; of one example alone, that it is."""
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(labels), generator=generator)  # [n]
        mask = torch.zeros(len(labels), dtype=torch.bool)
        for label in labels.unique().tolist():
            of_class = order[labels[order] == label]
            mask[of_class[: int(self.share * len(of_class))]] = True
        if not mask.any():
            mask[order[:1]] = True
        return mask
