"""A node's identity from its node config."""

import json
from typing import Any

import pytest

from fedmoe_app import ConfigError
from fedmoe_app.config.node import Node


def test_a_partition() -> None:
    node = Node.from_config({"partition-id": 2, "num-partitions": 5}, node_id=77)
    assert (node.client, node.partition_id, node.num_partitions, node.data_path) == (2, 2, 5, None)


def test_an_own_file_goes_by_the_node_id_unless_it_has_a_partition_id() -> None:
    assert Node.from_config({"data-path": "/a.jsonl"}, node_id=77).client == 77
    assert Node.from_config({"data-path": "/a.jsonl", "partition-id": 3}, node_id=77).client == 3


@pytest.mark.parametrize(
    ("node_config", "message"),
    [
        ({"partition-id": 3, "num-partitions": 3}, "partition-id = 3: .*at least 0 and below .* 3"),
        (
            {"partition-id": -1, "num-partitions": 3},
            "partition-id = -1: .*greater than or equal to 0",
        ),
        ({"partition-id": 1.0, "num-partitions": 3}, r"partition-id = 1\.0: .*valid integer"),
        ({"partition-id": "1", "num-partitions": 3}, 'partition-id = "1": .*valid integer'),
        ({"partition-id": True, "num-partitions": 3}, "partition-id = true: .*valid integer"),
        ({"partition-id": 0, "num-partitions": 0}, "num-partitions = 0: .*equal to 1"),
        ({"partition-id": 0, "num-partitions": "3"}, 'num-partitions = "3": .*valid integer'),
        ({"partition-id": -1, "data-path": "/a.jsonl"}, "partition-id = -1: .*equal to 0$"),
        ({"partition-id": 10**9, "data-path": "/a.jsonl"}, "partition-id = 10.*: .*less than 10"),
    ],
)
def test_a_number_out_of_its_range_is_named(node_config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Node.from_config(node_config, node_id=1)


@pytest.mark.parametrize("node_config", [{}, {"partition-id": 0}, {"num-partitions": 2}])
def test_neither_is_refused_with_both_ways_out(node_config: dict[str, int]) -> None:
    with pytest.raises(
        ConfigError, match=r"partition-id=0 num-partitions=3.*partition-id=0 data-path="
    ):
        Node.from_config(node_config, node_id=1)


PARTITION: dict[str, Any] = {"partition-id": 0, "num-partitions": 2}


@pytest.mark.parametrize("budget", [1, 4, 0.5, 1.0, None])
def test_an_expert_budget_is_a_number_or_a_share(budget: float | None) -> None:
    own = {} if budget is None else {"expert-budget": budget}
    node = Node.from_config(PARTITION | own, node_id=1)
    assert node.expert_budget == budget
    assert type(node.expert_budget) is type(budget)


@pytest.mark.parametrize("budget", [0, -1, 1.5, "2", True])
def test_any_other_expert_budget_is_named(budget: Any) -> None:
    with pytest.raises(ConfigError) as error:
        Node.from_config(PARTITION | {"expert-budget": budget}, node_id=1)
    start = f"node config expert-budget = {json.dumps(budget)}: {budget!r} is no expert budget: "
    assert str(error.value).startswith(start)


@pytest.mark.parametrize("value", [0, -1.5, "12", True, float("inf"), float("nan")])
def test_a_memory_budget_that_is_none(value: object) -> None:
    with pytest.raises(ConfigError, match="memory-budget = .*must be a number of GiB above 0"):
        Node.from_config({"partition-id": 0, "num-partitions": 2, "memory-budget": value}, 7)


def test_a_memory_budget_may_be_whole() -> None:
    node = Node.from_config({"partition-id": 0, "num-partitions": 2, "memory-budget": 12}, 7)
    assert node.memory_budget == 12.0


def test_a_codec_is_checked_and_all_faults_are_named_at_once() -> None:
    assert Node.from_config(PARTITION | {"codec": "int8"}, 7).codec == "int8"
    with pytest.raises(ConfigError, match=r'partition-id = -1: .*; codec = "zip": .*choose one of'):
        Node.from_config(PARTITION | {"partition-id": -1, "codec": "zip"}, 7)


def test_a_device_map_is_auto_or_left_out() -> None:
    assert Node.from_config(PARTITION, 7).device_map is None
    assert Node.from_config(PARTITION | {"device-map": "auto"}, 7).device_map == "auto"
    with pytest.raises(ConfigError, match='device-map = "cuda:1": .*auto'):
        Node.from_config(PARTITION | {"device-map": "cuda:1"}, 7)
