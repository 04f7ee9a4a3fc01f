"""What clients send up, as Flower records, and what the server checks before it uses one.

:class:`ClientUpdate`
    arrays   coded, small: the changes of trained experts, gates, dense tensors; routing
    metrics  client, num-examples, losses, ...
    update   codec, version of the received state, checksum; run, round and state that it answers
    placement, statistics   the experts that the node loads next; the scheme's own numbers; or none

A checksum over a whole reply, so that no damage on the way is taken for values.

It protects against accidents (a full disk, a broken cache, a bug between the two programs), not
against a client that lies: TLS and authenticated nodes are Flower's part.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import xxhash
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedmoe_app.config.names import CODEC_NAMES, PROTOCOL
from fedmoe_app.shown.values import shown
from fedmoe_app.wire.bounds import TaskBounds
from fedmoe_app.wire.codecs import FP32, Codec, make_codec
from fedmoe_app.wire.errors import InvalidUpdateError
from fedmoe_app.wire.metrics import check_metrics
from fedmoe_app.wire.numbers import MAX_CLIENT, check_records, whole
from fedmoe_app.wire.packing import (
    Squares,
    max_packed,
    pack_changes,
    raw_array,
    read_raw,
    unpack_changes,
)
from fedmoe_app.wire.question import ENTRIES, ROUND, Question
from fedmoe_app.wire.routing import check_counts, max_routing, pack_routing, unpack_routing
from fedmoe_app.wire.spec import UpdateSpec, add_still
from fedmoe_app.wire.statistics import RECORD as STATISTICS
from fedmoe_app.wire.statistics import decode_statistics, encode_statistics
from fedmoe_app.wire.update import RECORD as PLACEMENT
from fedmoe_app.wire.update import ClientUpdate, decode_placement, encode_placement

BLOCK = 1 << 20  # bytes at a time: the next to look at them finds them in the core's cache
Watch = Callable[[str, memoryview], None]


def checksum(
    header: Mapping[str, Any],
    metrics: Mapping[str, Any],
    *records: ArrayRecord,
    watch: Watch = lambda key, block: None,
) -> bytes:
    """Return 8 bytes (XXH3) over names, labels and contents of a reply.

    Args:
        header: the entries of the config record, but for the checksum itself.
        metrics: numbers by name; 1 and 1.0 differ.
        records: arrays, with what they say of themselves.
        watch: is shown the data of each array, block by block, in order.
    """
    digest = xxhash.xxh3_64()
    arrays = [item for record in records for item in sorted(record.items())]
    labels = [[k, a.dtype, list(a.shape), a.stype, len(a.data)] for k, a in arrays]
    described = [sorted(header.items()), sorted(metrics.items()), labels]
    digest.update(json.dumps(described, default=repr).encode())
    for key, array in arrays:
        data = memoryview(array.data)
        for start in range(0, len(data), BLOCK):
            block = data[start : start + BLOCK]
            digest.update(block)
            watch(key, block)
    return digest.digest()


RECORDS = ("arrays", "metrics", "update")
_ROUTING = "routing"
# Entries of the record "update".
_HEADER = {"codec": str, "held": str, "checksum": bytes, **ENTRIES}
_MAX_TEXT = 64  # characters of an entry
_COUNTS = ("protocol", "client", "num-examples", "num-partitions")


def encode_update(
    update: ClientUpdate,
    codec: Codec = FP32,
    seed: Sequence[int] = (0,),
    version: str = "",
    question: Question | None = None,
) -> RecordDict:
    """Encode what a client sends up.

    Args:
        update: with the changes as they were trained.
        codec: one that the server offered.
        seed: of codecs that round at random.
        version: of the received state that the node has on its disk, "" for none.
        question: of the message that it answers.
    """
    header = {"codec": codec.name, "held": version, **(question or Question()).answer()}
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
            "update": ConfigRecord(header),
        }
    )
    if update.placement is not None:
        content[PLACEMENT] = encode_placement(update.placement)
    if update.statistics:
        content[STATISTICS] = encode_statistics(update.statistics)
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


def stamp(content: RecordDict, question: Question) -> RecordDict:
    """Make a reply answer a message, and return it; its checksum is renewed if it has one."""
    header = content.config_records["update"]
    header.update(question.answer())
    return seal(content) if "checksum" in header else content


def decode_update(
    content: RecordDict,
    spec: UpdateSpec,
    question: Question | None = None,
    bounds: TaskBounds | None = None,
) -> ClientUpdate:
    """Decode and validate a client's reply.

    Args:
        content: of the reply.
        spec: names and shapes that it may hold.
        question: that was asked; None takes any.
        bounds: of its numbers; None refuses only what no task can have.

    Raises:
        InvalidUpdateError: with the reason and its kind, if anything is missing, unknown, damaged,
            of another protocol, codec or length, negative where counts are meant, not finite or
            larger than it can be, or if it answers another message.
    """
    bounds = bounds or TaskBounds()
    metrics = dict(content.metric_records.get("metrics", {}))
    protocol = metrics.get("protocol")
    if type(protocol) is not int or protocol != PROTOCOL:
        raise InvalidUpdateError(
            f"another protocol version, {shown(protocol)}; this server speaks {PROTOCOL}",
            "protocol",
        )
    own_records = ((PLACEMENT, bool(spec.top_k)), (STATISTICS, STATISTICS in content.array_records))
    wanted = tuple(name for name, is_there in own_records if is_there)
    check_records(content, (*RECORDS, *wanted))
    if "arrays" not in content.array_records:
        raise InvalidUpdateError("record arrays holds no arrays", "missing")
    header = content.config_records["update"]
    codec = _checked_header(header, spec)
    if question is not None:
        question.check(header)
    server_round: Any = header[ROUND]
    buffers = _buffers(content, spec, codec)
    client, num_examples, num_partitions = _counts(metrics, bounds)
    own = {key: value for key, value in metrics.items() if key not in _COUNTS}
    own_metrics = check_metrics(own, bounds, num_examples, server_round)
    squares = Squares()
    _check_sum(content, metrics, squares if codec.lossless else None)
    routing = unpack_routing(buffers[_ROUTING], spec, codec.lossless)
    steps = int(own_metrics.get("num-steps", bounds.steps(num_examples)))
    check_counts(routing, bounds.tokens(num_examples), bounds.top_k, steps)
    trained = [(layer, expert) for layer, expert in (routing.trained > 0).nonzero().tolist()]
    if unknown := [key for key in trained if key not in spec.experts]:
        raise InvalidUpdateError(f"an expert {unknown[0]} was trained that the model has not")
    changes = unpack_changes(buffers, codec, spec.shapes(trained), squares)
    add_still(changes, spec)
    shape = (spec.num_layers, spec.num_experts)
    placement = decode_placement(content, shape, spec.top_k) if spec.top_k else None
    return ClientUpdate(
        client,
        num_examples,
        changes,
        routing,
        own_metrics,
        num_partitions,
        codec.name,
        placement,
        server_round,
        decode_statistics(content, spec.statistics),
    )


def decode_version(content: RecordDict) -> str:
    """Return the version of the received state that a node says it has; "" for none."""
    version = content.config_records.get("update", ConfigRecord()).get("held", "")
    return version if isinstance(version, str) and len(version) <= _MAX_TEXT else ""


def _checked_header(header: Mapping[str, Any], spec: UpdateSpec) -> Codec:
    """Return the codec that a reply names."""
    name = header.get("codec")
    if name not in CODEC_NAMES or name not in spec.codecs:
        raise InvalidUpdateError(
            f"codec {shown(name)}: not offered; choose one of {', '.join(spec.codecs)}", "codec"
        )
    for entry in {*header, *_HEADER}:
        value = header.get(entry)
        is_long = isinstance(value, str | bytes) and len(value) > _MAX_TEXT
        if type(value) is not _HEADER.get(entry) or is_long:
            raise InvalidUpdateError(f"update.{shown(entry)} = {shown(value)}", "missing")
    return make_codec(str(name))


def _buffers(content: RecordDict, spec: UpdateSpec, codec: Codec) -> dict[str, memoryview]:
    """Return the buffers; none is longer than the whole model's could be."""
    arrays = content.array_records["arrays"]
    longest = {**max_packed(codec, spec.shapes(spec.experts)), _ROUTING: max_routing(spec)}
    if set(arrays) != set(longest):
        raise InvalidUpdateError(
            f"arrays holds {len(arrays)} buffers ({shown(sorted(arrays))}), "
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


def _counts(metrics: Mapping[str, Any], bounds: TaskBounds) -> tuple[int, int, int]:
    """Return the client's number, its examples and partitions."""
    client = whole(metrics.get("client"), "client", 0, MAX_CLIENT)
    num_partitions = whole(metrics.get("num-partitions"), "num-partitions", 0, bounds.partitions())
    most = bounds.examples(num_partitions)
    num_examples = whole(metrics.get("num-examples"), "num-examples", 1, most)
    if num_partitions and client >= num_partitions:
        raise InvalidUpdateError(
            f"client = {client} with num-partitions = {num_partitions}: must be below", "metrics"
        )
    if "train-loss" not in metrics:
        raise InvalidUpdateError("metric train-loss is missing", "missing")
    return client, num_examples, num_partitions
