"""Split a data set over the clients, the same way on every node for one seed.

IID and Dirichlet partitions come from flwr-datasets. The natural one groups whole values of a
column here, since flwr-datasets cannot group values into a given number of partitions.
"""

from __future__ import annotations

import warnings
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
from datasets import Dataset

from fedmoe_app.config import DataConfig
from fedmoe_app.data.columns import partition_column
from fedmoe_app.data.errors import DataError

# flwr-datasets brings scipy, matplotlib and seaborn, which take longer to import than all of this
# app. A client whose rows are cached needs none of them.
if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner

_ROW = "__row__"


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
    if not rows:
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
    values = dataset[column][:]
    parts = assign(dataset, config, num_partitions, seed)
    return [dict(sorted(Counter(values[row] for row in rows).items())) for rows in parts]


def assign(dataset: Dataset, config: DataConfig, num_partitions: int, seed: int) -> list[list[int]]:
    """Return the row numbers of each partition; each row is in exactly one of them.

    Raises:
        PartitionError: the setting cannot be met.
    """
    if not 1 <= num_partitions <= len(dataset):
        raise PartitionError(
            f"num-partitions = {num_partitions}: {len(dataset)} examples are there, so choose 1 to "
            f"{len(dataset)} clients, or raise data.max-train-examples"
        )
    if config.partition != "iid":
        _check_column(dataset, partition_column(config))
    if config.partition == "iid":
        parts = _iid(len(dataset), num_partitions, seed)
    elif config.partition == "dirichlet":
        parts = _dirichlet(dataset, config, num_partitions, seed)
    else:
        parts = _natural(dataset, partition_column(config), num_partitions)
    _check_sizes(parts, config)
    return parts


def _iid(num_rows: int, num_partitions: int, seed: int) -> list[list[int]]:
    from flwr_datasets.partitioner import IidPartitioner

    # The partitioner cuts into contiguous pieces, so the order must be random before.
    order = np.random.default_rng(seed).permutation(num_rows)
    partitioner = IidPartitioner(num_partitions)
    partitioner.dataset = Dataset.from_dict({_ROW: order})
    return _rows(partitioner, num_partitions)


def _dirichlet(
    dataset: Dataset, config: DataConfig, num_partitions: int, seed: int
) -> list[list[int]]:
    from flwr_datasets.partitioner import DirichletPartitioner

    column = partition_column(config)
    partitioner = DirichletPartitioner(
        num_partitions=num_partitions,
        partition_by=column,
        alpha=config.alpha,
        min_partition_size=config.min_partition_size,
        seed=seed,
    )
    partitioner.dataset = Dataset.from_dict({_ROW: range(len(dataset)), column: dataset[column][:]})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # one for each attempt; the last one raises
            return _rows(partitioner, num_partitions)
    except ValueError as error:
        raise PartitionError(
            f"{len(dataset)} examples cannot be split over {num_partitions} clients with "
            f"{_setting(config)}; raise data.alpha, lower data.min-partition-size, or use "
            "fewer clients"
        ) from error


def _rows(partitioner: Partitioner, num_partitions: int) -> list[list[int]]:
    return [partitioner.load_partition(index)[_ROW][:] for index in range(num_partitions)]


def _natural(dataset: Dataset, column: str, num_partitions: int) -> list[list[int]]:
    """Give each partition whole values, the largest first, each to the smallest so far.

    With as many partitions as values, each partition is one value, the largest being partition 0.
    """
    members: dict[str | int, list[int]] = {}
    for row, value in enumerate(dataset[column][:]):
        members.setdefault(value, []).append(row)
    if num_partitions > len(members):
        raise PartitionError(
            f'data.partition = "natural": {num_partitions} clients, but column "{column}" has '
            f"only {len(members)} values; use at most {len(members)} clients, or another partition"
        )
    parts: list[list[int]] = [[] for _ in range(num_partitions)]
    for value in sorted(members, key=lambda value: (-len(members[value]), value)):
        min(parts, key=len).extend(members[value])
    return [sorted(rows) for rows in parts]


def _check_column(dataset: Dataset, column: str) -> None:
    if column not in dataset.column_names:
        raise PartitionError(
            f'data.partition-by = "{column}": no such column; choose one of '
            f"{', '.join(dataset.column_names)}"
        )


def _check_sizes(parts: list[list[int]], config: DataConfig) -> None:
    sizes = [len(rows) for rows in parts]
    if min(sizes) < config.min_partition_size:
        raise PartitionError(
            f"partition {sizes.index(min(sizes))} of {len(sizes)} would get {min(sizes)} examples "
            f"with {_setting(config)}; lower data.min-partition-size or use fewer clients"
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
