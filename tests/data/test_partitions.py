from __future__ import annotations

import re
from collections import Counter

import numpy as np
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
    def parts(seed: int) -> list[list[int]]:
        return [rows.tolist() for rows in assign(dataset, config(**setting), 4, seed)]

    assert sorted(row for rows in parts(1) for row in rows) == list(range(100))
    assert parts(1) == parts(1)
    assert (parts(1) != parts(2)) == (setting["partition"] != "natural")


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


@pytest.mark.parametrize(
    "values",
    [
        ["b", None, "a", "b", "b", "a"],
        [[2], [1], None, [2], [2], [1]],
        [2.5, None, 1.0, 2.5, 2.5, 1],
    ],
)
@pytest.mark.parametrize("kind", ["natural", "dirichlet"])
def test_values_without_an_order(config: MakeConfig, values: list[object], kind: str) -> None:
    data = Dataset.from_dict({"text": list("abcdef"), "v": values})
    setting = config(partition=kind, partition_by="v", alpha=1e6, min_partition_size=0)
    parts = assign(data, setting, 3, seed=0)
    assert sorted(np.concatenate(parts).tolist()) == list(range(6))
    if kind == "natural":
        assert sorted(len(rows) for rows in parts) == [1, 2, 3]
        assert parts[0].tolist() == [0, 3, 4]  # the most frequent value
    labels = partition_labels(data, setting, 3, seed=0)
    counts = sorted(count for part in labels for count in part.values())
    assert counts == ([1, 2, 3] if kind == "natural" else [1, 1, 1, 1, 1, 1])


def test_equal_values_of_natural_go_by_their_order_and_rows_by_theirs(config: MakeConfig) -> None:
    data = Dataset.from_dict({"text": list("abcdef"), "v": ["z", "a", "z", "m", "a", "m"]})
    natural = config(partition="natural", partition_by="v")
    parts = assign(data, natural, 3, seed=0)
    assert [rows.tolist() for rows in parts] == [[1, 4], [3, 5], [0, 2]]
    selected = data.select([5, 4, 3, 2])  # values m, a, m, z: numbers of rows are the selection's
    assert [rows.tolist() for rows in assign(selected, natural, 3, seed=0)] == [[0, 2], [1], [3]]


def test_iid_rows_are_those_of_flwr_datasets(dataset: Dataset, config: MakeConfig) -> None:
    parts = assign(dataset, config(partition="iid"), 3, seed=4)
    order = np.random.default_rng(4).permutation(100)
    assert np.concatenate(parts).tolist() == order.tolist()
    assert all(rows.dtype == np.int64 for rows in parts)


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


@pytest.mark.parametrize("kind", ["iid", "dirichlet", "natural"])
def test_too_few_rows_for_the_minimum_is_not_blamed_on_alpha(
    dataset: Dataset, config: MakeConfig, kind: str
) -> None:
    setting = {"partition": kind, "partition_by": "site"}
    with pytest.raises(PartitionError, match="100 examples are too few for 4 clients") as error:
        assign(dataset, config(min_partition_size=26, **setting), 4, seed=0)
    message = str(error.value)
    assert "min-partition-size to 25 or less, use at most 3 clients" in message
    assert "raise" not in message and "choose data.alpha" not in message
    with pytest.raises(PartitionError) as error:
        assign(dataset, config(min_partition_size=101, **setting), 2, seed=0)
    assert "at most" not in str(error.value)


@pytest.mark.parametrize(
    ("alpha", "clients", "minimum"), [(0.05, 10, 1), (0.1, 4, 20), (1.0, 5, 19), (1e-6, 90, 1)]
)
def test_what_the_message_proposes_works(
    dataset: Dataset, config: MakeConfig, alpha: float, clients: int, minimum: int
) -> None:
    with pytest.raises(PartitionError) as error:
        assign(dataset, config(alpha=alpha, min_partition_size=minimum), clients, seed=0)
    ways = str(error.value).rpartition("choose ")[2]
    (better,) = re.findall(r"data\.alpha = (\S+),", ways)
    (fewer,) = re.findall(r"(\d+) clients?$", ways)
    assert float(better) > alpha and int(fewer) < clients
    tries = [(float(better), clients, minimum), (alpha, int(fewer), minimum)]
    tries += [(alpha, clients, int(size)) for size in re.findall(r"size = (\d+),", ways)]
    for alpha_, clients_, minimum_ in tries:
        setting = config(alpha=alpha_, min_partition_size=minimum_)
        assert min(partition_sizes(dataset, setting, clients_, seed=0)) >= minimum_


def test_the_minimum_is_met_by_drawing_again(dataset: Dataset, config: MakeConfig) -> None:
    first = partition_sizes(dataset, config(alpha=0.3, min_partition_size=0), 5, seed=0)
    again = partition_sizes(dataset, config(alpha=0.3, min_partition_size=10), 5, seed=0)
    assert min(first) < 10 <= min(again)


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
