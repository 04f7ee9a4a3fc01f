"""Mutated replies: each is rejected with a reason, whatever a mutation hits, and cheaply."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedmoe_app.wire.codecs import CODEC_NAMES, make_codec
from fedmoe_app.wire.errors import InvalidUpdateError
from fedmoe_app.wire.packing import MAX_CHANGE
from fedmoe_app.wire.records import UpdateSpec, decode_update, encode_update
from fedmoe_app.wire.replies import seal
from tests.wire.large import large_state, large_update

SPEC = UpdateSpec.of(large_state(), region_size=4, codecs=CODEC_NAMES)
SENT = {name: encode_update(large_update(), make_codec(name), (1, 2, 3)) for name in CODEC_NAMES}
MAX_MEMORY = 4_000_000  # bytes; the largest that a reply of the toy's size may make decoding take

Mutate = Callable[[RecordDict, st.DataObject], None]


def copied(reply: RecordDict) -> RecordDict:
    """Records and arrays of their own, as a message's."""
    arrays = {
        name: Array(a.dtype, tuple(a.shape), a.stype, a.data)
        for name, a in reply.array_records["arrays"].items()
    }
    return RecordDict(
        {
            "arrays": ArrayRecord(arrays),
            "metrics": MetricRecord(dict(reply.metric_records["metrics"])),
            "update": ConfigRecord(dict(reply.config_records["update"])),
        }
    )


def pick(reply: RecordDict, data: st.DataObject) -> tuple[str, Array]:
    arrays = reply.array_records["arrays"]
    name = data.draw(st.sampled_from(sorted(arrays)))
    return name, arrays[name]


def flip(reply: RecordDict, data: st.DataObject) -> None:
    name, array = pick(reply, data)
    content = bytearray(array.data or b"\0")
    for at in data.draw(st.lists(st.integers(0, 8 * len(content) - 1), min_size=1, max_size=4)):
        content[at // 8] ^= 1 << at % 8
    put(reply, name, bytes(content))


def cut(reply: RecordDict, data: st.DataObject) -> None:
    name, array = pick(reply, data)
    put(reply, name, array.data[: data.draw(st.integers(0, len(array.data)))])


def lengthen(reply: RecordDict, data: st.DataObject) -> None:
    name, array = pick(reply, data)
    put(reply, name, array.data + data.draw(st.binary(min_size=1)) * data.draw(st.integers(1, 999)))


def overwrite(reply: RecordDict, data: st.DataObject) -> None:
    name, array = pick(reply, data)
    at = data.draw(st.integers(0, len(array.data)))
    more = data.draw(st.binary(min_size=1, max_size=16))
    put(reply, name, array.data[:at] + more + array.data[at + len(more) :])


def mislabel(reply: RecordDict, data: st.DataObject) -> None:
    name, array = pick(reply, data)
    shape = tuple(data.draw(st.lists(st.integers(0, 2**62), max_size=3)))
    kind = data.draw(st.sampled_from(["fedmoe.raw", "numpy.ndarray", ""]))
    dtype = data.draw(st.sampled_from(["uint8", "float32", "object"]))
    reply.array_records["arrays"][name] = Array(dtype, shape, kind, array.data)


def swap(reply: RecordDict, data: st.DataObject) -> None:
    (name, array), (other, second) = pick(reply, data), pick(reply, data)
    put(reply, name, second.data)
    put(reply, other, array.data)


def drop(reply: RecordDict, data: st.DataObject) -> None:
    record: Any = reply[data.draw(st.sampled_from(sorted(reply)))]
    record.pop(data.draw(st.sampled_from(sorted(record))))


def metric(reply: RecordDict, data: st.DataObject) -> None:
    metrics = reply.metric_records["metrics"]
    name = data.draw(st.sampled_from(sorted(metrics)) | st.text(max_size=9))
    numbers = st.integers(-(2**63), 2**63 - 1) | st.floats()
    metrics[name] = data.draw(numbers | st.lists(st.integers(0, 9), max_size=3))


def entry(reply: RecordDict, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["codec", "held", "checksum", "other"]))
    codecs = st.sampled_from([*CODEC_NAMES, "zip"])
    value = data.draw(codecs | st.text() | st.binary() | st.integers(0, 9))
    reply.config_records["update"][name] = value


def put(reply: RecordDict, name: str, content: bytes) -> None:
    reply.array_records["arrays"][name] = Array("uint8", (len(content),), "fedmoe.raw", content)


MUTATIONS: list[Mutate] = [
    flip, cut, lengthen, overwrite, mislabel, swap, drop, metric, entry,
]  # fmt: skip


def contents(reply: RecordDict) -> list[Any]:
    arrays = reply.array_records["arrays"]
    return [
        {name: (a.dtype, tuple(a.shape), a.stype, a.data) for name, a in arrays.items()},
        repr(sorted(reply.metric_records["metrics"].items())),
        repr(sorted(reply.config_records["update"].items())),
    ]


def check(data: st.DataObject) -> None:
    """Mutate a reply; it is rejected, unless it is the same as before or sealed by a liar."""
    sent = SENT[data.draw(st.sampled_from(CODEC_NAMES))]
    reply = copied(sent)
    for mutate in data.draw(st.lists(st.sampled_from(MUTATIONS), min_size=1, max_size=3)):
        mutate(reply, data)
        if not all(reply[record] for record in reply):
            break
    same = contents(reply) == contents(sent)
    sealed = data.draw(st.booleans()) and set(reply.config_records["update"]) <= {
        "codec", "held", "checksum",
    }  # fmt: skip
    if sealed:
        seal(reply)
    tracemalloc.start()
    try:
        update = decode_update(reply, SPEC)
    except InvalidUpdateError as error:
        assert not same and len(str(error)) < 1000 and error.kind
        return
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < MAX_MEMORY
    assert same or sealed, "a damaged reply was taken"
    tensors = dict(update.changes.named())
    trained = [tuple(key) for key in (update.routing.trained > 0).nonzero().tolist()]
    assert {n: tuple(t.shape) for n, t in tensors.items()} == SPEC.shapes(trained)
    assert all(bool((t.abs() <= MAX_CHANGE).all()) for t in tensors.values())


OPTIONS: dict[str, Any] = {
    "deadline": None, "derandomize": True, "database": None,
    "suppress_health_check": list(HealthCheck),
}  # fmt: skip


@settings(max_examples=60, **OPTIONS)
@given(st.data())
def test_no_mutated_reply_is_taken(data: st.DataObject) -> None:
    check(data)


@pytest.mark.slow
@settings(max_examples=10_000, **OPTIONS)
@given(st.data())
def test_none_of_ten_thousand_mutated_replies_is_taken(data: st.DataObject) -> None:
    check(data)


def test_what_was_sent_is_taken() -> None:
    for name in CODEC_NAMES:
        assert decode_update(copied(SENT[name]), SPEC).codec == name


def test_an_absurd_claim_costs_no_memory() -> None:
    for name in CODEC_NAMES:
        reply = copied(SENT[name])
        put(reply, "coded", (2**32 - 1).to_bytes(4, "little") * 3)
        seal(reply)
        tracemalloc.start()
        with pytest.raises(InvalidUpdateError):
            decode_update(reply, SPEC)
        assert tracemalloc.get_traced_memory()[1] < 200_000
        tracemalloc.stop()
