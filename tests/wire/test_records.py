"""Round trips through Flower's records, and every way in which a reply may be wrong."""

from collections.abc import Callable
from io import BytesIO

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, RecordDict

from fedmoe_app.moe.state import ModelState
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
from fedmoe_app.wire.update import ClientScore, InvalidUpdateError
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


def test_only_trained_experts_travel_under_readable_keys() -> None:
    keys = set(reply().array_records["arrays"])
    assert {k for k in keys if ".experts." in k} == {
        "layers.0.experts.1.up",
        "layers.0.experts.1.down",
        "layers.1.experts.2.up",
        "layers.1.experts.2.down",
    }
    assert {"layers.0.gate.weight", "head.weight"} <= keys


def test_bytes_are_those_of_the_records() -> None:
    records = reply()
    arrays = sum(len(a.data) for r in records.array_records.values() for a in r.values())
    assert arrays < record_bytes(records) < arrays + 4000
    fewer = encode_update(toy_update(3, 17, 0.5, [(0, 1)]))
    assert record_bytes(fewer) < record_bytes(records)


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


def set_array(records: RecordDict, record: str, key: str, values: np.ndarray) -> None:
    records.array_records[record][key] = Array(values)


def lie_about_shape(records: RecordDict) -> None:
    """A header that claims terabytes must be rejected before anything is allocated."""
    header = BytesIO()
    claim = {"descr": "<f4", "fortran_order": False, "shape": (2 * 10**12,)}
    np.lib.format.write_array_header_1_0(header, claim)
    records.array_records["arrays"]["head.weight"] = Array(
        dtype="float32", shape=(2,), stype="numpy.ndarray", data=header.getvalue() + bytes(8)
    )


def truncate(records: RecordDict) -> None:
    array = records.array_records["arrays"]["head.weight"]
    records.array_records["arrays"]["head.weight"] = Array(
        dtype=array.dtype, shape=array.shape, stype=array.stype, data=array.data[:-4]
    )


def corrupt(name: str) -> Callable[[RecordDict], None]:
    two, gate = np.ones(2, np.float32), np.ones((3, 2), np.float32)
    stats, counts = np.ones((2, 3), np.float32), np.ones((2, 3), np.int64)
    changes: dict[str, Callable[[RecordDict], None]] = {
        "shape": lambda r: set_array(r, "arrays", "head.weight", np.ones(5, np.float32)),
        "dtype": lambda r: set_array(r, "arrays", "head.weight", np.ones(2, np.float64)),
        "huge": lambda r: set_array(r, "arrays", "head.weight", two * np.float32(3e38)),
        "tokens": lambda r: set_array(r, "routing", "count", counts * 0),
        "many": lambda r: r.metric_records["metrics"].update({"num-examples": 2**62}),
        "nan": lambda r: set_array(r, "arrays", "head.weight", two * np.nan),
        "inf": lambda r: set_array(r, "arrays", "layers.0.gate.weight", gate * np.inf),
        "unknown": lambda r: set_array(r, "arrays", "layers.9.experts.0.up", two),
        "untrained": lambda r: set_array(r, "arrays", "layers.0.experts.0.up", two),
        "missing": lambda r: r.array_records["arrays"].pop("head.weight"),
        "half": lambda r: r.array_records["arrays"].pop("layers.0.experts.1.up"),
        "negative": lambda r: set_array(r, "routing", "count", -counts),
        "weight": lambda r: set_array(r, "routing", "count", counts * 2**40),
        "ages": lambda r: set_array(r, "routing", "tokens", np.full(2, 2**62, np.int64)),
        "mass": lambda r: set_array(r, "routing", "prob", stats),
        "probability": lambda r: set_array(r, "routing", "prob", stats * 2),
        "routing": lambda r: r.array_records["routing"].pop("kl"),
        "record": lambda r: r.pop("routing"),
        "examples": lambda r: r.metric_records["metrics"].update({"num-examples": 0}),
        "client": lambda r: r.metric_records["metrics"].update({"client": -1}),
        "metric": lambda r: r.metric_records["metrics"].update({"train-loss": float("nan")}),
        "loss": lambda r: r.metric_records["metrics"].pop("train-loss"),
        "protocol": lambda r: r.metric_records["metrics"].update({"protocol": 99}),
        "lie": lie_about_shape,
        "truncated": truncate,
    }
    return changes[name]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("shape", r"head\.weight: not a \.npy array of float32 \[2\]; it says float32 \[5\]"),
        ("dtype", r"head\.weight: not a \.npy array of float32 \[2\]; it says float64 \[2\]"),
        ("huge", r"head\.weight: a value changed by 3e\+38, at most 10000 is allowed"),
        ("tokens", r"routing\.trained: an expert was trained that got no token"),
        ("many", r"num-examples = 4611686018427387904: more than the 100000000 allowed"),
        ("nan", r"head\.weight: 2 of 2 values are NaN or infinite"),
        ("inf", r"layers\.0\.gate\.weight: 6 of 6 values are NaN or infinite"),
        ("unknown", r"unknown or of experts not reported as trained.*layers\.9\.experts\.0\.up"),
        ("untrained", r"not reported as trained, such as 'layers\.0\.experts\.0\.up'"),
        ("missing", r"1 tensors are missing, such as head\.weight"),
        ("half", r"1 tensors are missing, such as layers\.0\.experts\.1\.up"),
        ("negative", r"routing\.count: negative count -1"),
        ("weight", r"routing\.count: an expert got more tokens than there were"),
        ("ages", r"routing\.tokens = 4611686018427387904: more than the 1000000000000 allowed"),
        ("mass", r"routing\.prob: a layer's probabilities do not sum to 1"),
        ("probability", r"routing\.prob: outside 0 to 1"),
        ("routing", r"routing holds .* expected .*kl"),
        ("record", r"record 'routing' is missing"),
        ("examples", r"num-examples = 0: must be an integer of 1 or more"),
        ("client", r"client = -1"),
        ("metric", r"metric 'train-loss' = nan: must be a finite number"),
        ("loss", r"metric train-loss is missing"),
        ("protocol", r"another protocol version"),
        ("lie", r"head\.weight: not a \.npy array of float32 \[2\]"),
        ("truncated", r"head\.weight: 4 bytes of data, expected 8"),
    ],
)
def test_a_wrong_reply_is_rejected_with_the_reason(fault: str, reason: str) -> None:
    records = reply()
    corrupt(fault)(records)
    with pytest.raises(InvalidUpdateError, match=reason):
        decode_update(records, SPEC)


HEADERS = ["{'shape': (2,", "{[]: 1}", "{'a': 1, 2: 3}", "1" + "+1" * 5000, "-" * 9000 + "1", ""]


@pytest.mark.parametrize("header", HEADERS, ids=range(len(HEADERS)))
def test_a_header_is_compared_never_evaluated(header: str) -> None:
    """Each of these makes numpy's own reader raise something else than ValueError."""
    text = header.encode()
    data = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(8)
    records = reply()
    records.array_records["arrays"]["head.weight"] = Array(
        dtype="float32", shape=(2,), stype="numpy.ndarray", data=data
    )
    with pytest.raises(InvalidUpdateError, match=r"head\.weight: not a \.npy array"):
        decode_update(records, SPEC)


def test_reasons_are_short_whatever_a_client_sends() -> None:
    records = reply()
    for i in range(2000):
        records.array_records["routing"][f"x{i}"] = Array(np.zeros(1))
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
    with pytest.raises(InvalidUpdateError, match="'arrays' is missing"):
        decode_update(RecordDict({"routing": ArrayRecord()}), SPEC)
