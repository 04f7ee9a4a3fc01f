"""Replies of masked sums: whole, or refused before anything is added."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from fedmoe_app.wire.errors import InvalidUpdateError
from fedmoe_app.wire.masked import (
    by_node,
    decode_answer,
    encode_answer,
    read_by_node,
    read_nodes,
)
from fedmoe_app.wire.packing import raw_array
from fedmoe_app.wire.question import Question
from fedmoe_app.wire.replies import seal

QUESTION = Question(3, "ab" * 16, 2)
VECTOR = np.arange(5, dtype=np.uint32) + np.uint32(2**31)


def reply() -> RecordDict:
    return encode_answer(4, QUESTION, {"number": 1}, VECTOR)


@pytest.mark.parametrize("dtype", [np.uint32, np.uint64])
def test_a_reply_comes_back_as_it_was(dtype: type) -> None:
    content = encode_answer(4, QUESTION, {"number": 1}, VECTOR.astype(dtype))
    answer = decode_answer(content, QUESTION, 5, dtype)
    assert (answer.client, dict(answer.entries)) == (4, {"number": 1})
    assert np.array_equal(answer.vector, VECTOR)
    assert answer.vector.dtype == dtype


def damaged(content: RecordDict) -> None:
    content.array_records["masked"]["vector"] = raw_array((VECTOR + np.uint32(1)).tobytes())


def longer(content: RecordDict) -> None:
    content.array_records["masked"]["vector"] = raw_array(bytes(24))
    seal(content)


def of_another_round(content: RecordDict) -> None:
    content.config_records["update"]["round"] = 2
    seal(content)


def more_records(content: RecordDict) -> None:
    content["metrics2"] = ConfigRecord({})


def arrays_for_entries(content: RecordDict) -> None:
    content["sum"] = ArrayRecord({})


def metrics_beside(content: RecordDict) -> None:
    content.metric_records["metrics"]["loss"] = 0.5
    seal(content)


BAD: dict[Callable[[RecordDict], None], str] = {
    damaged: "checksum is wrong",
    longer: "24 bytes",
    of_another_round: "it answers round 2",
    more_records: "records",
    arrays_for_entries: "of another kind",
    metrics_beside: "2 entries",
}


@pytest.mark.parametrize("change", BAD, ids=lambda change: change.__name__)
def test_anything_else_is_refused(change: Callable[[RecordDict], None]) -> None:
    content = reply()
    change(content)
    with pytest.raises(InvalidUpdateError, match=BAD[change]):
        decode_answer(content, QUESTION, 5)


def test_another_length_than_asked_for_is_refused() -> None:
    for size in (4, 6):
        with pytest.raises(InvalidUpdateError, match="20 bytes"):
            decode_answer(reply(), QUESTION, size)


def test_ids_of_64_bits_travel_with_their_values() -> None:
    entries = by_node({2**64 - 1: b"a", 3: b"b"})
    assert read_by_node(entries) == {2**64 - 1: (b"a",), 3: (b"b",)}
    assert read_by_node({"nodes": ["3"], "values": [b"a", b"b"]}, each=2) == {3: (b"a", b"b")}


@pytest.mark.parametrize(
    "entries",
    [
        {"nodes": ["1", "2"], "values": [b"a"]},
        {"nodes": ["1"], "values": ["a"]},
        {"nodes": "1", "values": [b"a"]},
        {"nodes": ["1", "1"], "values": [b"a", b"b"]},
        {"nodes": ["-1"], "values": [b"a"]},
    ],
)
def test_lists_that_do_not_fit_are_refused(entries: dict[str, object]) -> None:
    with pytest.raises(InvalidUpdateError):
        read_by_node(entries)


def test_nodes_are_texts() -> None:
    assert read_nodes(["7", "8"]) == [7, 8]
    with pytest.raises(InvalidUpdateError):
        read_nodes([7])
