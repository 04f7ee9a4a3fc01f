"""What a node knows of itself: its client number, where its data is, what it can train.

Expert budgets: how many experts a layer a client can train.

A budget is a number of experts (an integer, 1 or more) or a share of a layer's experts (a number
with a decimal point, above 0 and at most 1): ``2`` is two experts, ``0.5`` half of them, ``1.0``
all. One below the model's top-k is allowed, because it bounds training, not the forward pass; a
number above E means all experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
)
from pydantic.dataclasses import dataclass

from fedmoe_app.config.errors import ConfigError
from fedmoe_app.config.names import MAX_GIVEN, check_codec
from fedmoe_app.config.section import describe

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


def _check_memory(value: Any) -> float:
    # bool is a kind of int.
    if type(value) not in (int, float) or not 0 < value < float("inf"):
        raise ValueError("must be a number of GiB above 0, such as 12 or 7.5")
    return float(value)


@dataclass(frozen=True, config=ConfigDict(strict=True))
class Node:
    """A client's identity, from the node config of its SuperNode.

    Attributes:
        client: stable number in metrics and in the order of folding: ``partition-id`` where the
            node config has one, else Flower's node id.
        partition_id: which partition of ``data.source`` is this node's. Higher numbers belong to
            nodes without one: they are their node ids.
        num_partitions: into how many the source is split.
        data_path: the node's own file, instead of a partition.
        expert_budget: experts a layer that the node can train, as a number or a share; None if the
            node config does not say.
        memory_budget: GiB that the node may use in a round; None if the node config does not say.
        codec: that the node wants to send its updates in; None leaves it to the server.
        device_map: ``auto`` divides the frozen base among all GPUs that the node sees; None leaves
            it on the first.
    """

    client: int
    partition_id: Annotated[int, Field(ge=0, lt=MAX_GIVEN)] | None = None
    num_partitions: Annotated[int, Field(ge=1)] | None = None
    data_path: Annotated[str, BeforeValidator(str)] | None = None
    expert_budget: Annotated[Budget, PlainValidator(check_budget)] | None = None
    memory_budget: Annotated[float, PlainValidator(_check_memory)] | None = None
    codec: Annotated[str, AfterValidator(check_codec)] | None = None
    device_map: Literal["auto"] | None = None

    @classmethod
    def from_config(cls, node_config: Mapping[str, Any], node_id: int) -> Node:
        """Read the keys of the node config; their names are the attributes' with hyphens.

        Raises:
            ConfigError: if the node has neither a data path nor a whole partition, a number
                that is not an integer in its range, or a budget, codec or device map that is none.
        """
        keys = {field.name: field.name.replace("_", "-") for field in fields(cls)[1:]}
        given = {name: node_config.get(key) for name, key in keys.items()}
        number = given["partition_id"]
        try:
            node = cls(node_id if number is None else number, **given)
        except ValidationError as error:
            # The client's number is the partition-id, and wrong with it.
            faults = [fault for fault in error.errors() if fault["loc"][0] in keys]
            raise ConfigError(f"node config {'; '.join(map(describe, faults))}") from None
        if node.num_partitions and (node.partition_id or 0) >= node.num_partitions:
            raise ConfigError(
                f"node config partition-id = {node.partition_id}: must be an integer, at least 0 "
                f"and below num-partitions = {node.num_partitions}"
            )
        if node.data_path is None and (number is None or node.num_partitions is None):
            raise ConfigError(
                f"node config {dict(node_config)}: give the SuperNode --node-config "
                "'partition-id=0 num-partitions=3' or, for a file of its own, --node-config "
                "'partition-id=0 data-path=\"/abs/file\"', each node another partition-id"
            )
        return node
