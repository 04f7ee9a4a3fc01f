"""Tasks and updates as Flower records: the names that the rest of the program uses, and sizes."""

from __future__ import annotations

from typing import Any

from flwr.app import RecordDict

from fedmoe_app.config.names import PROTOCOL
from fedmoe_app.flower.serialised import config_record_bytes
from fedmoe_app.wire.numbers import decode_client, decode_number, encode_number
from fedmoe_app.wire.packing import MAX_CHANGE
from fedmoe_app.wire.question import Question
from fedmoe_app.wire.replies import decode_update, decode_version, encode_update, seal, stamp
from fedmoe_app.wire.scores import decode_score, encode_score
from fedmoe_app.wire.spec import UpdateSpec
from fedmoe_app.wire.tasks import (
    ProtocolError,
    TrainTask,
    decode_state,
    decode_task,
    decode_tensors,
    encode_state,
    encode_task,
    encode_tensors,
)

__all__ = [
    "MAX_CHANGE",
    "PROTOCOL",
    "ProtocolError",
    "Question",
    "TrainTask",
    "UpdateSpec",
    "decode_client",
    "decode_number",
    "decode_score",
    "decode_state",
    "decode_task",
    "decode_tensors",
    "decode_update",
    "decode_version",
    "encode_number",
    "encode_score",
    "encode_state",
    "encode_task",
    "encode_tensors",
    "encode_update",
    "record_bytes",
    "seal",
    "stamp",
]


def record_bytes(content: RecordDict) -> int:
    """Return the size of a message's records in bytes: keys and payload, as Flower counts them."""
    counted: list[Any] = [*content.array_records.values(), *content.metric_records.values()]
    config = sum(config_record_bytes(record) for record in content.config_records.values())
    return config + sum(record.count_bytes() for record in counted)
