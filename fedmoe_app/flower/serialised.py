"""The bytes of a record as Flower sends it."""

from __future__ import annotations

from flwr.app import ConfigRecord
from flwr.common.serde import config_record_to_proto


def config_record_bytes(record: ConfigRecord) -> int:
    """Return the size in bytes; Flower's own count fails on empty strings and lists."""
    return len(config_record_to_proto(record).SerializeToString())
