"""Means over seeds with Student's t-intervals.

The interval of the mean of n values with the sample standard deviation s is
mean ± t(0.975, n - 1)·s/√n. It holds for values of a normal distribution; with three seeds t is
4.30, so it is wide. Two schemes are compared by the interval of the differences of equal seeds
(paired), which drops what a seed does to both.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.stats import t

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over ``n`` values; of one value neither spread nor interval is known."""

    n: int
    mean: float
    std: float | None = None
    half_width: float | None = None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Lower and upper end of the 95 % interval."""
        if self.half_width is None:
            return None
        return self.mean - self.half_width, self.mean + self.half_width


def estimate(values: Sequence[float]) -> Estimate | None:
    """Return mean, sample standard deviation and 95 % t-interval; None without values."""
    n = len(values)
    if n == 0:
        return None
    mean = statistics.fmean(values)
    if n == 1:
        return Estimate(1, mean)
    std = statistics.stdev(values)
    quantile = float(t.ppf((1 + CONFIDENCE) / 2, n - 1))
    return Estimate(n, mean, std, quantile * std / math.sqrt(n))


def paired_difference(
    values: Mapping[int, float], reference: Mapping[int, float]
) -> Estimate | None:
    """Estimate ``values - reference`` over the seeds (the keys) that both have."""
    seeds = sorted(values.keys() & reference.keys())
    return estimate([values[seed] - reference[seed] for seed in seeds])


@dataclass(frozen=True)
class Reached:
    """Rounds to a target: the mean over the ``reached`` of ``of`` runs that came to it."""

    mean: float | None
    reached: int
    of: int


def rounds_reached(rounds: Sequence[int | None]) -> Reached:
    """Summarise the rounds that runs needed; None is a run that never came to the target."""
    known = [number for number in rounds if number is not None]
    return Reached(statistics.fmean(known) if known else None, len(known), len(rounds))
