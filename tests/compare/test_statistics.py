import math

import pytest

from fedmoe_app.compare.summary import estimate, paired_difference, rounds_reached


def test_interval_of_three_values() -> None:
    """Mean 0.7, s = 0.1; t(0.975, 2) = 4.302653 from the table; 4.302653·0.1/√3 = 0.248414."""
    found = estimate([0.6, 0.7, 0.8])
    assert found is not None
    assert found.n == 3
    assert found.mean == pytest.approx(0.7)
    assert found.std == pytest.approx(0.1)
    assert found.half_width == pytest.approx(0.248414, abs=1e-6)
    assert found.interval == pytest.approx((0.451586, 0.948414), abs=1e-6)


def test_interval_of_two_values() -> None:
    """s = 2/√2, t(0.975, 1) = 12.706205: 12.706205·(2/√2)/√2 = 12.706205."""
    found = estimate([1.0, 3.0])
    assert found is not None
    assert found.half_width == pytest.approx(12.706205, abs=1e-5)


def test_one_value_has_no_interval_and_none_no_estimate() -> None:
    found = estimate([0.5])
    assert found is not None
    assert (found.mean, found.std, found.interval) == (0.5, None, None)
    assert estimate([]) is None


def test_equal_values_have_an_interval_of_no_width() -> None:
    found = estimate([0.5, 0.5, 0.5])
    assert found is not None
    assert found.interval == (0.5, 0.5)


def test_differences_are_taken_seed_by_seed() -> None:
    """The seeds differ by far more than the schemes: 0.1, 0.1 and 0.13 of difference."""
    found = paired_difference({1: 0.3, 2: 0.6, 3: 0.93}, {3: 0.8, 2: 0.5, 1: 0.2})
    assert found is not None
    assert found.mean == pytest.approx(0.11)
    assert found.std == pytest.approx(math.sqrt((0.01**2 + 0.01**2 + 0.02**2) / 2))
    assert found.half_width == pytest.approx(4.302653 * found.std / math.sqrt(3), rel=1e-6)


def test_only_common_seeds_count() -> None:
    found = paired_difference({1: 0.3, 2: 0.6}, {2: 0.5, 3: 0.1})
    assert found is not None
    assert (found.n, found.mean) == (1, pytest.approx(0.1))
    assert paired_difference({1: 0.3}, {2: 0.5}) is None


def test_rounds_are_averaged_over_the_runs_that_got_there() -> None:
    found = rounds_reached([3, None, 6])
    assert (found.mean, found.reached, found.of) == (4.5, 2, 3)
    never = rounds_reached([None, None])
    assert (never.mean, never.reached, never.of) == (None, 0, 2)
