"""Random projections: the error of cosines, and of the weights made of them, against exact ones."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fedmoe_app import PairRule
from fedmoe_app.schemes.fedalign import pair_weights, similarity_threshold
from fedmoe_app.schemes.sums import BLOCK, cosines, project

M, P, K = 40, 20_000, 1024


def changes(seed: int, common: float) -> Tensor:
    """M changes of P values with a common part; sizes of values differ as in real tensors."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.rand(P, generator=generator) ** 4
    shared = torch.randn(P, generator=generator)
    return (torch.randn(M, P, generator=generator) + common * shared) * scale


@pytest.mark.parametrize("common", [0.0, 0.3, 2.0])
def test_cosines_err_by_one_over_the_root_of_k(common: float) -> None:
    vectors = changes(1, common)
    error = cosines(project(vectors.unbind(), P, PairRule(size=K))) - cosines(vectors)
    pairs = error[~torch.eye(M, dtype=torch.bool)]
    # Var ≤ (1 + c²)/k ≤ 2/k; Johnson-Lindenstrauss: all of M² pairs within √(8·ln(M²)/k).
    assert pairs.square().mean().sqrt() <= math.sqrt(2 / K)
    assert pairs.abs().max() <= math.sqrt(8 * math.log(M**2) / K)


def test_products_are_right_in_the_mean() -> None:
    left, right = changes(2, 0.5)[:2]
    found = []
    for seed in range(60):
        a, b = project([left, right], P, PairRule(size=64, seed=10 * seed))
        found.append(float(a @ b))
    spread = math.sqrt(2 / 64 / len(found)) * float(left.norm() * right.norm())
    assert abs(sum(found) / len(found) - float(left @ right)) <= 3 * spread


def test_weights_of_fedalign_move_little() -> None:
    vectors = changes(3, 0.2)
    regions = torch.randn(M, 16, generator=torch.Generator().manual_seed(4))
    similarity = cosines(regions)
    threshold = similarity_threshold(similarity, 1.0)
    exact = pair_weights(similarity, cosines(vectors), threshold)
    projected = cosines(project(vectors.unbind(), P, PairRule(size=K)))
    error = pair_weights(similarity, projected, threshold) - exact
    assert error.abs().sum() / 2 <= 0.1  # total variation; weights sum to 1


def test_a_seed_gives_the_same_projection_and_another_one_another() -> None:
    rows = changes(5, 0.0)[:2].unbind()
    first, again = (project(rows, P, PairRule(size=64, seed=1)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, project(rows, P, PairRule(size=64, seed=2)))


def test_few_clients_and_small_experts_are_exact() -> None:
    rule = PairRule(exact_up_to=256, size=4096)
    assert rule.is_exact(256, 10**6)
    assert rule.is_exact(10_000, 4096)
    assert not rule.is_exact(257, 4097)


def test_cosines_in_blocks_of_columns() -> None:
    vectors = torch.randn(3, BLOCK + 5, generator=torch.Generator().manual_seed(6)).double()
    wanted = torch.nn.functional.cosine_similarity(vectors[0], vectors[2], dim=0)
    assert cosines(vectors)[0, 2] == pytest.approx(float(wanted), abs=1e-12)
