"""Split a data set over the clients, the same way on every node for one seed.

The IID partition comes from flwr-datasets. The Dirichlet one is in
:mod:`fedmoe_app.data.dirichlet`, which says why; the natural one groups whole values of a column
here, since flwr-datasets cannot group values into a given number of partitions.
"""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np
from datasets import Dataset

from fedmoe_app.config.errors import DataError
from fedmoe_app.config.schema import DataConfig
from fedmoe_app.data.columns import partition_column
from fedmoe_app.data.dirichlet import MAX_DRAWS, SmallPartError, dirichlet_parts
from fedmoe_app.data.grouping import Groups, Rows, group, parts_of

_ROW = "__row__"
_ALPHAS = tuple(10.0**power for power in range(-2, 7))  # that a message may propose


class PartitionError(DataError):
    """A partition that cannot be made; the message names the setting and the way out."""


class EmptyPartitionError(PartitionError):
    """The partition asked for holds no examples."""


def partition(
    dataset: Dataset, config: DataConfig, partition_id: int, num_partitions: int, seed: int
) -> Dataset:
    """Return one client's part of a data set.

    Args:
        dataset: in the uniform columns of :mod:`fedmoe_app.data.columns`.
        config: ``partition``, ``alpha``, ``partition_by`` and ``min_partition_size`` count.
        partition_id: from 0.
        num_partitions: number of clients; every client must be given the same.
        seed: the run's seed; every client must be given the same.

    Raises:
        PartitionError: the setting cannot be met, or ``partition_id`` is out of range.
        EmptyPartitionError: this partition is empty (possible with ``min-partition-size = 0``).
    """
    if not 0 <= partition_id < num_partitions:
        raise PartitionError(
            f"partition-id = {partition_id}: out of range for num-partitions = {num_partitions}; "
            f"choose 0 to {num_partitions - 1}"
        )
    rows = assign(dataset, config, num_partitions, seed)[partition_id]
    if len(rows) == 0:
        raise EmptyPartitionError(
            f"partition {partition_id} of {num_partitions} is empty with {_setting(config)}; "
            "set data.min-partition-size = 1, raise data.alpha, or use fewer clients"
        )
    return dataset.select(rows)


def partition_sizes(
    dataset: Dataset, config: DataConfig, num_partitions: int, seed: int
) -> list[int]:
    """Return the number of examples of each partition; arguments as of :func:`partition`."""
    return [len(rows) for rows in assign(dataset, config, num_partitions, seed)]


def partition_labels(
    dataset: Dataset, config: DataConfig, num_partitions: int, seed: int
) -> list[dict[str | int, int]]:
    """Return, for each partition, how many examples it has of each value.

    The values are the labels, or, without labels (causal-lm), those of the partition column.
    """
    column = "label" if "label" in dataset.column_names else partition_column(config)
    if column not in dataset.column_names:
        return [{} for _ in range(num_partitions)]
    groups = group(dataset, column)
    parts = assign(dataset, config, num_partitions, seed)
    return [_count(groups, rows) for rows in parts]


def _count(groups: Groups, rows: Rows) -> dict[Any, int]:
    counts = np.bincount(groups.codes[rows], minlength=len(groups.values)).tolist()
    return {value: count for value, count in zip(groups.values, counts, strict=True) if count}


def assign(dataset: Dataset, config: DataConfig, num_partitions: int, seed: int) -> list[Rows]:
    """Return the row numbers of each partition; each row is in exactly one of them.

    Raises:
        PartitionError: the setting cannot be met.
    """
    if not 1 <= num_partitions <= len(dataset):
        raise PartitionError(
            f"num-partitions = {num_partitions}: {len(dataset)} examples are there, so choose 1 to "
            f"{len(dataset)} clients, or raise data.max-train-examples"
        )
    _check_enough(len(dataset), config, num_partitions)
    if config.partition == "iid":
        return _iid(len(dataset), num_partitions, seed)
    column = partition_column(config)
    _check_column(dataset, column)
    if config.partition == "dirichlet":
        return _dirichlet(group(dataset, column), config, num_partitions, seed)
    parts = _natural(group(dataset, column), column, num_partitions)
    _check_sizes(parts, config)
    return parts


def _iid(num_rows: int, num_partitions: int, seed: int) -> list[Rows]:
    # flwr-datasets brings scipy, matplotlib and seaborn, which take longer to import than all of
    # this app. A client whose rows are cached needs none of them.
    from flwr_datasets.partitioner import IidPartitioner

    # The partitioner cuts into contiguous pieces, so the order must be random before.
    order = np.random.default_rng(seed).permutation(num_rows)
    partitioner = IidPartitioner(num_partitions)
    partitioner.dataset = Dataset.from_dict({_ROW: order}).with_format("numpy")
    return [partitioner.load_partition(index)[_ROW][:] for index in range(num_partitions)]


def _dirichlet(groups: Groups, config: DataConfig, num_partitions: int, seed: int) -> list[Rows]:
    try:
        return dirichlet_parts(
            groups.codes, num_partitions, config.alpha, config.min_partition_size, seed
        )
    except SmallPartError as error:
        ways = _ways_out(groups, config, num_partitions, seed, error.smallest)
        raise PartitionError(
            f"{len(groups.codes)} examples in {len(groups.values)} classes cannot be split over "
            f"{num_partitions} clients with {_setting(config)}: in the best of {MAX_DRAWS} draws "
            f"one client got only {error.smallest}; choose {ways}"
        ) from error


def _ways_out(
    groups: Groups, config: DataConfig, num_partitions: int, seed: int, smallest: int
) -> str:
    """Settings that work in place of one that does not: each has been tried."""

    def works(alpha: float, clients: int) -> bool:
        try:
            dirichlet_parts(groups.codes, clients, alpha, config.min_partition_size, seed, 1)
        except SmallPartError:
            return False
        return True

    alphas = (alpha for alpha in _ALPHAS if alpha > config.alpha and works(alpha, num_partitions))
    fewer = (num_partitions * share // 8 for share in range(7, 0, -1))
    clients = next((number for number in fewer if number > 1 and works(config.alpha, number)), 1)
    ways = [f"data.alpha = {alpha:g}" for alpha in [next(alphas, None)] if alpha]
    ways += [f"data.min-partition-size = {smallest}"] if smallest else []
    return ", or ".join([*ways, f"{clients} client{'s' if clients > 1 else ''}"])


def _natural(groups: Groups, column: str, num_partitions: int) -> list[Rows]:
    """Give each partition whole values, the largest first, each to the smallest so far.

    With as many partitions as values, each partition is one value, the largest being partition 0.
    """
    if num_partitions > len(groups.values):
        raise PartitionError(
            f'data.partition = "natural": {num_partitions} clients, but column "{column}" has '
            f"only {len(groups.values)} values; use at most {len(groups.values)} clients, or "
            "another partition"
        )
    owner_of_value = np.empty(len(groups.values), np.int32)
    sizes = [(0, index) for index in range(num_partitions)]
    for value in np.argsort(-groups.sizes, kind="stable"):
        size, part = sizes[0]
        heapq.heapreplace(sizes, (size + int(groups.sizes[value]), part))
        owner_of_value[value] = part
    return parts_of(owner_of_value[groups.codes], num_partitions)


def _check_column(dataset: Dataset, column: str) -> None:
    if column not in dataset.column_names:
        raise PartitionError(
            f'data.partition-by = "{column}": no such column; choose one of '
            f"{', '.join(dataset.column_names)}"
        )


def _check_enough(num_rows: int, config: DataConfig, num_partitions: int) -> None:
    """Refuse a minimum size that no split can meet."""
    minimum = config.min_partition_size
    if num_partitions * minimum <= num_rows:
        return
    fewer = f", use at most {num_rows // minimum} clients" if num_rows >= minimum else ""
    raise PartitionError(
        f"{num_rows} examples are too few for {num_partitions} clients of {minimum} or more, "
        f"however they are split ({_setting(config)}); lower data.min-partition-size to "
        f"{num_rows // num_partitions} or less{fewer}, or give more examples "
        "(data.max-train-examples caps them)"
    )


def _check_sizes(parts: list[Rows], config: DataConfig) -> None:
    sizes = [len(rows) for rows in parts]
    if min(sizes) < config.min_partition_size:
        raise PartitionError(
            f"partition {sizes.index(min(sizes))} of {len(sizes)} would get {min(sizes)} examples "
            f"with {_setting(config)}; lower data.min-partition-size to {min(sizes)} or use fewer "
            "clients"
        )


def _setting(config: DataConfig) -> str:
    """The settings that a partition depends on, as they stand in the run config."""
    text = f'data.partition = "{config.partition}"'
    if config.partition == "dirichlet":
        text += f", data.alpha = {config.alpha}"
    if config.partition != "iid":
        text += f', data.partition-by = "{config.partition_column}"'
    return f"{text}, data.min-partition-size = {config.min_partition_size}"


def split_local(dataset: Dataset, fraction: float, seed: int) -> tuple[Dataset, Dataset | None]:
    """Hold out a share of a client's examples for its own accuracy.

    Args:
        dataset: the client's examples.
        fraction: share that is held out, in [0, 1); at least one example if it is not 0.
        seed: fixes which.

    Returns:
        Training and test part. No test part when ``fraction`` is 0 or when there are fewer than
        two examples; the training part keeps at least one.
    """
    if fraction == 0 or len(dataset) < 2:
        return dataset, None
    num_test = min(max(1, round(fraction * len(dataset))), len(dataset) - 1)
    order = np.random.default_rng(seed).permutation(len(dataset)).tolist()
    return dataset.select(sorted(order[num_test:])), dataset.select(sorted(order[:num_test]))
