"""The accountant against closed forms, and against exact values of other accountants."""

from __future__ import annotations

import math

import pytest

from fedmoe_app.privacy.accountant import ORDERS, epsilon, epsilon_of, noise_for, rdp

# q, z, rounds; our own bound; the privacy loss distribution of dp-accounting 0.6 (and of
# prv-accountant 0.2, the same to four digits), all at δ = 1e-5
KNOWN = [
    (0.1, 1.0, 25, 4.555, 3.897),
    (0.5, 2.0, 25, 7.022, 6.421),
    (1.0, 4.0, 25, 6.123, 5.680),
    (0.01, 0.8, 25, 1.900, 1.109),
]


@pytest.mark.parametrize(("rate", "noise", "rounds", "own", "exact"), KNOWN)
def test_the_bound_is_safe_and_not_far_off(
    rate: float, noise: float, rounds: int, own: float, exact: float
) -> None:
    found = epsilon(rate, noise, rounds, 1e-5)
    assert exact <= found <= 1.72 * exact
    # Whole orders alone give a little more where q = 1.
    assert found == pytest.approx(own, rel=6e-3)


def test_one_round_of_the_whole_cohort_is_the_gaussian_mechanism() -> None:
    """RDP(α) = α/(2z²), and the sum over k of the general formula gives the same."""
    for order in (2, 5, 32):
        assert rdp(1.0, 2.0, order) == order / 8
        assert rdp(1 - 1e-12, 2.0, order) == pytest.approx(order / 8, rel=1e-6)


def test_order_two_by_hand() -> None:
    """Σ over k = 0, 1, 2: (1−q)² + 2q(1−q) + q²·e^(1/z²)."""
    q, z = 0.3, 1.5
    by_hand = math.log((1 - q) ** 2 + 2 * q * (1 - q) + q**2 * math.exp(1 / z**2))
    assert rdp(q, z, 2) == pytest.approx(by_hand, rel=1e-12)


def test_more_of_anything_spends_more() -> None:
    assert epsilon(0.1, 1.0, 0, 1e-5) == 0
    spent = [epsilon(0.1, 1.0, rounds, 1e-5) for rounds in range(1, 30)]
    assert spent == sorted(spent)
    assert epsilon(0.2, 1.0, 25, 1e-5) > epsilon(0.1, 1.0, 25, 1e-5) > epsilon(0.1, 1.1, 25, 1e-5)
    assert epsilon(0.1, 1.0, 25, 1e-6) > epsilon(0.1, 1.0, 25, 1e-5)


@pytest.mark.parametrize("rate", [0.01, 0.2, 1.0])
def test_the_noise_for_an_epsilon_spends_just_that(rate: float) -> None:
    noise = noise_for(4.0, rate, 25, 1e-5)
    assert 3.99 < epsilon(rate, noise, 25, 1e-5) <= 4.0


def test_an_epsilon_that_no_noise_reaches_is_refused() -> None:
    with pytest.raises(ValueError, match="epsilon = 1e-06"):
        noise_for(1e-6, 1.0, 25, 1e-5)


@pytest.mark.parametrize("rate", [0.1, 1.0])
@pytest.mark.parametrize("noise", [1e-200, 1e-162])
def test_noise_whose_square_is_no_number_spends_everything(rate: float, noise: float) -> None:
    assert epsilon(rate, noise, 5, 1e-5) == math.inf


def test_a_divergence_that_is_no_number_spends_everything() -> None:
    assert epsilon_of([math.nan, *[0.1] * (len(ORDERS) - 1)], 1e-5) == math.inf
