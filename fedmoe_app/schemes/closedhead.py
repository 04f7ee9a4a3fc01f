"""A classification head in closed form, from sums that clients add up.

With f the feature vectors that the head sees, ``[D]``, of all clients' training examples, hold-outs
left out, and by class c of C

    n_c = Σ 1,   s_c = Σ f,   S = Σ f·fᵀ over all classes,   n = Σ n_c,   m = Σ s_c / n

the server works out the head that centralised data would give. A client's labels do not matter: the
sums are those of the pooled data, whatever the partition.

    lda    μ_c = s_c / n_c,  Σ = (S − Σ_c n_c·μ_c·μ_cᵀ) / (n − C),  Σ̂ = (1−γ)·Σ + γ·tr(Σ)/D·I
           w_c = Σ̂⁻¹·μ_c,  b_c = −½·μ_cᵀ·w_c                        classes alike in the prior
           a head without bias: w_c ← w_c + b_c·m/‖m‖²               exact at the mean feature
    ridge  W = M·(S + λI)⁻¹ with rows s_c of M and λ = γ·tr(S)/D      one-hot targets
           a head with bias: the same of f − m, b_c = n_c/n − w_cᵀ·m
    scale  W, b ← κ·(W, b), κ = r / (root mean square of W·f + b, less its mean over c)

LDA: Fisher, 1936; with shared covariance, as in Luo et al., CCVR, NeurIPS 2021, arXiv:2106.05001.
Ridge: Fanì et al., Fed3R, ICML 2024, arXiv:2406.01116, λ absolute there. Decisions: LDA is the
default, since ridge masks classes where C is larger than D. Both know directions only up to a
factor, and a head that was estimated on the examples that it is then trained under leaves no
gradient if it is too sure: hence r, worked out from the same sums. A class that nobody has gets
w_c = the mean of the others' and the lowest b_c: never the most likely one. Sums run in float64,
numbers travel as float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fedmoe_app.moe.state import Tensors
from fedmoe_app.schemes.headbounds import bounded_sums, symmetric
from fedmoe_app.schemes.parts import Field, Freeze, OfOutput, Step
from fedmoe_app.schemes.views import Kept, Limits, Now, Outputs

_MOST_EXAMPLES = 1e8
_LARGEST = 1e12  # of a sum of features or of their products
_ROUNDING = 1e-3  # relative: honest sums travel as float32
_FLOAT32 = 1e-5  # of the trace: below it an eigenvalue may be rounding's


class Sums(NamedTuple):
    """What the head is worked out from, float64.

    Attributes:
        counts: n_c, ``[C]``.
        features: s_c, ``[C, D]``.
        moment: S, ``[D, D]``.
    """

    counts: Tensor
    features: Tensor
    moment: Tensor


class Head(NamedTuple):
    """Weight ``[C, D]`` and bias ``[C]``, float64; a head without bias has None."""

    weight: Tensor
    bias: Tensor | None


def lda_head(sums: Sums, shrinkage: float, has_bias: bool) -> Head:
    """Return the head of linear discriminant analysis.

    Args:
        sums: of at least one example.
        shrinkage: γ, 0 to 1; with 0 the covariance must be of full rank.
        has_bias: else the bias is folded into the weights.
    """
    counts, present = sums.counts, sums.counts > 0
    total, dims = counts.sum(), sums.features.shape[1]
    means = class_means(sums)
    mean = sums.features.sum(dim=0) / total  # [D]
    within = within_scatter(sums) / max(float(total) - int(present.sum()), 1.0)
    within = _shrunk(within, shrinkage, (1 - shrinkage, shrinkage), dims)
    weight = torch.linalg.solve(within, means.T).T  # [C, D]
    bias = -0.5 * (means * weight).sum(dim=1)  # [C]
    # A softmax does not see what all classes share.
    weight = weight - weight[present].mean(dim=0)
    bias = bias - bias[present].mean()
    weight[~present], bias[~present] = 0.0, bias[present].min()
    if has_bias:
        return Head(weight, bias)
    length = mean.square().sum()
    return Head(weight + bias[:, None] * mean / length if length else weight, None)


def class_means(sums: Sums) -> Tensor:
    """Return μ_c, ``[C, D]``; zeros of a class without examples. Counts need not be whole."""
    return sums.features / sums.counts.where(sums.counts > 0, 1.0)[:, None]


def within_scatter(sums: Sums) -> Tensor:
    """Return Σ over all examples of (f − μ_c)·(f − μ_c)ᵀ, ``[D, D]``."""
    means = class_means(sums)
    return sums.moment - (sums.counts[:, None] * means).T @ means


def centred_moment(sums: Sums) -> Tensor:
    """Return Σ over all examples of (f − m)·(f − m)ᵀ, ``[D, D]``."""
    total = sums.counts.sum()
    mean = sums.features.sum(dim=0) / total  # [D]
    return sums.moment - total * torch.outer(mean, mean)


def ridge_head(sums: Sums, shrinkage: float, has_bias: bool) -> Head:
    """Return the head of ridge regression on one-hot targets.

    Args:
        sums: of at least one example.
        shrinkage: γ, λ as a share of the mean eigenvalue.
        has_bias: else the regression has no intercept.
    """
    dims = sums.features.shape[1]
    if not has_bias:
        moment = _shrunk(sums.moment, shrinkage, (1.0, shrinkage), dims)
        return Head(torch.linalg.solve(moment, sums.features.T).T, None)
    total = sums.counts.sum()
    mean = sums.features.sum(dim=0) / total  # [D]
    moment = _shrunk(centred_moment(sums), shrinkage, (1.0, shrinkage), dims)
    centred = sums.features - torch.outer(sums.counts, mean)
    weight = torch.linalg.solve(moment, centred.T).T
    return Head(weight, sums.counts / total - weight @ mean)


def scale_of(head: Head, sums: Sums, logit_rms: float) -> float:
    """Return κ, by which a head's logits, less their mean over classes, get a root mean square.

    Args:
        head: any.
        sums: of the examples over which it is taken.
        logit_rms: r > 0; 0 leaves the head as it is, κ = 1.
    """
    weight = head.weight - head.weight.mean(dim=0)
    square = ((weight @ sums.moment) * weight).sum()
    if head.bias is not None:
        bias = head.bias - head.bias.mean()
        square = square + 2 * bias @ weight @ sums.features.sum(dim=0)
        square = square + sums.counts.sum() * bias.square().sum()
    rms = float((square / (sums.counts.sum() * len(weight))).clamp_min(0).sqrt())
    if not logit_rms or not rms:
        return 1.0
    return logit_rms / rms


def rescaled(head: Head, sums: Sums, logit_rms: float) -> Head:
    """Return κ·(W, b), see :func:`scale_of`."""
    return _times(head, scale_of(head, sums, logit_rms))


def _times(head: Head, factor: float) -> Head:
    if factor == 1.0:
        return head
    return Head(factor * head.weight, None if head.bias is None else factor * head.bias)


def _shrunk(matrix: Tensor, shrinkage: float, parts: tuple[float, float], dims: int) -> Tensor:
    """Return a·matrix + b·(mean eigenvalue)·I; the identity for a matrix of zeros."""
    scale = matrix.diagonal().mean()
    if not scale > 0:
        return torch.eye(dims, dtype=matrix.dtype)
    return parts[0] * matrix + parts[1] * scale * torch.eye(dims, dtype=matrix.dtype)


_METHODS = {"lda": lda_head, "ridge": ridge_head}


@dataclass(frozen=True)
class FeatureSums(OfOutput):
    """n_c, s_c and the upper triangle of S; ``head`` is the path of the linear map."""

    head: str

    def spec(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Field]:
        """As the head's weight says: C classes, D features."""
        classes, dims = shapes[f"{self.head}.weight"]
        return {
            "counts": Field((classes,), 0, _MOST_EXAMPLES),
            "features": Field((classes, dims), -_LARGEST, _LARGEST),
            "moment": Field((dims * (dims + 1) // 2,), -_LARGEST, _LARGEST),
        }

    def impossible(self, numbers: Mapping[str, Tensor]) -> str:
        """Hold the sums against each other: Σ_c ‖s_c‖²/n_c ≤ tr(S), and S_ij² ≤ S_ii·S_jj.

        Both are Cauchy and Schwarz's inequality, with room for float32. Without them a client could
        send any class mean, of classes that it counts no example of, too. Last and dearest,
        S − Σ_c s_c·s_cᵀ/n_c must be positive semi-definite, as the scatter within classes is:
        one client that is not could turn the sign of the covariance of all along one direction.
        """
        counts, features, upper = (
            numbers[name].double() for name in ("counts", "features", "moment")
        )
        if not torch.equal(counts, counts.round()):
            return "counts are no whole numbers"
        squares = features.square().sum(dim=1)  # [C]
        if bool((squares[counts == 0] > 0).any()):
            return "features of a class without examples"
        moment = symmetric(upper, features.shape[1])
        diagonal = moment.diagonal()
        trace = diagonal.sum()
        if not float((squares / counts.clamp_min(1)).sum()) <= (1 + _ROUNDING) * float(trace):
            return "features larger than their squares"
        most = diagonal.clamp_min(0).sqrt()
        slack = _ROUNDING * torch.outer(most, most) + _ROUNDING**2 * trace
        if bool((moment.abs() > torch.outer(most, most) + slack).any()):
            return "products of features larger than their squares"
        within = within_scatter(Sums(counts, features, moment))
        lowest = _FLOAT32 * trace * torch.eye(len(within), dtype=within.dtype)
        if trace and torch.linalg.cholesky_ex(within + lowest).info:
            return "a scatter within classes that is negative in some direction"
        return ""

    def bounded(self, sent: Sequence[Mapping[str, Tensor]], limits: Limits) -> Sequence[Kept]:
        """Hold each client's sums against the median client's, see there."""
        return bounded_sums(sent, limits)

    def of_output(self, out: Outputs) -> Tensors:
        """Return the sums of a batch."""
        f, classes = out.features, out.logits.shape[1]
        right = F.one_hot(out.labels, classes).to(f.dtype)  # [I, C]
        row, column = torch.triu_indices(f.shape[1], f.shape[1])
        return {
            "counts": right.sum(dim=0),
            "features": right.T @ f,
            "moment": (f.T @ f)[row, column],
        }

    def _examples(self, now: Now) -> list[Tensor]:
        """Return n_i of each client, scalars."""
        return [sent[f"{type(self).__name__}/counts"].sum() for sent in now.info.statistics]

    def _total(self, now: Now) -> Sums:
        """Add up what the clients sent, in float64."""
        prefix = type(self).__name__
        totals = {
            name: torch.stack([sent[f"{prefix}/{name}"] for sent in now.info.statistics])
            .double()
            .sum(dim=0)
            for name in ("counts", "features", "moment")
        }
        moment = symmetric(totals["moment"], totals["features"].shape[1])
        return Sums(totals["counts"], totals["features"], moment)


@dataclass(frozen=True)
class EstimateHead(Step):
    """Puts the head in closed form in the place of the present one."""

    sums: FeatureSums
    method: str = "lda"
    shrinkage: float = 0.1
    logit_rms: float = 2.0

    def step(self, now: Now, state: Mapping[str, Tensor]) -> tuple[Tensors, Tensors]:
        """Return the change with that of the head replaced."""
        head, sums = self.sums.head, self.sums._total(now)
        if not sums.counts.sum() > 0:
            return dict(now.change), {}
        has_bias = f"{head}.bias" in now.values
        found, _ = self._estimated(sums, has_bias)
        change = dict(now.change)
        for name, value in zip(("weight", "bias"), found, strict=True):
            if value is not None:
                old = now.values[f"{head}.{name}"]
                change[f"{head}.{name}"] = value.float().to(old) - old
        return change, {}

    def _estimated(self, sums: Sums, has_bias: bool) -> tuple[Head, float]:
        """Return the head, and the κ that is in it."""
        found = _METHODS[self.method](sums, self.shrinkage, has_bias)
        factor = scale_of(found, sums, self.logit_rms)
        return _times(found, factor), factor


@dataclass(frozen=True)
class FixedHead(Freeze):
    """The head at this path is not trained."""

    head: str

    def frozen(self, key: str, server_round: int) -> bool:
        """Whether the tensor belongs to it."""
        return key.startswith(f"{self.head}.")
