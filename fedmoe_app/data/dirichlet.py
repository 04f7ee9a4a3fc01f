"""The Dirichlet partition: each class's rows in shares that are drawn anew for every class.

For class c of n_c rows, the N clients' shares are p_c ~ Dirichlet(alpha, ..., alpha) (Yurochkin et
al., "Bayesian Nonparametric Federated Learning of Neural Networks", 2019; Hsu et al., 2019). Client
k gets n_c p_ck rows, rounded down or up by the largest-remainder method: all are rounded down, and
the rows that are left go, one each, to the largest remainders. Remainders that differ by less than
``TIE`` of a row count as equal. Among these, the client goes first that is furthest below its
shares of all classes so far; a random draw decides the rest. Without that, a data set of many small
classes would be split by chance however large alpha is.

flwr-datasets' ``DirichletPartitioner`` (0.6) cannot do this: it cuts each class at the cumulative
shares, rounded down, so that the last client gets what is left of every class. Of 150 classes of 5
rows and 20 clients, it gave the last client 151 of 750 rows with alpha = 1 and 150 with alpha =
1000, where 12 clients got none (seed 0). The cut is inside its one method; no setting changes it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from fedmoe_app.data.grouping import Rows, parts_of

TIE = 0.05  # of a row
MAX_DRAWS = 11  # as many as flwr-datasets makes for a minimum size
_BLOCK_CELLS = 2**20  # shares that are in memory at a time; there can be as many classes as rows
# Beyond these the shares are the same to the last row, but their sums leave the floating range.
_LEAST_ALPHA, _LARGEST_ALPHA = 1e-12, 1e12


class SmallPartError(Exception):
    """No draw gave every client the rows that it must get.

    Attributes:
        smallest: rows of the smallest part in the best draw.
    """

    def __init__(self, smallest: int) -> None:
        super().__init__(smallest)
        self.smallest = smallest


def dirichlet_parts(
    codes: Rows,
    num_parts: int,
    alpha: float,
    min_size: int = 0,
    seed: int = 0,
    max_draws: int = MAX_DRAWS,
) -> list[Rows]:
    """Return the rows of each part, in random order.

    Args:
        codes: class of each row, ``[R]``, from 0.
        num_parts: N, 1 or more.
        alpha: concentration, above 0.
        min_size: rows that every part must get; the shares are drawn anew until all do.
        seed: the same seed gives the same parts.
        max_draws: how often they are drawn at most.

    Raises:
        SmallPartError: no draw met ``min_size``.
    """
    rng = np.random.default_rng(seed)
    owners = _draw(rng, np.bincount(codes), num_parts, alpha, min_size, max_draws)
    order = rng.permutation(len(codes))  # which of a class's rows go where, and their order
    by_class = order[np.argsort(codes[order], kind="stable")]
    owner_of_row = np.empty_like(owners)
    owner_of_row[by_class] = owners
    return parts_of(owner_of_row, num_parts, order)


def _draw(
    rng: np.random.Generator,
    class_sizes: Rows,
    num_parts: int,
    alpha: float,
    min_size: int,
    max_draws: int,
) -> npt.NDArray[np.int32]:
    """Owners of the rows in class order, ``[R]``: the first draw with large enough parts."""
    smallest = 0
    for _ in range(max_draws):
        counts = _draw_counts(rng, class_sizes, num_parts, alpha)
        owners = np.concatenate([_owners(block) for block in counts])
        found = int(np.bincount(owners, minlength=num_parts).min())
        if found >= min_size:
            return owners
        smallest = max(smallest, found)
    raise SmallPartError(smallest)


def _owners(counts: Rows) -> npt.NDArray[np.int32]:
    """The part of each row, class by class, from the rows that each class gives each part."""
    num_classes, num_parts = counts.shape
    return np.repeat(np.tile(np.arange(num_parts, dtype=np.int32), num_classes), counts.ravel())


def _draw_counts(
    rng: np.random.Generator, class_sizes: Rows, num_parts: int, alpha: float
) -> Iterator[Rows]:
    """Draw how many rows of each class each part gets, ``[classes, N]``, some classes at a time."""
    concentration = np.full(num_parts, np.clip(alpha, _LEAST_ALPHA, _LARGEST_ALPHA))
    missing = np.zeros(num_parts)  # rows that each part has been given less than its shares
    step = max(1, _BLOCK_CELLS // num_parts)
    for start in range(0, len(class_sizes), step):
        sizes = class_sizes[start : start + step]
        shares = rng.dirichlet(concentration, size=len(sizes))
        yield round_shares(shares, sizes, missing, rng)


def round_shares(
    shares: npt.NDArray[np.float64],
    sizes: Rows,
    missing: npt.NDArray[np.float64],
    rng: np.random.Generator,
) -> Rows:
    """Round each class's shares to whole rows by the largest remainders.

    Args:
        shares: of each class's rows, ``[C, N]``; each row sums to 1.
        sizes: rows of each class, ``[C]``.
        missing: rows that each part is owed from classes before, ``[N]``; updated in place.
        rng: decides between parts that are equal in all else.

    Returns:
        Rows of each part, ``[C, N]``: each less than 1 from its share, each class summing to its
        size.
    """
    quotas = shares * sizes[:, None]
    counts = np.floor(quotas).astype(np.int64)
    remainders = quotas - counts
    left = sizes - counts.sum(axis=1)
    descending = -np.sort(-remainders, axis=1)
    last = np.take_along_axis(descending, np.maximum(left - 1, 0)[:, None], axis=1)
    first = (remainders > last + TIE) & (left > 0)[:, None]
    tied = (np.abs(remainders - last) <= TIE) & (left > 0)[:, None]
    chance = rng.random(remainders.shape)
    for index, count in enumerate(left - first.sum(axis=1)):
        missing += remainders[index]
        candidates = np.flatnonzero(tied[index])
        order = np.lexsort((chance[index, candidates], -missing[candidates]))
        first[index, candidates[order[:count]]] = True
        missing -= first[index]
    return counts + first
