"""FedAlign-MoE's pair weights for experts, on two and three clients by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmoe_app import semantic_weights

# Two clients see the same region, the third an orthogonal one; all changes point the same way.
# S = [[1, 1, 0], [1, 1, 0], [0, 0, 1]]: mean 5/9, variance 5/9·4/9, so τ = 5/9 − √20/9 = 0.058653
REGIONS = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]])  # [N, D]
ALIKE = torch.tensor([[1.0, 1.0], [2.0, 2.0], [0.1, 0.1]])  # [N, P]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_semantic_weights_by_hand() -> None:
    tau = 5 / 9 - math.sqrt(20) / 9
    near, far = sigmoid(1 - tau), sigmoid(-tau)  # γ = 0.719381 and 0.485341
    votes = torch.tensor([2 * near + far, 2 * near + far, near + 2 * far])
    weights = semantic_weights(REGIONS, ALIKE)
    torch.testing.assert_close(weights, votes / votes.sum())
    assert weights.tolist() == pytest.approx([0.347420, 0.347420, 0.305161], abs=1e-5)


def test_beta_temperature_and_threshold() -> None:
    for extra, tau, t in (
        ({"beta": 0.0}, 5 / 9, 1),
        ({"threshold": 0.5, "temperature": 0.1}, 0.5, 0.1),
    ):
        near, far = sigmoid((1 - tau) / t), sigmoid(-tau / t)
        weights = semantic_weights(REGIONS, ALIKE, **extra)
        assert weights[2].item() == pytest.approx((near + 2 * far) / (5 * near + 4 * far))


def test_opposed_changes_do_not_vote_for_each_other() -> None:
    # D = [[1, 0.6, −1], [0.6, 1, −0.6], [−1, −0.6, 1]], regions equal: γ = max(0, D)/2
    deltas = torch.tensor([[1.0, 0.0], [0.6, 0.8], [-1.0, 0.0]])
    weights = semantic_weights(torch.ones(3, 2), deltas)
    assert weights.tolist() == pytest.approx([1.6 / 4.2, 1.6 / 4.2, 1 / 4.2])
    off = semantic_weights(torch.ones(3, 2), deltas, direction=False)
    assert off.tolist() == pytest.approx([1 / 3] * 3)


def test_a_client_that_changed_nothing_votes_for_itself_alone() -> None:
    deltas = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    # regions equal: γ = D/2 with D = [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    assert semantic_weights(torch.ones(3, 2), deltas).tolist() == pytest.approx([0.4, 0.4, 0.2])


def test_uniform_where_nothing_tells_clients_apart() -> None:
    opposed = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])  # every D_ij ≤ 0
    one_without_tokens = REGIONS * torch.tensor([[1.0], [0.0], [1.0]])
    for regions, deltas in (
        (REGIONS, opposed),
        (one_without_tokens, opposed),
        (REGIONS, torch.zeros(3, 2)),
        (torch.zeros(3, 2), torch.zeros(3, 2)),
        (torch.ones(3, 2), ALIKE),
    ):
        assert semantic_weights(regions, deltas).tolist() == pytest.approx([1 / 3] * 3)
    underflow = semantic_weights(REGIONS, ALIKE, threshold=2.0, temperature=1e-6)
    assert underflow.tolist() == pytest.approx([1 / 3] * 3)


def test_one_client_and_permuted_clients() -> None:
    assert semantic_weights(REGIONS[:1], torch.zeros(1, 2)).tolist() == [1.0]
    order, generator = [2, 0, 3, 1], torch.Generator().manual_seed(3)
    regions, deltas = torch.randn(2, 4, 6, generator=generator)
    torch.testing.assert_close(
        semantic_weights(regions[order], deltas[order]), semantic_weights(regions, deltas)[order]
    )


def test_two_clients_always_share_equally() -> None:
    regions, deltas = torch.randn(2, 2, 6, generator=torch.Generator().manual_seed(4))
    assert semantic_weights(regions, deltas).tolist() == pytest.approx([0.5, 0.5])


def test_a_temperature_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="temperature = 0: must be above 0"):
        semantic_weights(torch.eye(2), torch.eye(2), temperature=0)


number = st.one_of(st.just(0.0), st.floats(-(2.0**120), 2.0**120, width=32))
tables = st.lists(st.lists(number, min_size=3, max_size=3), min_size=4, max_size=4)


@settings(max_examples=100, deadline=None)
@given(tables, tables, st.integers(1, 4), st.floats(0.01, 10), st.floats(0, 3))
def test_semantic_weights_sum_to_one(
    regions: list, deltas: list, clients: int, temperature: float, beta: float
) -> None:
    weights = semantic_weights(
        torch.tensor(regions)[:clients], torch.tensor(deltas)[:clients], beta, temperature
    )
    assert (weights >= 0).all() and float(weights.sum()) == pytest.approx(1.0, abs=1e-5)
