"""Round trips through Flower's records, and every way in which a reply may be wrong."""

import struct
from collections.abc import Callable

import pytest
import torch
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict

from fedmoe_app import ModelState
from fedmoe_app.wire.errors import InvalidUpdateError
from fedmoe_app.wire.packing import raw_array
from fedmoe_app.wire.records import (
    ProtocolError,
    UpdateSpec,
    decode_score,
    decode_task,
    decode_update,
    encode_score,
    encode_state,
    encode_task,
    encode_update,
    record_bytes,
)
from fedmoe_app.wire.replies import seal
from fedmoe_app.wire.update import ClientScore
from tests.toy import toy_state, toy_update

SPEC = UpdateSpec.of(toy_state())
SENT = toy_update(3, 17, 0.5, [(0, 1), (1, 2)])


def reply() -> RecordDict:
    return encode_update(SENT)


def assert_equal(left: ModelState, right: ModelState) -> None:
    a, b = dict(left.named()), dict(right.named())
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_an_update_survives_the_round_trip() -> None:
    update = decode_update(reply(), SPEC)
    assert (update.client, update.num_examples, update.metrics) == (3, 17, {"train-loss": 1.5})
    assert_equal(update.changes, SENT.changes)
    assert torch.equal(update.routing.count, SENT.routing.count)
    assert torch.equal(update.routing.trained, SENT.routing.trained)


def test_bytes_are_those_of_the_records() -> None:
    records = reply()
    arrays = sum(len(a.data) for r in records.array_records.values() for a in r.values())
    assert arrays < record_bytes(records) < arrays + 400
    fewer = encode_update(toy_update(3, 17, 0.5, [(0, 1)]))
    assert record_bytes(records) - record_bytes(fewer) == 3 * 4  # the numbers of one expert


def test_a_task_survives_the_round_trip() -> None:
    broadcast = {"layers.0.reference": torch.ones(2, 3)}
    decoded = decode_task(
        encode_task(encode_state(toy_state()), 4, ("a", "b"), "f1", broadcast, {"own": 1})
    )
    assert (decoded.server_round, decoded.label_names, decoded.data_fingerprint) == (
        4,
        ("a", "b"),
        "f1",
    )
    assert_equal(decoded.state, toy_state())
    assert torch.equal(decoded.broadcast["layers.0.reference"], torch.ones(2, 3))


def test_another_protocol_is_refused_by_the_client() -> None:
    records = encode_task(encode_state(toy_state()), 1)
    records.config_records["task"]["protocol"] = 99
    with pytest.raises(ProtocolError, match="protocol 99.*same version"):
        decode_task(records)


def buffer(name: str, data: bytes) -> Callable[[RecordDict], None]:
    def put(records: RecordDict) -> None:
        records.array_records["arrays"][name] = raw_array(data)

    return put


def changed(name: str, at: int, value: bytes) -> Callable[[RecordDict], None]:
    """Overwrite bytes of a buffer, as a client would that means it: the checksum is right."""

    def put(records: RecordDict) -> None:
        data = bytearray(records.array_records["arrays"][name].data)
        data[at : at + len(value)] = value
        buffer(name, bytes(data))(records)

    return put


def metric(name: str, value: float) -> Callable[[RecordDict], None]:
    return lambda records: records.metric_records["metrics"].update({name: value})


def claim(dtype: str, shape: tuple[int, ...], stype: str) -> Callable[[RecordDict], None]:
    """Say something else of the bytes than they are."""

    def put(records: RecordDict) -> None:
        data = records.array_records["arrays"]["small"].data
        records.array_records["arrays"]["small"] = Array(dtype, shape, stype, data)

    return put


NAN, HUGE, MINUS = (struct.pack("<f", v) for v in (float("nan"), 3e38, -1.0))
# The toy's changes are all small: dense 2, gates 2 x 6, two experts of 3; 20 numbers in fp32.
# Its routing: a byte and 6 counts, a byte and 6 trained, a byte and 2 tokens, then 4 x 6 floats.
PROB, PEAK = 17, 17 + 2 * 24
FAULTS: dict[str, tuple[Callable[[RecordDict], None], str, str]] = {
    "nan": (changed("small", 0, NAN * 2), "values", r"head\.weight: 2 of 2 values are NaN"),
    "gate": (changed("small", 8, NAN), "values", r"layers\.0\.gate\.weight: 1 of 6 values are NaN"),
    "huge": (changed("small", 4, HUGE), "values", r"a value changed by 3e\+38, at most 10000"),
    "short": (buffer("small", bytes(76)), "size", r"fp32: 76 bytes of data, expected 80"),
    "long": (buffer("small", bytes(84)), "size", r"fp32: 84 bytes of data, expected 80"),
    "oversized": (
        buffer("small", bytes(10**6)),
        "size",
        r"1000000 bytes, at most 128 are possible",
    ),
    "coded": (buffer("coded", bytes(4)), "size", r"coded: 4 bytes, at most 0 are possible"),
    "claim": (claim("uint8", (2 * 10**12,), "fedmoe.raw"), "size", r"not plain bytes"),
    "dtype": (claim("float64", (80,), "fedmoe.raw"), "size", r"not plain bytes.*float64"),
    "npy": (claim("uint8", (80,), "numpy.ndarray"), "size", r"not plain bytes.*numpy"),
    "missing": (lambda r: r.array_records["arrays"].pop("small"), "missing", r"holds 2 buffers"),
    "unknown": (buffer("head.weight", b""), "missing", r"holds 4 buffers"),
    "kind": (lambda r: r.update(arrays=MetricRecord()), "missing", r"arrays holds no arrays"),
    "name": (metric("x" * 10**6, 1.0), "metrics", r"1 unknown metrics, the first is 'xxx"),
    "record": (lambda r: r.pop("update"), "missing", r"records \['arrays', 'metrics'\]"),
    "codec": (lambda r: header(r, "codec", "zip"), "codec", r"codec 'zip': not offered; .* fp32"),
    "offer": (lambda r: header(r, "codec", "int8"), "codec", r"codec 'int8': not offered"),
    "held": (lambda r: header(r, "held", "x" * 99), "missing", r"update\.'held' = 'xxx"),
    "tokens": (changed("routing", 1, bytes(6)), "values", r"trained that got no token"),
    "counts": (changed("routing", 1, b"\xff"), "values", r"more tokens than there were"),
    "width": (changed("routing", 0, b"\x03"), "size", r"routing\.count: integers of 3 bytes"),
    "prob": (changed("routing", PROB, MINUS), "values", r"routing\.prob: outside 0 to 1"),
    "peak": (changed("routing", PEAK, NAN), "values", r"routing\.peak: 1 of 6 values are NaN"),
    "mass": (changed("routing", PROB, bytes(4)), "values", r"do not sum to 1"),
    "end": (buffer("routing", bytes(8)), "size", r"routing\.count: integers of 0 bytes"),
    "examples": (
        metric("num-examples", 0),
        "metrics",
        r"num-examples = 0: must be an integer of 1",
    ),
    "many": (metric("num-examples", 2**62), "metrics", r"more than the 100000000 allowed"),
    "client": (metric("client", -1), "metrics", r"client = -1"),
    "metric": (metric("train-loss", float("nan")), "metrics", r"'train-loss' = nan: must be a fin"),
    "loss": (lambda r: r.metric_records["metrics"].pop("train-loss"), "missing", r"train-loss is"),
    "protocol": (metric("protocol", 2), "protocol", r"another protocol version, 2"),
}


def header(records: RecordDict, entry: str, value: str) -> None:
    records.config_records["update"][entry] = value


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_reply_is_rejected_with_the_reason(fault: str) -> None:
    corrupt, kind, reason = FAULTS[fault]
    records = reply()
    corrupt(records)
    if "update" in records:
        seal(records)
    with pytest.raises(InvalidUpdateError, match=reason) as error:
        decode_update(records, SPEC)
    assert error.value.kind == kind


def test_damage_is_told_from_lies_by_the_checksum() -> None:
    for corrupt in (changed("small", 0, b"\x01"), metric("num-examples", 18)):
        records = reply()
        corrupt(records)
        with pytest.raises(InvalidUpdateError, match="checksum is wrong") as error:
            decode_update(records, SPEC)
        assert error.value.kind == "checksum"


def test_reasons_are_short_whatever_a_client_sends() -> None:
    records = reply()
    for i in range(2000):
        records.array_records["arrays"][f"x{i}"] = raw_array(b"")
    with pytest.raises(InvalidUpdateError) as error:
        decode_update(records, SPEC)
    assert len(str(error.value)) < 300


def test_a_score_survives_the_round_trip() -> None:
    score = ClientScore(client=4, loss=2.5, correct=3, items=7)
    assert decode_score(encode_score(score)) == score


@pytest.mark.parametrize(
    ("name", "value"), [("items", -1), ("correct", 8), ("loss", float("inf")), ("client", 1.5)]
)
def test_a_score_with_a_wrong_number_is_rejected(name: str, value: float) -> None:
    records = encode_score(ClientScore(client=4, loss=2.5, correct=3, items=7))
    records.metric_records["metrics"][name] = value
    with pytest.raises(InvalidUpdateError, match=name):
        decode_score(records)


def test_an_empty_reply_is_rejected() -> None:
    with pytest.raises(InvalidUpdateError, match="another protocol version, None"):
        decode_update(RecordDict({"arrays": ArrayRecord()}), SPEC)
