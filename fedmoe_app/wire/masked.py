"""Messages of masked sums, and their replies.

Down: ``task`` (run, round, state) and ``sum`` (what a step of the protocol takes). Up: ``metrics``
(the client's number), ``update`` (what it answers, and a checksum), ``sum``, and in ``masked`` a
vector of whole numbers, which says nothing by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.typing import NDArray

from fedmoe_app.shown.values import shown
from fedmoe_app.wire.errors import InvalidUpdateError
from fedmoe_app.wire.numbers import check_entries, check_records, decode_client
from fedmoe_app.wire.packing import raw_array, read_raw
from fedmoe_app.wire.question import RECORD, Question
from fedmoe_app.wire.replies import checksum, seal

SUM, MASKED = "sum", "masked"  # records
VECTOR = "vector"
Entries = Mapping[str, Any]


@dataclass(frozen=True)
class Answer:
    """A reply within a masked sum: the client's number, its entries, and its vector."""

    client: int
    entries: Entries
    vector: NDArray[np.unsignedinteger]


def ask(question: Question, entries: Entries) -> RecordDict:
    """Return the content of a message of the protocol."""
    return RecordDict({"task": ConfigRecord(question.task()), SUM: ConfigRecord(dict(entries))})


def encode_answer(
    client: int,
    question: Question,
    entries: Entries | None = None,
    vector: NDArray[np.unsignedinteger] | None = None,
    version: str = "",
) -> RecordDict:
    """Encode a reply.

    Args:
        client: its number.
        question: of the message that it answers.
        entries: of the record ``sum``.
        vector: masked.
        version: of the received state that the node has on its disk, "" for none.
    """
    data = b"" if vector is None else vector.tobytes()
    return seal(
        RecordDict(
            {
                "metrics": MetricRecord({"client": client}),
                RECORD: ConfigRecord({**question.answer(), "held": version}),
                SUM: ConfigRecord(dict(entries or {})),
                MASKED: ArrayRecord({VECTOR: raw_array(data)}),
            }
        )
    )


def decode_answer(
    content: RecordDict, question: Question, size: int = 0, dtype: type = np.uint32
) -> Answer:
    """Decode and validate a reply.

    Args:
        content: of the reply.
        question: that was asked.
        size: numbers of the vector.
        dtype: of them.

    Raises:
        InvalidUpdateError: if anything is missing, unknown, damaged or of another length, or if it
            answers another message.
    """
    check_records(content, ("metrics", RECORD, SUM, MASKED))
    if SUM not in content.config_records or MASKED not in content.array_records:
        raise InvalidUpdateError(f"records {SUM} and {MASKED} are of another kind", "missing")
    header: Any = dict(content.config_records[RECORD])
    check_entries(header, (*question.answer(), "held", "checksum"))
    question.check(header)
    metrics = content.metric_records["metrics"]
    check_entries(metrics, ("client",))
    arrays = content.array_records[MASKED]
    check_entries(arrays, (VECTOR,))
    if header.pop("checksum") != checksum(header, metrics, arrays):
        raise InvalidUpdateError("the checksum is wrong: the reply was damaged", "checksum")
    length = size * np.dtype(dtype).itemsize
    data = read_raw(arrays[VECTOR], VECTOR, length)
    if len(data) != length:
        raise InvalidUpdateError(f"{VECTOR}: {len(data)} bytes, expected {length}", "size")
    vector: NDArray[Any] = np.frombuffer(data, dtype)
    return Answer(decode_client(content), dict(content.config_records[SUM]), vector)


def by_node(values: Mapping[int, bytes]) -> dict[str, Any]:
    """Return bytes by node as entries; ids of 64 bits travel as text."""
    return {"nodes": [str(node) for node in values], "values": list(values.values())}


def read_by_node(entries: Entries, each: int = 1) -> dict[int, tuple[bytes, ...]]:
    """Undo :func:`by_node`, for so many values a node.

    Raises:
        InvalidUpdateError: they do not fit each other.
    """
    nodes, values = entries.get("nodes", []), entries.get("values", [])
    lists = isinstance(nodes, list) and isinstance(values, list)
    if not lists or len(values) != each * len(nodes):
        raise InvalidUpdateError(f"{SUM}: {shown(nodes)} with values of other nodes", "missing")
    if not all(isinstance(value, bytes) for value in values):
        raise InvalidUpdateError(f"{SUM}: values that are no bytes", "missing")
    rows = [tuple(values[i : i + each]) for i in range(0, len(values), each)]
    return dict(zip(read_nodes(nodes), rows, strict=True))


def read_nodes(nodes: Any) -> list[int]:
    """Return node ids from their texts.

    Raises:
        InvalidUpdateError: one is none, or there twice.
    """
    texts: Sequence[Any] = nodes if isinstance(nodes, list) else []
    if not all(isinstance(text, str) and text.isdecimal() for text in texts):
        raise InvalidUpdateError(f"{SUM}: {shown(nodes)} are no node ids", "missing")
    found = [int(text) for text in texts]
    if len(set(found)) != len(found):
        raise InvalidUpdateError(f"{SUM}: a node twice", "missing")
    return found
