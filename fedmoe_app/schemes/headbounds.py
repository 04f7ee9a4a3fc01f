"""What one client can do to a head in closed form: its sums are held against the other clients'.

Client i's sums (:mod:`fedmoe_app.schemes.closedhead`) are those of n_ic examples a class around the
means μ_ic = s_ic/n_ic, with a scatter within classes W_i = S_i − Σ_c n_ic·μ_ic·μ_icᵀ. With
n_i = Σ_c n_ic, the length r_i = √(tr(S_i)/n_i) of its features, the width
w_i = tr(W_i)/(n_i − C_i) over its C_i classes, and medians over clients,

    share   n_i ≤ share·median n_j, and no more than the examples that i said in its last round
    length  r_i ≤ length·median r_j, and ‖μ_ic‖ ≤ length·median r_j
    width   w_i ≤ length²·median w_j
    spread  ‖μ_ic − g_c‖ ≤ spread·σ·√(D̂·(1/n_ic + 1/n_-ic))

What is beyond shrinks: all n_ic by one factor, so that means stay what they are; features by one;
W_i by one; and a mean is drawn to g_c. Within all bounds the sums stay the same objects, bit for
bit. Means are held against the length of features and not of other means, since an honest mean is
no longer than its examples, while that of many examples may be short.

**spread** is against wrong labels, which are of usual size. Under label skew clients have other
classes, but what they have of one class is drawn alike: two means differ by the sampling error.
g_c is the geometric median of the means of class c over the clients that have it, weighed by
√n_ic; distances are those of Mahalanobis by Ŵ = (1−γ)·W + γ·tr(W)/D·I with W = Σ_i W_i/(n − Σ C_i),
which no wrong name of a class moves, since each W_i is around its own means. D̂ = tr(Ŵ⁻¹·W) is what
d² is of one example, and n_-ic are the examples of the class at the others. σ ≥ 1 is the median of
d over that error, over all pairs of class and client that do not make g_c themselves: where
clients' texts differ, too, it is larger. That is centred clipping (Karimireddy et al., ICML 2021,
arXiv:2012.10333), of class means and in units of the sampling error; to do it so is ours. A class
that fewer than three clients have has no majority, and no such bound.

Medians run over clients that have examples. Fewer than three have none: all is left alone.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from fedmoe_app.schemes.robust import geometric_median
from fedmoe_app.schemes.views import Kept, Limits

MAJORITY = 3  # clients that have a median
_EXACT = 1 + 1e-6  # figures that differ by float32's rounding are alike
_SHRINKAGE = 0.1  # γ
_ITERATIONS = 50  # of the geometric median


@dataclass(frozen=True)
class _Client:
    """A client's sums as they are used.

    Attributes:
        sent: n_c, s_c and the upper triangle of S, as they came.
        share: what is left of the examples.
        width: what is left of W, beside the share.
        means: μ_c where they moved, ``[C, D]`` float64; None where they did not.
        least: the smallest factor of all.
    """

    sent: Mapping[str, Tensor]
    share: float = 1.0
    width: float = 1.0
    means: Tensor | None = None
    least: float = 1.0

    @property
    def counts(self) -> Tensor:
        """What is left of n_c, ``[C]`` float64."""
        return self.share * self.sent["counts"].double()

    @property
    def own_means(self) -> Tensor:
        """μ_c as they came, ``[C, D]`` float64; 0 of a class without examples."""
        counts = self.sent["counts"].double()
        return self.sent["features"].double() / counts.where(counts > 0, 1.0)[:, None]

    @property
    def used_means(self) -> Tensor:
        """μ_c as they are used."""
        return self.own_means if self.means is None else self.means

    def within(self) -> Tensor:
        """Return what is left of W, ``[D, D]`` float64."""
        means, counts = self.own_means, self.sent["counts"].double()
        moment = symmetric(self.sent["moment"].double(), means.shape[1])
        return self.share * self.width * (moment - (counts[:, None] * means).T @ means)

    def kept(self) -> Kept:
        """Return the sums of what is left."""
        if self.least >= 1:
            return Kept(self.sent)
        counts, means = self.counts, self.used_means
        features = counts[:, None] * means
        moment = self.within() + features.T @ means
        row, column = torch.triu_indices(*moment.shape)
        new = {"counts": counts, "features": features, "moment": moment[row, column]}
        return Kept({name: t.to(self.sent[name]) for name, t in new.items()}, self.least)


def bounded_sums(sent: Sequence[Mapping[str, Tensor]], limits: Limits) -> list[Kept]:
    """Return clients' sums with none beyond the bounds, and what is left of each client's.

    Args:
        sent: ``counts`` [C], ``features`` [C, D] and ``moment``, the upper triangle [D·(D+1)/2], of
            N clients; such as some examples give.
        limits: of these clients, in the same order.
    """
    clients = [_Client(numbers) for numbers in sent]
    sizes = [_size(client) for client in clients]
    counting = [size for size in sizes if size.examples > 0]
    if len(counting) >= MAJORITY:
        usual = _usual(counting)
        clients = [
            _sized(client, size, usual, limits, said)
            for client, size, said in zip(clients, sizes, limits.said, strict=True)
        ]
        clients = _centred(clients, limits.spread)
    return [client.kept() for client in clients]


def symmetric(upper: Tensor, dims: int) -> Tensor:
    """Return the matrix ``[D, D]`` of an upper triangle ``[D·(D+1)/2]``, float64."""
    row, column = torch.triu_indices(dims, dims)
    matrix = torch.zeros(dims, dims, dtype=torch.float64)
    matrix[row, column] = matrix[column, row] = upper
    return matrix


# -- sizes -------------------------------------------------------------------------------------


class _Size(NamedTuple):
    """n_i, r_i and w_i; w_i is 0 where no class has two examples."""

    examples: float
    length: float
    width: float


def _size(client: _Client) -> _Size:
    counts, features = client.counts, client.sent["features"].double()
    dims = features.shape[1]
    row, column = torch.triu_indices(dims, dims)
    trace = float(client.sent["moment"].double()[row == column].sum())
    of_means = float((features.square().sum(dim=1) / counts.where(counts > 0, 1.0)).sum())
    examples = float(counts.sum())
    free = examples - int((counts > 0).sum())
    length = (max(trace, 0.0) / examples) ** 0.5 if examples else 0.0
    return _Size(examples, length, max(trace - of_means, 0.0) / free if free > 0 else 0.0)


def _usual(sizes: Sequence[_Size]) -> _Size:
    """Return the medians; that of the width over those that have one."""
    widths = [size.width for size in sizes if size.width > 0]
    return _Size(
        statistics.median(size.examples for size in sizes),
        statistics.median(size.length for size in sizes),
        statistics.median(widths) if len(widths) >= MAJORITY else float("inf"),
    )


def _sized(client: _Client, size: _Size, usual: _Size, limits: Limits, said: float) -> _Client:
    """Bound examples, lengths and width."""
    if not size.examples:
        return client
    longest = limits.length * usual.length
    share = _factor(size.examples, min(limits.share * usual.examples, said))
    length = _factor(size.length, longest)
    means = client.own_means
    of_means = [_factor(length * norm, longest) for norm in means.norm(dim=1).tolist()]
    width = _factor(length**2 * size.width, limits.length**2 * usual.width)
    least = min(share, length, width, *of_means)
    if least >= 1:
        return client
    rows = length * torch.tensor(of_means, dtype=torch.float64)[:, None]  # [C, 1]
    return replace(client, share=share, width=length**2 * width, means=rows * means, least=least)


def _factor(found: float, most: float) -> float:
    return 1.0 if found <= most * _EXACT else most / found


# -- wrong labels ------------------------------------------------------------------------------


class _Class(NamedTuple):
    """How far the clients that have a class are from its centre.

    Attributes:
        holders: positions of these clients, ``[H]``.
        centre: g_c, ``[D]``.
        ratios: d over its sampling error, ``[H]``.
        is_other: whether g_c is made by others for the larger part, ``[H]``.
    """

    holders: list[int]
    centre: Tensor
    ratios: Tensor
    is_other: Tensor


def _centred(clients: Sequence[_Client], spread: float) -> list[_Client]:
    """Draw means that are too far from those of others to the centre of their class."""
    found = list(clients)
    classes = list(_classes(clients))
    if not classes:
        return found
    ratios = torch.cat([own.ratios[own.is_other] for own in classes]).tolist()
    most = spread * max(1.0, statistics.median(ratios) if ratios else 1.0)
    for label, own in enumerate(classes):
        for position, ratio in zip(own.holders, own.ratios.tolist(), strict=True):
            if ratio > most:
                client = found[position]
                means = client.used_means.clone()
                means[label] = own.centre + (means[label] - own.centre) * (most / ratio)
                least = min(client.least, most / ratio)
                found[position] = replace(client, means=means, least=least)
    return found


def _classes(clients: Sequence[_Client]) -> Iterator[_Class]:
    """Yield the classes in order; none where no client has two examples of a class."""
    counts = torch.stack([client.counts for client in clients])  # [N, C]
    free = float(counts.sum()) - int((counts > 0).sum())
    within = sum((client.within() for client in clients), torch.zeros(())) / max(free, 1.0)
    scale = within.diagonal().mean()
    if free <= 0 or not scale > 0:
        return
    shrunk = (1 - _SHRINKAGE) * within + _SHRINKAGE * scale * torch.eye(len(within)).double()
    root, fault = torch.linalg.cholesky_ex(shrunk)
    if fault:
        return
    of_one = float(torch.cholesky_solve(within, root).diagonal().sum())  # D̂
    for label in range(counts.shape[1]):
        holders = counts[:, label].nonzero()[:, 0].tolist()
        means = torch.stack([clients[i].used_means[label] for i in holders] or [within[0]])
        yield _class(holders, counts[holders, label], means, root, of_one)


def _class(
    holders: list[int], counts: Tensor, means: Tensor, root: Tensor, of_one: float
) -> _Class:
    if len(holders) < MAJORITY:
        nowhere = torch.zeros(len(holders), dtype=torch.float64)
        return _Class(holders, means[0], nowhere, nowhere > 0)
    white = torch.linalg.solve_triangular(root, means.T, upper=False).T  # [H, D]
    weights = counts.sqrt() / counts.sqrt().sum()
    of_centre = geometric_median(white @ white.T, weights, _ITERATIONS)
    distances = torch.linalg.vector_norm(white - of_centre @ white, dim=1)
    error = (of_one * (1 / counts + 1 / (counts.sum() - counts))).sqrt()
    return _Class(holders, of_centre @ means, distances / error, of_centre < 0.5)
