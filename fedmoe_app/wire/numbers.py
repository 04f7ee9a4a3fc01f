"""A client's number as it travels, and counts in general; no heavy import."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flwr.app import ConfigRecord, MetricRecord, RecordDict

from fedmoe_app.shown.values import shown
from fedmoe_app.wire.errors import InvalidUpdateError
from fedmoe_app.wire.question import RECORD, Question

# A client without a partition-id has its node's id for a number: 64 random bits.
MAX_CLIENT = 2**64 - 1


def encode_number(client: int, question: Question | None = None) -> RecordDict:
    """Encode the reply of a node that tells its client's number and nothing else."""
    return RecordDict(
        {
            "metrics": MetricRecord({"client": client}),
            RECORD: ConfigRecord((question or Question()).answer()),
        }
    )


def decode_number(content: RecordDict, question: Question, more: tuple[str, ...] = ()) -> int:
    """Decode and validate what :func:`encode_number` has encoded.

    Args:
        content: of the reply.
        question: that was asked.
        more: names of further records, which the caller checks.

    Raises:
        InvalidUpdateError: if anything is missing, unknown or no number of a client, or if it
            answers another message.
    """
    check_records(content, ("metrics", RECORD, *more))
    check_entries(content.config_records[RECORD], question.answer())
    question.check(content.config_records[RECORD])
    check_entries(content.metric_records["metrics"], ("client",))
    return decode_client(content)


def decode_client(content: RecordDict) -> int:
    """Return the client's number that every reply carries.

    Raises:
        InvalidUpdateError: if there is none.
    """
    metrics = content.metric_records.get("metrics", MetricRecord())
    return whole(metrics.get("client"), "client", 0, MAX_CLIENT)


def whole(value: Any, key: str, lowest: int, highest: int) -> int:
    """Return an integer of a range.

    Raises:
        InvalidUpdateError: of kind ``metrics``, if it is anything else.
    """
    if type(value) is not int or value < lowest:  # bool is a kind of int
        raise InvalidUpdateError(
            f"{key} = {shown(value)}: must be an integer of {lowest} or more", "metrics"
        )
    if value > highest:
        raise InvalidUpdateError(f"{key} = {value}: more than the {highest} allowed", "metrics")
    return value


def check_records(content: RecordDict, names: tuple[str, ...]) -> None:
    """Refuse a reply that has other records than these; the caller looks at those of arrays.

    Raises:
        InvalidUpdateError: of kind ``missing``.
    """
    kinds = "metrics" in content.metric_records and RECORD in content.config_records
    if set(content) != set(names) or not kinds:
        raise InvalidUpdateError(
            f"records {shown(sorted(content))}, expected {', '.join(names)}", "missing"
        )


def check_entries(record: Mapping[str, Any], names: Mapping[str, Any] | tuple[str, ...]) -> None:
    """Refuse a record that has other entries than these.

    Raises:
        InvalidUpdateError: of kind ``missing``.
    """
    if record.keys() != set(names):
        raise InvalidUpdateError(
            f"{len(record)} entries {shown(sorted(record))}, expected {', '.join(names)}",
            "missing",
        )
