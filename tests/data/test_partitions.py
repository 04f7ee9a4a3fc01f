from __future__ import annotations

from collections import Counter

import pytest
from datasets import Dataset

from fedmoe_app.data.partitions import (
    EmptyPartitionError,
    PartitionError,
    assign,
    partition,
    partition_labels,
    partition_sizes,
    split_local,
)

from .conftest import MakeConfig


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    """100 rows: labels 0 to 4 in blocks of 20; sites a (50), b (30), c (15), d (5)."""
    sites = ["a"] * 50 + ["b"] * 30 + ["c"] * 15 + ["d"] * 5
    texts = [str(row) for row in range(100)]
    labels = [row // 20 for row in range(100)]
    return Dataset.from_dict({"text": texts, "label": labels, "site": sites})


SETTINGS = [
    {"partition": "iid"},
    {"partition": "dirichlet", "alpha": 0.5},
    {"partition": "dirichlet", "alpha": 5.0, "partition_by": "site"},
    {"partition": "natural", "partition_by": "site"},
]


@pytest.mark.parametrize("setting", SETTINGS)
def test_every_row_is_in_one_partition_and_the_same_again(
    dataset: Dataset, config: MakeConfig, setting: dict[str, object]
) -> None:
    parts = assign(dataset, config(**setting), 4, seed=1)
    assert sorted(row for rows in parts for row in rows) == list(range(100))
    assert assign(dataset, config(**setting), 4, seed=1) == parts
    changes = assign(dataset, config(**setting), 4, seed=2) != parts
    assert changes == (setting["partition"] != "natural")


def test_partition_returns_the_assigned_rows(dataset: Dataset, config: MakeConfig) -> None:
    parts = assign(dataset, config(), 3, seed=5)
    for index in range(3):
        mine = partition(dataset, config(), index, 3, seed=5)
        assert mine["text"][:] == [str(row) for row in parts[index]]
        assert mine.column_names == dataset.column_names


def test_iid_is_even_and_mixed(dataset: Dataset, config: MakeConfig) -> None:
    iid = config(partition="iid")
    assert partition_sizes(dataset, iid, 3, seed=0) == [34, 33, 33]
    # The rows are sorted by label, so unmixed pieces would hold two or three labels.
    assert all(len(counts) == 5 for counts in partition_labels(dataset, iid, 3, seed=0))


def test_a_small_alpha_is_more_unequal(config: MakeConfig) -> None:
    large = Dataset.from_dict({"text": ["x"] * 4000, "label": [row % 4 for row in range(4000)]})

    def largest_share(alpha: float) -> float:
        counts = partition_labels(large, config(alpha=alpha), 8, seed=0)
        return sum(max(part.values()) for part in counts) / 4000

    assert largest_share(0.1) > 0.6 > 0.35 > largest_share(1000.0)


def test_natural_partitions(dataset: Dataset, config: MakeConfig) -> None:
    natural = config(partition="natural", partition_by="site")
    assert partition_sizes(dataset, natural, 4, seed=0) == [50, 30, 15, 5]
    # Fewer nodes than sites: whole sites, the largest first, each to the smallest part.
    assert partition_sizes(dataset, natural, 2, seed=0) == [50, 50]
    part = partition(dataset, natural, 1, 2, seed=0)
    assert Counter(part["site"]) == {"b": 30, "c": 15, "d": 5}
    with pytest.raises(PartitionError, match='5 clients, but column "site" has only 4 values'):
        partition_sizes(dataset, natural, 5, seed=0)


def test_partition_labels(dataset: Dataset, config: MakeConfig) -> None:
    assert partition_labels(dataset, config(partition="iid"), 1, seed=0) == [
        {0: 20, 1: 20, 2: 20, 3: 20, 4: 20}
    ]
    lm = config(task="causal-lm", partition="natural", partition_by="site")
    unlabelled = dataset.remove_columns("label")
    assert partition_labels(unlabelled, lm, 2, seed=0) == [{"a": 50}, {"b": 30, "c": 15, "d": 5}]
    assert partition_labels(unlabelled, config(partition="iid"), 2, seed=0) == [{}, {}]


@pytest.mark.parametrize("partition_id", [-1, 4])
def test_partition_id_out_of_range(dataset: Dataset, config: MakeConfig, partition_id: int) -> None:
    with pytest.raises(PartitionError, match=f"partition-id = {partition_id}.*choose 0 to 3"):
        partition(dataset, config(), partition_id, 4, seed=0)


def test_an_unknown_column(dataset: Dataset, config: MakeConfig) -> None:
    wrong = config(partition="natural", partition_by="town")
    with pytest.raises(PartitionError, match='"town": no such column; choose one of text, label'):
        partition_sizes(dataset, wrong, 2, seed=0)


@pytest.mark.parametrize("num_partitions", [0, 101])
@pytest.mark.parametrize("setting", SETTINGS)
def test_no_clients_or_more_than_examples(
    dataset: Dataset, config: MakeConfig, setting: dict[str, object], num_partitions: int
) -> None:
    with pytest.raises(PartitionError, match=f"= {num_partitions}: 100 examples.*choose 1 to 100"):
        partition_sizes(dataset, config(**setting), num_partitions, seed=0)


@pytest.mark.parametrize(
    "setting",
    [
        {"partition": "iid", "min_partition_size": 51},
        {"partition": "dirichlet", "alpha": 0.01, "min_partition_size": 51},
        {"partition": "natural", "partition_by": "site", "min_partition_size": 51},
    ],
)
def test_a_minimum_that_cannot_be_met(
    dataset: Dataset, config: MakeConfig, setting: dict[str, object]
) -> None:
    with pytest.raises(
        PartitionError, match=f"min-partition-size = {setting['min_partition_size']}"
    ):
        partition_sizes(dataset, config(**setting), 2, seed=0)


def test_an_empty_partition(dataset: Dataset, config: MakeConfig) -> None:
    allowed = config(alpha=0.01, min_partition_size=0)
    sizes = partition_sizes(dataset, allowed, 20, seed=0)
    empty, filled = sizes.index(0), sizes.index(max(sizes))
    assert len(partition(dataset, allowed, filled, 20, seed=0)) == max(sizes)
    with pytest.raises(EmptyPartitionError, match=rf"partition {empty} of 20 is empty.*0\.01"):
        partition(dataset, allowed, empty, 20, seed=0)


def test_split_local(dataset: Dataset) -> None:
    train, test = split_local(dataset, 0.1, seed=3)
    assert test is not None
    assert (len(train), len(test)) == (90, 10)
    assert sorted([*train["text"], *test["text"]]) == sorted(dataset["text"])
    again = split_local(dataset, 0.1, seed=3)[1]
    assert again is not None and again[:] == test[:]
    other = split_local(dataset, 0.1, seed=4)[1]
    assert other is not None and other[:] != test[:]


@pytest.mark.parametrize(
    ("size", "fraction", "num_test"), [(1, 0.5, None), (9, 0.0, None), (2, 0.1, 1), (3, 0.9, 2)]
)
def test_split_local_of_few(
    dataset: Dataset, size: int, fraction: float, num_test: int | None
) -> None:
    train, test = split_local(dataset.select(range(size)), fraction, seed=0)
    assert (len(test) if test else None) == num_test
    assert len(train) == size - (num_test or 0)
