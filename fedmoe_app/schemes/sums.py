"""Sums over clients in client order, so that a run is reproducible bit for bit, and cosines."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize


def weighted_sum(weights: Tensor, deltas: Tensor | Sequence[Tensor]) -> Tensor:
    """Σ_i weights[i]·deltas[i], added in client order in float32.

    Args:
        weights: ``[N]``, or ``[N, R]`` for one weight a row when ``deltas`` is ``[N, R, ...]``.
        deltas: ``[N, ...]``, or N tensors of one shape.
    """
    if len(weights) != len(deltas):
        raise ValueError(f"weights of shape {list(weights.shape)} for {len(deltas)} clients")
    total = torch.zeros_like(deltas[0], dtype=torch.float32)
    for weight, delta in zip(weights.float(), deltas, strict=True):
        total += weight.reshape(weight.shape + (1,) * (delta.dim() - weight.dim())) * delta
    return total


def shares(values: Tensor) -> Tensor:
    """Divide values ≥ 0 by their sum over the clients (dim 0), float64; a zero sum gives zeros."""
    tiny = torch.finfo(torch.float64).tiny
    return normalize(values.double(), p=1.0, dim=0, eps=tiny)


def cosines(vectors: Tensor) -> Tensor:
    """Return cos(v_i, v_j), ``[N, N]`` float64: 1 on the diagonal, 0 of a zero vector to others."""
    wide = vectors.to(torch.promote_types(vectors.dtype, torch.float32))  # [N, D]
    # Largest entry 1 first, so that no square overflows or vanishes.
    scaled = normalize(wide, p=torch.inf, dim=1, eps=torch.finfo(wide.dtype).tiny)
    gram = (scaled @ scaled.T).double()  # [N, N]
    lengths = gram.diagonal().sqrt()
    cosines = gram / torch.outer(lengths, lengths).where(gram != 0, 1.0)
    return cosines.clamp(-1, 1).fill_diagonal_(1.0)


def mean_of_pairs(matrix: Tensor) -> float:
    """Return the mean of a matrix ``[M, M]`` off its diagonal; nan for one member."""
    count = len(matrix)
    if count < 2:
        return math.nan
    return float((matrix.sum() - matrix.diagonal().sum()) / (count * (count - 1)))
