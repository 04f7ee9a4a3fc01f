"""What one client can do to a head in closed form: its sums are held against the median client's.

With the sums n_ic, s_ic and S_i of client i (:mod:`fedmoe_app.schemes.closedhead`), n_i = Σ_c n_ic,
and r_i = √(tr(S_i)/n_i), the root mean square of the lengths of its features:

    share   n_i ← min(n_i, share·median_j n_j, examples that i said in its last round)
            n_ic, s_ic and S_i shrink by one factor, so that class means stay what they are
    length  r_i ← min(r_i, length·median_j r_j)         s_ic by the factor, S_i by its square
    mean    ‖s_ic‖/n_ic ← at most length·median_j r_j   s_ic alone

The third is for classes of few examples, whose sum may be as long as the root of the whole trace.
The reference is the length of features and not that of other means: an honest mean is never longer
than its examples, while means of many examples may be short.

Medians run over the clients that have examples. Fewer than three of them have no majority and are
left alone. Sums within the bounds stay the same objects, bit for bit.

These are bounds of size, in the manner of norm clipping (Sun et al., 2019, arXiv:1911.07963): a
client still gives wrong labels to as many examples as twice the median client has.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fedmoe_app.schemes.views import Kept, Limits

MAJORITY = 3  # clients that have a median
_EXACT = 1 + 1e-6  # lengths that differ by float32's rounding are alike


class _Own(NamedTuple):
    """A client's n_i, r_i and the lengths of its class means."""

    examples: float
    length: float
    means: Tensor  # ‖s_ic‖/n_ic, [C] float64; 0 of a class without examples


def bounded_sums(sent: Sequence[Mapping[str, Tensor]], limits: Limits) -> list[Kept]:
    """Return clients' sums with none beyond the bounds, and what is left of each client's.

    Args:
        sent: ``counts`` [C], ``features`` [C, D] and ``moment``, the upper triangle [D·(D+1)/2], of
            N clients; such as some examples give.
        limits: of these clients, in the same order.
    """
    own = [_own(numbers) for numbers in sent]
    counting = [client for client in own if client.examples > 0]
    if len(counting) < MAJORITY:
        return [Kept(numbers) for numbers in sent]
    most = limits.share * statistics.median(client.examples for client in counting)
    longest = limits.length * statistics.median(client.length for client in counting)
    return [
        _bounded(numbers, client, min(most, said), longest)
        for numbers, client, said in zip(sent, own, limits.said, strict=True)
    ]


def _own(numbers: Mapping[str, Tensor]) -> _Own:
    counts, features = numbers["counts"].double(), numbers["features"].double()
    examples = float(counts.sum())
    trace = float(_diagonal(numbers["moment"], features.shape[1]).sum())
    means = torch.linalg.vector_norm(features, dim=1) / counts.where(counts > 0, 1.0)
    return _Own(examples, (max(trace, 0.0) / examples) ** 0.5 if examples else 0.0, means)


def _diagonal(upper: Tensor, dims: int) -> Tensor:
    """Return the diagonal of an upper triangle, ``[D]`` float64."""
    row, column = torch.triu_indices(dims, dims)
    return upper.double()[row == column]


def _bounded(numbers: Mapping[str, Tensor], own: _Own, most: float, longest: float) -> Kept:
    share = min(1.0, most / own.examples) if own.examples else 1.0
    length = _factor(own.length, longest)
    of_means = torch.tensor([_factor(length * mean, longest) for mean in own.means.tolist()])
    left = min(share, length, float(of_means.min()))
    if left >= 1:
        return Kept(numbers)
    rows = share * length * of_means.double()[:, None]  # [C, 1]
    small = {
        "counts": share * numbers["counts"].double(),
        "features": rows * numbers["features"].double(),
        "moment": share * length**2 * numbers["moment"].double(),
    }
    return Kept({name: tensor.to(numbers[name]) for name, tensor in small.items()}, left)


def _factor(length: float, longest: float) -> float:
    return 1.0 if length <= longest * _EXACT else longest / length
