"""Sums over clients in client order, so that a run is reproducible bit for bit, and cosines.

Random projection: cosines between the changes of very many clients, in bounded memory.

All cosines of M changes of P values need M·P values in memory and M²·P products. A sparse random
projection R [k, P] keeps ⟨R·x, R·y⟩ = ⟨x, y⟩ in the mean, so that M·k values are enough:

    (R·x)_b = Σ_j s_j·x_j over the j with h(j) = b          s_j = ±1 at random, one R a part
    R       = c parts of k/c rows, each scaled by 1/√c

Kane and Nelson, "Sparser Johnson-Lindenstrauss Transforms", 2014, arXiv:1012.1577: the block form,
c non-zero entries a column. With ‖x‖ = ‖y‖ = 1 the variance of ⟨R·x, R·y⟩ is at most
(1 + ⟨x, y⟩²)/k, so that the error of a cosine is about 1/√k: 0.016 for k = 4096. ``h`` deals each
run of k/c values out to the k/c rows, which only lowers the variance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from fedmoe_app.moe.state import Tensors

CHUNK = 1 << 16  # values that are summed over all clients at a time: they fit into a core's cache
BLOCK = 1 << 17  # columns of a product of changes at a time


def weighted_sum(weights: Tensor, deltas: Tensor | Sequence[Tensor]) -> Tensor:
    """Σ_i weights[i]·deltas[i], added in client order in float32.

    It needs the memory of one result, however many clients there are.

    Args:
        weights: ``[N]``, or ``[N, R]`` for one weight a row when ``deltas`` is ``[N, R, ...]``.
        deltas: ``[N, ...]``, or N tensors of one shape.
    """
    if len(weights) != len(deltas):
        raise ValueError(f"weights of shape {list(weights.shape)} for {len(deltas)} clients")
    total = torch.zeros(deltas[0].shape, dtype=torch.float32, device=deltas[0].device)
    if weights.dim() == 1:
        return add_scaled(total, weights.float().tolist(), deltas)
    for weight, delta in zip(weights.float(), deltas, strict=True):
        total += weight.reshape(weight.shape + (1,) * (delta.dim() - weight.dim())) * delta
    return total


def add_scaled(
    total: Tensor, factors: Sequence[float], deltas: Tensor | Sequence[Tensor]
) -> Tensor:
    """Add Σ_i factors[i]·deltas[i] to ``total``, which is contiguous, in client order; return it.

    A chunk of values over all clients at a time stays in the core's cache. Each value goes through
    the same steps whatever the chunk, so that adding some clients now and others later is the same
    bit for bit.
    """
    flat = total.view(-1)
    rows = [delta.reshape(-1) for delta in deltas]  # views
    chunk = CHUNK if len(rows) > 1 else max(flat.numel(), 1)
    for start in range(0, flat.numel(), chunk):
        part = flat[start : start + chunk]
        for factor, row in zip(factors, rows, strict=True):
            part.add_(row[start : start + chunk], alpha=factor)
    return total


def add_named(totals: Tensors, prefix: str, numbers: Mapping[str, Tensor]) -> None:
    """Add numbers to their totals, in float64, by ``prefix/name``."""
    for name, number in numbers.items():
        key = f"{prefix}/{name}"
        totals[key] = totals[key] + number if key in totals else number.double()


def mean_of(total: Tensor, parts: Tensor) -> Tensor:
    """Divide a sum over clients, in place, by Σ_i parts[i], ``[N]``; zeros where that is 0."""
    whole = float(parts.sum())
    return total.div_(whole) if whole else total.zero_()


def shares(values: Tensor) -> Tensor:
    """Divide values ≥ 0 by their sum over the clients (dim 0), float64; a zero sum gives zeros."""
    tiny = torch.finfo(torch.float64).tiny
    return normalize(values.double(), p=1.0, dim=0, eps=tiny)


def cosines(vectors: Tensor) -> Tensor:
    """Return cos(v_i, v_j), ``[N, N]`` float64: 1 on the diagonal, 0 of a zero vector to others.

    Products run over blocks of columns, so that no second copy of the vectors is made.
    """
    gram = torch.zeros(len(vectors), len(vectors), dtype=torch.float64, device=vectors.device)
    if vectors.numel():
        low, high = vectors.aminmax(dim=1)
        wide = torch.promote_types(vectors.dtype, torch.float32)
        # Largest entry 1 first, so that no square overflows or vanishes.
        largest = torch.maximum(-low, high).to(wide).clamp_min(torch.finfo(wide).tiny)  # [N]
        for block in vectors.split(BLOCK, dim=1):
            scaled = block.to(wide) / largest.unsqueeze(1)
            gram += scaled @ scaled.T  # [N, N]
    lengths = gram.diagonal().sqrt()
    cosines = gram / torch.outer(lengths, lengths).where(gram != 0, 1.0)
    return cosines.clamp(-1, 1).fill_diagonal_(1.0)


def gram(vectors: Tensor) -> Tensor:
    """Return ⟨v_i, v_j⟩ of ``[N, P]``, ``[N, N]`` float64; a block of columns at a time."""
    total = torch.zeros(len(vectors), len(vectors), dtype=torch.float64)
    for block in vectors.split(BLOCK, dim=1):
        wide = block.double()
        total += wide @ wide.T
    return total


def norms(rows: Sequence[Tensor] | Tensor) -> Tensor:
    """‖v_i‖ of N vectors ``[P]``, taken one at a time, ``[N]`` float64."""
    found = [float(torch.linalg.vector_norm(row, dtype=torch.float64)) for row in rows]
    return torch.tensor(found, dtype=torch.float64)


def dots(rows: Sequence[Tensor] | Tensor, vector: Tensor) -> Tensor:
    """⟨v_i, vector⟩ of N vectors ``[P]``, taken one at a time, ``[N]`` float64."""
    # A float64 copy of all changes would double the server's memory.
    wide = vector.double()
    return torch.tensor([float(row.double() @ wide) for row in rows], dtype=torch.float64)


def all_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite; one pass that makes no copy."""
    if not tensor.numel():
        return True
    low, high = tensor.aminmax()  # a NaN becomes both
    return math.isfinite(low) and math.isfinite(high)


def mean_of_pairs(matrix: Tensor) -> float:
    """Return the mean of a matrix ``[M, M]`` off its diagonal; nan for one member."""
    count = len(matrix)
    if count < 2:
        return math.nan
    return float((matrix.sum() - matrix.diagonal().sum()) / (count * (count - 1)))


PARTS = 4  # c: non-zero entries a column


@dataclass(frozen=True)
class PairRule:
    """How the cosines between clients' changes are worked out.

    Attributes:
        exact_up_to: clients up to which all products are taken; beyond them, changes are projected.
        size: k, values of a projected change; a multiple of 4.
        seed: of the projection.
    """

    exact_up_to: int = 256
    size: int = 4096
    seed: int = 0

    def is_exact(self, num_clients: int, num_values: int) -> bool:
        """Whether the products of so many changes of so many values are taken as they are."""
        return num_clients <= self.exact_up_to or num_values <= self.size


def project(rows: Sequence[Tensor], num_values: int, rule: PairRule) -> Tensor:
    """Project changes ``[P]``, one at a time, to ``[M, k]`` float32.

    The same seed, P and k give the same projection, on every machine.
    """
    width = rule.size // PARTS
    # Hashed: the run's seed itself also makes the model, and must not give the same numbers here.
    seeds = np.random.SeedSequence([rule.seed, num_values, rule.size]).generate_state(PARTS)
    projections = [_Part(num_values, width, int(seed)) for seed in seeds]
    projected = torch.empty(len(rows), PARTS, width)
    for position in range(len(rows)):
        row = rows[position]
        for number, part in enumerate(projections):
            projected[position, number] = part(row)
    return projected.view(len(rows), PARTS * width) / PARTS**0.5


class _Part:
    """One signed sum of P values into ``width`` rows."""

    def __init__(self, num_values: int, width: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        runs = -(-num_values // width)
        order = torch.rand(runs, width, generator=generator).argsort(dim=1)  # [runs, width]
        signs = torch.randint(0, 2, (runs, width), generator=generator, dtype=torch.int8)
        self._width, self._padding = width, runs * width - num_values
        self._order = (order + width * torch.arange(runs).unsqueeze(1)).view(-1).int()
        self._signs = (2 * signs - 1).view(-1)

    def __call__(self, row: Tensor) -> Tensor:
        padded = torch.nn.functional.pad(row, (0, self._padding))
        dealt = padded.index_select(0, self._order) * self._signs  # [runs·width]
        return dealt.view(-1, self._width).sum(dim=0)
