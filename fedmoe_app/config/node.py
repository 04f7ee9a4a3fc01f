"""What a node knows of itself: its client number, where its data is, what it can train.

Expert budgets: how many experts a layer a client can train.

A budget is a number of experts (an integer, 1 or more) or a share of a layer's experts (a number
with a decimal point, above 0 and at most 1): ``2`` is two experts, ``0.5`` half of them, ``1.0``
all. One below the model's top-k is allowed, because it bounds training, not the forward pass; a
number above E means all experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedmoe_app.config.errors import ConfigError
from fedmoe_app.config.names import MAX_GIVEN, check_codec

Budget = int | float


def check_budget(value: Any) -> Budget:
    """Return a valid budget.

    Raises:
        ValueError: naming the two allowed forms.
    """
    is_number = type(value) is int and value >= 1
    is_share = type(value) is float and 0 < value <= 1
    if not (is_number or is_share):
        raise ValueError(
            f"{value!r} is no expert budget: give a number of experts a layer (1, 2, ...) or a "
            "share of them, above 0 and at most 1.0"
        )
    return value


def parse_budgets(text: str) -> tuple[Budget, ...]:
    """Read a comma-separated list such as ``2, 4, 0.5``.

    Raises:
        ValueError: if the list is empty or an entry is no budget.
    """
    entries = [entry.strip() for entry in text.split(",") if entry.strip()]
    if not entries:
        raise ValueError("name at least one expert budget, such as 4 or 0.5")
    return tuple(check_budget(_number(entry)) for entry in entries)


def experts_in(budget: Budget, num_experts: int) -> int:
    """Return the budget as a number of a layer's E experts, 1 to E; a share is rounded down."""
    if isinstance(budget, float):
        # A hair more than the product: 0.7 of 10 experts is 7, whatever binary fractions say.
        return max(1, int(budget * num_experts + 1e-9))
    return min(budget, num_experts)


def _number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


@dataclass(frozen=True)
class Node:
    """A client's identity, from the node config of its SuperNode.

    Attributes:
        client: stable number in metrics and in the order of folding: ``partition-id`` where the
            node config has one, else Flower's node id.
        partition_id: which partition of ``data.source`` is this node's.
        num_partitions: into how many the source is split.
        data_path: the node's own file, instead of a partition.
        expert_budget: experts a layer that the node can train, as a number or a share; None if the
            node config does not say.
        memory_budget: GiB that the node may use in a round; None if the node config does not say.
        codec: that the node wants to send its updates in; None leaves it to the server.
    """

    client: int
    partition_id: int | None
    num_partitions: int | None
    data_path: str | None
    expert_budget: Budget | None = None
    memory_budget: float | None = None
    codec: str | None = None

    @classmethod
    def from_config(cls, node_config: Mapping[str, Any], node_id: int) -> Node:
        """Read the keys of the node config; their names are the attributes' with hyphens.

        Raises:
            ConfigError: if the node has neither a data path nor a whole partition, a number
                that is not an integer in its range, or a budget or codec that is none.
        """
        num_partitions = _integer(node_config, "num-partitions", 1, None)
        partition_id = _integer(node_config, "partition-id", 0, num_partitions)
        if partition_id is not None and partition_id >= MAX_GIVEN:
            # Those are numbers of nodes without a partition-id, which are their node ids.
            raise ConfigError(
                f"node config partition-id = {partition_id}: must be below {MAX_GIVEN}"
            )
        data_path = node_config.get("data-path")
        if data_path is None and (partition_id is None or num_partitions is None):
            raise ConfigError(
                f"node config {dict(node_config)}: give the SuperNode --node-config "
                "'partition-id=0 num-partitions=3' or, for a file of its own, --node-config "
                "'partition-id=0 data-path=\"/abs/file\"', each node another partition-id"
            )
        return cls(
            client=node_id if partition_id is None else partition_id,
            partition_id=partition_id,
            num_partitions=num_partitions,
            data_path=None if data_path is None else str(data_path),
            expert_budget=_budget(node_config),
            memory_budget=_memory(node_config),
            codec=_codec(node_config),
        )


def _budget(node_config: Mapping[str, Any]) -> Budget | None:
    value = node_config.get("expert-budget")
    try:
        return None if value is None else check_budget(value)
    except ValueError as error:
        raise ConfigError(f"node config expert-budget = {value!r}: {error}") from None


def _memory(node_config: Mapping[str, Any]) -> float | None:
    value = node_config.get("memory-budget")
    if value is None:
        return None
    # bool is a kind of int.
    if type(value) not in (int, float) or not 0 < value < float("inf"):
        raise ConfigError(
            f"node config memory-budget = {value!r}: must be a number of GiB above 0, such as 12 "
            "or 7.5"
        )
    return float(value)


def _codec(node_config: Mapping[str, Any]) -> str | None:
    value = node_config.get("codec")
    try:
        return None if value is None else check_codec(str(value))
    except ValueError as error:
        raise ConfigError(f"node config codec = {error}") from None


def _integer(node_config: Mapping[str, Any], key: str, lowest: int, end: int | None) -> int | None:
    """Return an integer of the node config, at least ``lowest`` and below ``end``."""
    value = node_config.get(key)
    if value is None:
        return None
    # bool is a kind of int; strings and floats would be rounded or read by int() without a word.
    fits = type(value) is int and value >= lowest and (end is None or value < end)
    if not fits:
        upper = "" if end is None else f" and below num-partitions = {end}"
        raise ConfigError(
            f"node config {key} = {value!r}: must be an integer, at least {lowest}{upper}"
        )
    return int(value)
