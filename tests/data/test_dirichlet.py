"""The Dirichlet partition: how shares become rows, and that the shares are Dirichlet."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmoe_app.data.dirichlet import SmallPartError, dirichlet_parts, round_shares


def counts_of(codes: np.ndarray, parts: list[np.ndarray]) -> np.ndarray:
    """Rows of each class in each part, ``[C, N]``."""
    width = int(codes.max()) + 1
    return np.array([np.bincount(codes[rows], minlength=width) for rows in parts]).T


def rounded(shares: list[list[float]], sizes: list[int], seed: int = 0) -> list[list[int]]:
    array = np.array(shares)
    missing = np.zeros(array.shape[1])
    return round_shares(array, np.array(sizes), missing, np.random.default_rng(seed)).tolist()


def test_what_is_left_goes_to_the_largest_remainders() -> None:
    # 10 rows in shares of 0.47, 0.34, 0.19: 4.7, 3.4 and 1.9, so 4, 3, 1 and two more rows.
    assert rounded([[0.47, 0.34, 0.19]], [10]) == [[5, 3, 2]]
    # 7 rows in shares of 0.5, 0.3, 0.2: 3.5, 2.1 and 1.4.
    assert rounded([[0.5, 0.3, 0.2]], [7]) == [[4, 2, 1]]
    assert rounded([[0.25, 0.75]], [8]) == [[2, 6]]  # nothing is left
    assert rounded([[1.0]], [3]) == [[3]]


def test_of_equal_remainders_the_one_that_lacks_most_gets_the_row() -> None:
    # A row a class and 4 equal parts: any four classes in turn serve every part once.
    counts = np.array(rounded([[0.25] * 4] * 12, [1] * 12))
    assert counts.sum(axis=1).tolist() == [1] * 12
    for start in range(0, 12, 4):
        assert counts[start : start + 4].sum(axis=0).tolist() == [1, 1, 1, 1]
    # Part 0 has got 0.4 less than its share of the first class, so it gets the second class's row.
    assert rounded([[0.4, 0.6], [0.5, 0.5]], [1, 1]) == [[0, 1], [1, 0]]
    # No tie: the larger remainder counts, whatever came before.
    assert rounded([[0.4, 0.6], [0.4, 0.6]], [1, 1]) == [[0, 1], [0, 1]]


def test_no_part_is_favoured_where_chance_decides() -> None:
    first = np.array([rounded([[0.2] * 5], [1], seed)[0] for seed in range(1000)])
    # 200 expected of each; 5 standard deviations are 63.
    assert np.abs(first.sum(axis=0) - 200).max() < 63


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    num_parts=st.integers(1, 9),
    log_alpha=st.floats(-6, 9),
    seed=st.integers(0, 2**32),
)
def test_each_count_is_less_than_a_row_from_its_share(
    sizes: list[int], num_parts: int, log_alpha: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet([10**log_alpha] * num_parts, size=len(sizes))
    missing = np.zeros(num_parts)
    counts = round_shares(shares, np.array(sizes), missing, rng)
    quotas = shares * np.array(sizes)[:, None]
    assert np.abs(counts - quotas).max() < 1
    assert counts.sum(axis=1).tolist() == sizes
    assert missing == pytest.approx(quotas.sum(axis=0) - counts.sum(axis=0), abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    codes=st.lists(st.integers(0, 6), min_size=1, max_size=60),
    num_parts=st.integers(1, 12),
    alpha=st.sampled_from([1e-300, 1e-6, 0.1, 1.0, 1e3, 1e9, 1.7e308]),
    seed=st.integers(0, 2**32),
)
def test_every_row_is_in_one_part_and_the_same_again(
    codes: list[int], num_parts: int, alpha: float, seed: int
) -> None:
    array = np.array(codes)
    parts = dirichlet_parts(array, num_parts, alpha, seed=seed)
    assert len(parts) == num_parts
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(codes)))
    again = dirichlet_parts(array, num_parts, alpha, seed=seed)
    assert [rows.tolist() for rows in again] == [rows.tolist() for rows in parts]


def test_the_order_of_the_rows_does_not_change_the_counts() -> None:
    codes = np.repeat(np.arange(6), [3, 50, 1, 20, 7, 19])
    shuffled = np.random.default_rng(0).permutation(codes)
    counts = [counts_of(c, dirichlet_parts(c, 5, 0.7, seed=2)) for c in (codes, shuffled)]
    assert counts[0].tolist() == counts[1].tolist()
    # The rows themselves are dealt at random, not the first ones to the first client.
    part = dirichlet_parts(codes, 5, 1e6, seed=2)[0]
    assert part.tolist() != sorted(part.tolist())


@pytest.mark.parametrize("alpha", [100.0, 1000.0, 1e9])
def test_a_large_alpha_is_nearly_iid_with_few_rows_a_class(alpha: float) -> None:
    codes = np.arange(750) % 150  # 150 classes of 5 rows over 20 clients: 37.5 each
    for seed in range(5):
        sizes = [len(rows) for rows in dirichlet_parts(codes, 20, alpha, seed=seed)]
        assert set(sizes) <= {36, 37, 38, 39}
        counts = counts_of(codes, dirichlet_parts(codes, 20, alpha, seed=seed))
        assert counts.max() == 1  # a quarter of a row each


def test_no_client_gets_what_is_left_of_every_class() -> None:
    codes = np.arange(750) % 150
    sizes = np.mean(
        [[len(rows) for rows in dirichlet_parts(codes, 20, 1.0, seed=s)] for s in range(100)], 0
    )
    # A size's standard deviation is about 3 (150 classes of 5 rows: 5 sqrt(150 var(share))), that
    # of a mean of 100 a tenth of it. flwr-datasets gave 2 to the first client and 151 to the last.
    assert np.abs(sizes - 37.5).max() < 1.5


@pytest.mark.parametrize("alpha", [0.05, 0.5, 5.0])
def test_the_shares_are_dirichlet(alpha: float) -> None:
    num_classes, rows, num_parts = 2000, 400, 5
    codes = np.repeat(np.arange(num_classes), rows)
    shares = counts_of(codes, dirichlet_parts(codes, num_parts, alpha, seed=1)) / rows
    # Mean 1/N and variance (1/N)(1 - 1/N)/(N alpha + 1); covariance -(1/N^2)/(N alpha + 1).
    variance = (1 / num_parts) * (1 - 1 / num_parts) / (num_parts * alpha + 1)
    error = np.sqrt(variance / num_classes)
    assert np.abs(shares.mean(axis=0) - 1 / num_parts).max() < 4 * error
    assert shares.var(axis=0) == pytest.approx([variance] * num_parts, rel=0.12)
    covariance = np.cov(shares.T)[~np.eye(num_parts, dtype=bool)].mean()
    assert covariance == pytest.approx(-(1 / num_parts**2) / (num_parts * alpha + 1), rel=0.12)


def test_a_tiny_alpha_gives_each_class_to_one_client_any_of_them() -> None:
    codes = np.repeat(np.arange(1000), 3)
    for alpha in (1e-6, 1e-300):
        counts = counts_of(codes, dirichlet_parts(codes, 4, alpha, seed=0))
        assert sorted(np.unique(counts).tolist()) == [0, 3]
        # 250 classes expected of each; 5 standard deviations are 69.
        assert np.abs((counts > 0).sum(axis=0) - 250).max() < 69


def test_the_limits() -> None:
    codes = np.arange(30) % 3
    assert sorted(dirichlet_parts(codes, 1, 0.5)[0].tolist()) == list(range(30))
    # As many clients as rows, and classes of one row: one each.
    for classes in (codes, np.arange(30), np.zeros(30, dtype=np.int64)):
        parts = dirichlet_parts(classes, 30, 1e9, min_size=1)
        assert [len(rows) for rows in parts] == [1] * 30
    # More clients than rows of a class, and than rows at all.
    assert sum(len(rows) for rows in dirichlet_parts(codes, 40, 0.1)) == 30


def test_a_minimum_that_no_draw_meets_tells_the_best() -> None:
    codes = np.arange(40) % 2
    with pytest.raises(SmallPartError) as error:
        dirichlet_parts(codes, 4, 0.3, min_size=10)
    best = error.value.smallest
    assert 0 <= best < 10
    parts = dirichlet_parts(codes, 4, 0.3, min_size=best)
    assert min(len(rows) for rows in parts) == best


def test_many_rows_and_many_classes() -> None:
    codes = np.random.default_rng(0).integers(0, 20_000, 500_000)
    parts = dirichlet_parts(codes, 300, 0.5, seed=0)  # 6 million shares: several blocks
    assert sum(len(rows) for rows in parts) == 500_000
    assert all(isinstance(rows, np.ndarray) and rows.dtype == np.int64 for rows in parts)
    sizes = np.array([len(rows) for rows in parts])
    assert np.abs(sizes - 500_000 / 300).max() < 500_000 / 300 * 0.2
