"""From the cells of a comparison to one row for each scheme and partition.

Means over seeds with Student's t-intervals.

The interval of the mean of n values with the sample standard deviation s is
mean ± t(0.975, n - 1)·s/√n. It holds for values of a normal distribution; with three seeds t is
4.30, so it is wide. Two schemes are compared by the interval of the differences of equal seeds
(paired), which drops what a seed does to both.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from scipy.stats import t

from fedmoe_app.compare.execute import Outcomes
from fedmoe_app.compare.figures import Figures, rounds_to
from fedmoe_app.compare.plan import CENTRALISED, NO_PARTITION, Cell, Plan

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


SHARES = (0.90, 0.95)  # of the centralised accuracy of the same seed


@dataclass(frozen=True)
class Result:
    """What became of a cell: figures, or the reason of its failure.

    A run that came to its end without a final accuracy has both, and counts as failed.
    ``rounds`` holds the rounds to each of :data:`SHARES`; None where the run never came to it,
    and no entry at all where the seed has no centralised run.
    """

    cell: Cell
    figures: Figures | None
    failure: str | None
    rounds: tuple[int | None, ...]

    @property
    def finished(self) -> Figures | None:
        """The figures of a run that did not fail."""
        return None if self.failure else self.figures


@dataclass(frozen=True)
class Row:
    """One scheme on one partition, over the seeds.

    ``difference`` is the accuracy minus that of the first scheme, seed by seed; None for the
    first scheme itself and for the centralised reference. All but ``failed`` is of the ``runs``
    that did not fail; ``failed_rounds`` and ``missing_replies`` are sums over them.
    """

    scheme: str
    partition: str
    runs: int
    failed: int
    accuracy: Estimate | None
    difference: Estimate | None
    local_accuracy: Estimate | None
    local_variance: float | None
    rounds: tuple[Reached | None, ...]
    bytes_up: float | None
    seconds: float | None
    failed_rounds: int
    missing_replies: int
    macro_f1: Estimate | None = None

    @property
    def seeds(self) -> int:
        """The seeds asked for."""
        return self.runs + self.failed


def results_of(plan: Plan, outcomes: Outcomes) -> list[Result]:
    """Return one result a cell, in the order of the plan."""
    central = {
        cell.seed: outcomes.figures[cell.key].accuracy
        for cell in plan.cells
        if cell.scheme == CENTRALISED and cell.key in outcomes.figures
    }
    return [_result(cell, outcomes, central.get(cell.seed)) for cell in plan.cells]


def summarise(plan: Plan, results: Sequence[Result]) -> list[Row]:
    """Return the centralised row, if any, then the schemes of each partition in turn."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.cell.partition, result.cell.scheme), []).append(result)
    first = next(name for name in plan.schemes if name != CENTRALISED)
    rows = []
    for partition, scheme in _ordered(groups, plan):
        reference = groups.get((partition, first), [])
        is_reference = scheme in (first, CENTRALISED)
        rows.append(_row(groups[partition, scheme], [] if is_reference else reference))
    return rows


def _ordered(groups: dict[tuple[str, str], list[Result]], plan: Plan) -> list[tuple[str, str]]:
    columns = [NO_PARTITION, *plan.partitions]
    return sorted(groups, key=lambda g: (columns.index(g[0]), plan.schemes.index(g[1])))


def _result(cell: Cell, outcomes: Outcomes, central: float | None) -> Result:
    figures = outcomes.figures.get(cell.key)
    rounds: tuple[int | None, ...] = ()
    failure = outcomes.failures.get(cell.key)
    if figures is not None and central is not None and not failure:
        rounds = tuple(rounds_to(figures.curve, share * central) for share in SHARES)
    return Result(cell, figures, failure, rounds)


def _row(group: Sequence[Result], reference: Sequence[Result]) -> Row:
    done = [result.finished for result in group if result.finished]
    known = [result.rounds for result in group if result.rounds]
    accuracy = _by_seed(group)
    variances = _known(done, lambda figures: figures.local_variance)
    cell = group[0].cell
    return Row(
        scheme=cell.scheme,
        partition=cell.partition,
        runs=len(done),
        failed=len(group) - len(done),
        accuracy=estimate([accuracy[seed] for seed in sorted(accuracy)]),
        difference=paired_difference(accuracy, _by_seed(reference)),
        local_accuracy=estimate(_known(done, lambda figures: figures.local_accuracy)),
        local_variance=statistics.fmean(variances) if variances else None,
        rounds=tuple(
            rounds_reached([rounds[i] for rounds in known]) if known else None
            for i in range(len(SHARES))
        ),
        bytes_up=statistics.fmean(f.bytes_up for f in done) if done else None,
        seconds=statistics.fmean(f.seconds for f in done) if done else None,
        failed_rounds=sum(f.failed_rounds for f in done),
        missing_replies=sum(f.missing_replies for f in done),
        macro_f1=estimate(_known(done, lambda figures: figures.macro_f1)),
    )


def _by_seed(group: Sequence[Result]) -> dict[int, float]:
    return {
        result.cell.seed: result.finished.accuracy
        for result in group
        if result.finished and result.finished.accuracy is not None
    }


def _known(done: Sequence[Figures], get: Callable[[Figures], float | None]) -> list[float]:
    return [value for figures in done if (value := get(figures)) is not None]
