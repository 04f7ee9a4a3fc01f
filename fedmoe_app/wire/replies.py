"""What clients send up, as Flower records, and what the server checks before it uses one.

:class:`ClientUpdate`
    arrays   coded, small: the changes of trained experts, gates, dense tensors; routing
    metrics  client, num-examples, losses, ...
    update   codec, version of the received state, checksum
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedmoe_app.wire.checksum import checksum
from fedmoe_app.wire.choice import RECORD as CHOICE
from fedmoe_app.wire.choice import decode_choice, encode_choice
from fedmoe_app.wire.codecs import FP32, Codec, make_codec
from fedmoe_app.wire.names import CODEC_NAMES, PROTOCOL
from fedmoe_app.wire.packing import (
    Squares,
    max_packed,
    pack_changes,
    raw_array,
    read_raw,
    unpack_changes,
)
from fedmoe_app.wire.routing import max_routing, pack_routing, unpack_routing
from fedmoe_app.wire.spec import UpdateSpec
from fedmoe_app.wire.update import ClientScore, ClientUpdate, InvalidUpdateError

RECORDS = ("arrays", "metrics", "update")
_ROUTING = "routing"
_HEADER = {"codec": str, "held": str, "checksum": bytes}  # entries of the record "update"
_MAX_TEXT = 64  # characters of an entry or of a metric's name
_MAX_METRICS = 200
_MAX_STEPS = 10**8  # optimiser steps of a round
_COUNTS = ("protocol", "client", "num-examples", "num-partitions")

# A client's weight is its number of examples: one that claims more would be alone in the mean.
_MAX_COUNT = {"num-examples": 10**8}
_MAX_COUNT |= dict.fromkeys(("client", "num-partitions", "items", "correct"), 2**63 - 1)


def encode_update(
    update: ClientUpdate, codec: Codec = FP32, seed: Sequence[int] = (0,), held: str = ""
) -> RecordDict:
    """Encode what a client sends up.

    Args:
        update: with the changes as they were trained.
        codec: one that the server offered.
        seed: of codecs that round at random.
        held: version of the received state that the node has on its disk, "" for none.
    """
    buffers = pack_changes(update.changes, codec, seed)
    buffers[_ROUTING] = pack_routing(update.routing, codec.lossless)
    metrics: dict[str, Any] = {
        "protocol": PROTOCOL,
        "client": update.client,
        "num-examples": update.num_examples,
        "num-partitions": update.num_partitions,
        **{name: float(value) for name, value in update.metrics.items()},
    }
    content = RecordDict(
        {
            "arrays": ArrayRecord({name: raw_array(data) for name, data in buffers.items()}),
            "metrics": MetricRecord(metrics),
            "update": ConfigRecord({"codec": codec.name, "held": held}),
        }
    )
    if update.choice is not None:
        content[CHOICE] = encode_choice(update.choice)
    return seal(content)


def seal(content: RecordDict) -> RecordDict:
    """Put the checksum of a reply into it, and return it."""
    header: Any = content.config_records["update"]
    header.pop("checksum", None)
    header["checksum"] = checksum(
        header, content.metric_records["metrics"], *_array_records(content)
    )
    return content


def _array_records(content: RecordDict) -> list[ArrayRecord]:
    return [record for _, record in sorted(content.array_records.items())]


def decode_update(content: RecordDict, spec: UpdateSpec) -> ClientUpdate:
    """Decode and validate a client's reply.

    Raises:
        InvalidUpdateError: with the reason and its kind, if anything is missing, unknown, damaged,
            of another protocol, codec or length, negative where counts are meant, or not finite.
    """
    metrics = dict(content.metric_records.get("metrics", {}))
    if metrics.get("protocol") != PROTOCOL:
        raise InvalidUpdateError(
            f"another protocol version, {_shown(metrics.get('protocol'))}; "
            f"this server speaks {PROTOCOL}",
            "protocol",
        )
    records = (*RECORDS, CHOICE) if spec.top_k else RECORDS
    if set(content) != set(records) or set(content.config_records) != {"update"}:
        raise InvalidUpdateError(
            f"records {_shown(sorted(content))}, expected {', '.join(records)}", "missing"
        )
    if "arrays" not in content.array_records:
        raise InvalidUpdateError("record arrays holds no arrays", "missing")
    codec = _checked_header(content.config_records["update"], spec)
    buffers = _buffers(content, spec, codec)
    client, num_examples, num_partitions = _counts(dict(metrics))
    own_metrics = _own_metrics(metrics)
    squares = Squares()
    _check_sum(content, metrics, squares if codec.lossless else None)
    routing = unpack_routing(buffers[_ROUTING], spec, codec.lossless)
    trained = [(layer, expert) for layer, expert in (routing.trained > 0).nonzero().tolist()]
    if unknown := [key for key in trained if key not in spec.experts]:
        raise InvalidUpdateError(f"an expert {unknown[0]} was trained that the model has not")
    changes = unpack_changes(buffers, codec, spec.shapes(trained), squares)
    shape = (spec.num_layers, spec.num_experts)
    choice = decode_choice(content, shape, spec.top_k) if spec.top_k else None
    return ClientUpdate(
        client,
        num_examples,
        changes,
        routing,
        own_metrics,
        num_partitions,
        codec.name,
        choice,
    )


def encode_score(score: ClientScore, held: str = "") -> RecordDict:
    """Encode a client's score of the global model.

    Args:
        score: to be sent.
        held: see :func:`encode_update`.
    """
    metrics = MetricRecord(vars(score).copy())
    return RecordDict({"metrics": metrics, "update": ConfigRecord({"held": held})})


def decode_score(content: RecordDict) -> ClientScore:
    """Decode and validate what :func:`encode_score` has encoded.

    Raises:
        InvalidUpdateError: if a number is missing, negative or not finite.
    """
    metrics = dict(content.metric_records.get("metrics", {}))
    items = _positive(metrics.get("items"), "items", minimum=0)
    correct = _positive(metrics.get("correct"), "correct", minimum=0)
    loss: Any = metrics.get("loss")
    if not isinstance(loss, float) or not math.isfinite(loss) or correct > items:
        raise InvalidUpdateError(
            f"loss = {_shown(loss)}, correct = {correct}, items = {items}", "metrics"
        )
    return ClientScore(decode_client(content), loss, correct, items)


def decode_client(content: RecordDict) -> int:
    """Return the client's number that every reply carries.

    Raises:
        InvalidUpdateError: if there is none.
    """
    metrics = dict(content.metric_records.get("metrics", {}))
    return _positive(metrics.get("client"), "client", minimum=0)


def decode_held(content: RecordDict) -> str:
    """Return the version of the received state that a node says it has; "" for none."""
    held = content.config_records.get("update", ConfigRecord()).get("held", "")
    return held if isinstance(held, str) and len(held) <= _MAX_TEXT else ""


def _checked_header(header: Mapping[str, Any], spec: UpdateSpec) -> Codec:
    """Return the codec that a reply names."""
    name = header.get("codec")
    if name not in CODEC_NAMES or name not in spec.codecs:
        raise InvalidUpdateError(
            f"codec {_shown(name)}: not offered; choose one of {', '.join(spec.codecs)}", "codec"
        )
    for entry in {*header, *_HEADER}:
        value = header.get(entry)
        if type(value) is not _HEADER.get(entry) or len(value) > _MAX_TEXT:
            raise InvalidUpdateError(f"update.{_shown(entry)} = {_shown(value)}", "missing")
    return make_codec(str(name))


def _buffers(content: RecordDict, spec: UpdateSpec, codec: Codec) -> dict[str, memoryview]:
    """Return the buffers; none is longer than the whole model's could be."""
    arrays = content.array_records["arrays"]
    longest = {**max_packed(codec, spec.shapes(spec.experts)), _ROUTING: max_routing(spec)}
    if set(arrays) != set(longest):
        raise InvalidUpdateError(
            f"arrays holds {len(arrays)} buffers ({_shown(sorted(arrays))}), "
            f"expected {', '.join(longest)}",
            "missing",
        )
    return {name: read_raw(arrays[name], name, most) for name, most in longest.items()}


def _check_sum(content: RecordDict, metrics: Mapping[str, Any], squares: Squares | None) -> None:
    header = dict(content.config_records["update"])
    said = header.pop("checksum")
    watch = {} if squares is None else {"watch": squares.add}
    if said != checksum(header, metrics, *_array_records(content), **watch):
        raise InvalidUpdateError("the checksum is wrong: the reply was damaged", "checksum")


def _counts(metrics: Mapping[str, Any]) -> tuple[int, int, int]:
    """Return the client's number, its examples and partitions."""
    client = _positive(metrics.get("client"), "client", minimum=0)
    num_examples = _positive(metrics.get("num-examples"), "num-examples", minimum=1)
    num_partitions = _positive(metrics.get("num-partitions"), "num-partitions", minimum=0)
    if "train-loss" not in metrics:
        raise InvalidUpdateError("metric train-loss is missing", "missing")
    return client, num_examples, num_partitions


def _shown(value: Any) -> str:
    """Show a value that came over the network, at most 60 characters of it."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _positive(value: Any, key: str, minimum: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise InvalidUpdateError(
            f"{key} = {_shown(value)}: must be an integer of {minimum} or more", "metrics"
        )
    if value > _MAX_COUNT[key]:
        raise InvalidUpdateError(
            f"{key} = {value}: more than the {_MAX_COUNT[key]} allowed", "metrics"
        )
    return value


def _own_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the client's own metrics, which must be finite numbers."""
    if len(metrics) > _MAX_METRICS:
        raise InvalidUpdateError(f"{len(metrics)} metrics, at most {_MAX_METRICS}", "metrics")
    own = {key: value for key, value in metrics.items() if key not in _COUNTS}
    for key, value in own.items():
        if len(key) > _MAX_TEXT:  # names of phases go into metrics.jsonl
            raise InvalidUpdateError(
                f"metric {_shown(key)}: a name of {len(key)} characters, at most {_MAX_TEXT}",
                "metrics",
            )
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise InvalidUpdateError(
                f"metric {_shown(key)} = {_shown(value)}: must be a finite number", "metrics"
            )
    steps = own.get("num-steps", 0)
    if not 0 <= steps <= _MAX_STEPS:  # schemes may weigh clients by it
        raise InvalidUpdateError(
            f"num-steps = {_shown(steps)}: must be 0 to {_MAX_STEPS}", "metrics"
        )
    return {key: float(value) for key, value in own.items()}
