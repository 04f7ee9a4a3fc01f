"""Random projection: cosines between the changes of very many clients, in bounded memory.

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

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

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
