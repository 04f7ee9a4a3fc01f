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
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fedmoe_app.config.errors import ConfigError
from fedmoe_app.moe.shape import ModelShape
from fedmoe_app.moe.state import Tensors
from fedmoe_app.schemes.base import Run, Scheme
from fedmoe_app.schemes.parts import Client, Field, Freeze, OfOutput, Server, Step
from fedmoe_app.schemes.views import Now, Outputs

_MOST_EXAMPLES = 1e8
_LARGEST = 1e12  # of a sum of features or of their products


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
    means = sums.features / counts.clamp_min(1)[:, None]  # [C, D]
    mean = sums.features.sum(dim=0) / total  # [D]
    within = sums.moment - (counts[:, None] * means).T @ means
    within = within / max(float(total) - int(present.sum()), 1.0)
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
    moment = sums.moment - total * torch.outer(mean, mean)
    moment = _shrunk(moment, shrinkage, (1.0, shrinkage), dims)
    centred = sums.features - torch.outer(sums.counts, mean)
    weight = torch.linalg.solve(moment, centred.T).T
    return Head(weight, sums.counts / total - weight @ mean)


def rescaled(head: Head, sums: Sums, logit_rms: float) -> Head:
    """Return a head whose logits, less their mean over classes, have this root mean square.

    Args:
        head: any.
        sums: of the examples over which it is taken.
        logit_rms: r > 0; 0 leaves the head as it is.
    """
    weight = head.weight - head.weight.mean(dim=0)
    square = ((weight @ sums.moment) * weight).sum()
    if head.bias is not None:
        bias = head.bias - head.bias.mean()
        square = square + 2 * bias @ weight @ sums.features.sum(dim=0)
        square = square + sums.counts.sum() * bias.square().sum()
    rms = float((square / (sums.counts.sum() * len(weight))).clamp_min(0).sqrt())
    if not logit_rms or not rms:
        return head
    factor = logit_rms / rms
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

    def _total(self, now: Now) -> Sums:
        """Add up what the clients sent, in float64."""
        prefix = type(self).__name__
        totals = {
            name: torch.stack([sent[f"{prefix}/{name}"] for sent in now.info.statistics])
            .double()
            .sum(dim=0)
            for name in ("counts", "features", "moment")
        }
        dims = totals["features"].shape[1]
        row, column = torch.triu_indices(dims, dims)
        moment = torch.zeros(dims, dims, dtype=torch.float64)
        moment[row, column] = moment[column, row] = totals["moment"]
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
        found = _METHODS[self.method](sums, self.shrinkage, has_bias)
        found = rescaled(found, sums, self.logit_rms)
        change = dict(now.change)
        for name, value in zip(("weight", "bias"), found, strict=True):
            if value is not None:
                old = now.values[f"{head}.{name}"]
                change[f"{head}.{name}"] = value.float().to(old) - old
        return change, {}


@dataclass(frozen=True)
class FixedHead(Freeze):
    """The head at this path is not trained."""

    head: str

    def frozen(self, key: str, server_round: int) -> bool:
        """Whether the tensor belongs to it."""
        return key.startswith(f"{self.head}.")


@dataclass(frozen=True)
class ClosedFormHead(Scheme):
    """Any scheme, with its classification head in closed form.

    Attributes:
        scheme: whose everything else is.
        when: "before" the run, "every-round" as well, or "after" the run.
        method: "lda" or "ridge".
        shrinkage: γ.
        logit_rms: r; 0 leaves the head's scale as it comes out.
        fixed: clients do not train the head; means nothing with "after".
    """

    scheme: Scheme
    when: str = "before"
    method: str = "lda"
    shrinkage: float = 0.1
    logit_rms: float = 2.0
    fixed: bool = True

    def check(self, run: Run) -> Sequence[str]:
        """Refuse a run without such a head, or with sums of different models."""
        key = f'head.closed-form = "{self.when}"'
        run.needs_classes(key)
        if not run.model.head:
            raise ConfigError(
                f"{key}: the model has no classification head that is trained; choose "
                'model.head = "sequence", a family that has such a head, and model.train-head = '
                "true"
            )
        if run.chosen:
            raise ConfigError(
                f"{key}: nodes that load other experts compute other features, whose sums mean "
                'nothing; set model.experts-in-memory = "all"'
            )
        if run.buffered and self.when == "every-round":
            raise ConfigError(
                f"{key}: in buffered rounds features come from models of different rounds; choose "
                '"before" or "after", or rounds = "sync"'
            )
        return self.scheme.check(run)

    def client(self, model: ModelShape) -> Client:
        """Leave the head alone, if it is fixed."""
        half = self.scheme.client(model)
        if half.personal is not None:
            raise ValueError(
                "head.closed-form: a personal copy of the model has a head of its own; choose "
                'head.closed-form = "none"'
            )
        if not self.fixed or self.when == "after":
            return half
        if half.freeze is not None:
            raise ValueError(
                f"head.fixed = true: {type(half.freeze).__name__} freezes tensors already; choose "
                "head.fixed = false"
            )
        return replace(half, freeze=FixedHead(model.head))

    def server(self, model: ModelShape) -> Server:
        """Estimate the head when it is due."""
        half = self.scheme.server(model)
        sums = FeatureSums(model.head)
        step = EstimateHead(sums, self.method, self.shrinkage, self.logit_rms)
        if self.when == "after":
            return replace(half, after=(*half.after, step))
        steps = (*half.steps, step) if self.when == "every-round" else half.steps
        return replace(half, before=(*half.before, step), steps=steps)
