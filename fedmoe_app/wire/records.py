"""Tasks and updates as Flower records, and what the server checks before it uses one.

Down (:class:`TrainTask`)             up (:class:`ClientUpdate`)
    arrays     global values              arrays    changes, trained experts only
    broadcast  the scheme's tensors       routing   count, prob, margin, ... each [L, E]
    task       round, labels, data        metrics   client, num-examples, losses, ...
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import config_record_to_proto
from torch import Tensor

from fedmoe_app.moe.routing import RoutingStats
from fedmoe_app.moe.state import ExpertKey, ModelState, expert_name, gate_name
from fedmoe_app.wire.arrays import finite, from_array, to_array
from fedmoe_app.wire.update import ClientScore, ClientUpdate, InvalidUpdateError

PROTOCOL = 2  # raised when a server and a client of different versions no longer understand

# No fine-tuning round moves a weight this far; sums of such values stay finite in float32.
MAX_CHANGE = 1e4
# A client's weight is its number of examples: one that claims more would be alone in the mean.
_MAX_COUNT = {"num-examples": 10**8}
_MAX_TOKENS = 10**12  # of a layer in a round: FC-MoE weighs a client by its tokens
_MAX_COUNT |= dict.fromkeys(("client", "num-partitions", "items", "correct"), 2**63 - 1)

_COUNTS = ("count", "trained")  # int64 [L, E]
_MEANS = ("prob", "margin", "peak", "kl")  # float32 [L, E]


class ProtocolError(ValueError):
    """A task that this client cannot carry out; the message says why."""


@dataclass(frozen=True)
class TrainTask:
    """What the server asks of a client in a round."""

    server_round: int
    state: ModelState
    label_names: tuple[str, ...] = ()
    data_fingerprint: str = ""
    broadcast: dict[str, Tensor] = field(default_factory=dict)
    base_fingerprint: str = ""  # of the frozen base model
    run_key: str = "0" * 32  # names the run in what a client keeps; the same after a resume


@dataclass(frozen=True)
class UpdateSpec:
    """Names and shapes that an update may hold, taken from the global model."""

    dense: dict[str, tuple[int, ...]]
    gates: dict[str, tuple[int, ...]]
    experts: dict[ExpertKey, dict[str, tuple[int, ...]]]
    num_layers: int
    num_experts: int
    region_size: int = 0  # hidden size D if regions are wanted, else 0

    @classmethod
    def of(cls, state: ModelState, region_size: int = 0) -> UpdateSpec:
        """Describe what a client may change in this global state."""
        return cls(
            dense={name: tuple(tensor.shape) for name, tensor in state.dense.items()},
            gates={
                gate_name(layer, name): tuple(tensor.shape)
                for layer, tensors in state.gates.items()
                for name, tensor in tensors.items()
            },
            experts={
                key: {expert_name(*key, name): tuple(t.shape) for name, t in tensors.items()}
                for key, tensors in state.experts.items()
            },
            num_layers=1 + max((layer for layer, _ in state.experts), default=-1),
            num_experts=1 + max((expert for _, expert in state.experts), default=-1),
            region_size=region_size,
        )


def record_bytes(content: RecordDict) -> int:
    """Return the size of a message's records in bytes: keys and payload, as Flower counts them."""
    counted: list[Any] = [*content.array_records.values(), *content.metric_records.values()]
    # Flower's own count of a ConfigRecord fails on empty strings and lists.
    config = sum(
        len(config_record_to_proto(record).SerializeToString())
        for record in content.config_records.values()
    )
    return config + sum(record.count_bytes() for record in counted)


def encode_state(state: ModelState) -> ArrayRecord:
    """Encode values by their readable keys."""
    return encode_tensors(dict(state.named()))


def decode_state(arrays: ArrayRecord) -> ModelState:
    """Decode values that this program, or the server that the node trusts, has encoded."""
    state = ModelState()
    for key, tensor in decode_tensors(arrays).items():
        state.insert(key, tensor)
    return state


def encode_tensors(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """Encode tensors under names of any kind, such as a scheme's broadcast."""
    return ArrayRecord({name: to_array(tensor) for name, tensor in tensors.items()})


def decode_tensors(arrays: ArrayRecord) -> dict[str, Tensor]:
    """Decode what :func:`encode_tensors` has encoded."""
    return {name: torch.from_numpy(array.numpy().copy()) for name, array in arrays.items()}


def encode_task(
    arrays: ArrayRecord,
    server_round: int,
    label_names: Sequence[str] = (),
    data_fingerprint: str = "",
    broadcast: Mapping[str, Tensor] | None = None,
    config: Mapping[str, Any] | None = None,
    run_key: str = TrainTask.run_key,
    base_fingerprint: str = "",
) -> RecordDict:
    """Encode what the server sends down; ``arrays`` is an encoded global state.

    Args:
        arrays: from :func:`encode_state`; encoded once for all clients.
        server_round: from 1.
        label_names, data_fingerprint: see :class:`TrainTask`.
        broadcast: the scheme's tensors.
        config: further settings for the clients, from Flower's ``train_config``.
        run_key, base_fingerprint: see :class:`TrainTask`.
    """
    task: dict[str, Any] = {
        "protocol": PROTOCOL,
        "server-round": server_round,
        "label-names": list(label_names),
        "data-fingerprint": data_fingerprint,
        "run-key": run_key,
        "base-fingerprint": base_fingerprint,
    }
    return RecordDict(
        {
            "arrays": arrays,
            "broadcast": encode_tensors(broadcast or {}),
            "task": ConfigRecord({**(config or {}), **task}),
        }
    )


def decode_task(content: RecordDict) -> TrainTask:
    """Decode what the server sent.

    Raises:
        ProtocolError: if the server speaks another version of the protocol.
    """
    config: Any = content.config_records.get("task", {})
    if config.get("protocol") != PROTOCOL:
        raise ProtocolError(
            f"the server speaks protocol {config.get('protocol')}, this node {PROTOCOL}; "
            "install the same version of fedmoe on both"
        )
    return TrainTask(
        server_round=int(config["server-round"]),
        state=decode_state(content.array_records["arrays"]),
        label_names=tuple(config["label-names"]),
        data_fingerprint=str(config["data-fingerprint"]),
        broadcast=decode_tensors(content.array_records["broadcast"]),
        run_key=str(config["run-key"]),
        base_fingerprint=str(config["base-fingerprint"]),
    )


def encode_update(update: ClientUpdate) -> RecordDict:
    """Encode what a client sends up."""
    routing = {name: getattr(update.routing, name) for name in (*_COUNTS, *_MEANS, "tokens")}
    if update.routing.region is not None:
        # [M, D]: of the trained experts only, in order of layer and expert
        routing["region"] = update.routing.region[update.routing.trained > 0]
    metrics: dict[str, Any] = {
        "protocol": PROTOCOL,
        "client": update.client,
        "num-examples": update.num_examples,
        "num-partitions": update.num_partitions,
        **{name: float(value) for name, value in update.metrics.items()},
    }
    return RecordDict(
        {
            "arrays": encode_state(update.changes),
            "routing": encode_tensors(routing),
            "metrics": MetricRecord(metrics),
        }
    )


def decode_update(content: RecordDict, spec: UpdateSpec) -> ClientUpdate:
    """Decode and validate a client's reply.

    Raises:
        InvalidUpdateError: with the reason, if anything is missing, unknown, of the wrong shape or
            type, negative where counts are meant, or not finite.
    """
    for name in ("arrays", "routing"):
        if name not in content.array_records:
            raise InvalidUpdateError(f"record {name!r} is missing")
    metrics = dict(content.metric_records.get("metrics", {}))
    if metrics.pop("protocol", None) != PROTOCOL:
        raise InvalidUpdateError(f"another protocol version; this server speaks {PROTOCOL}")
    client = _positive(metrics.pop("client", None), "client", minimum=0)
    num_examples = _positive(metrics.pop("num-examples", None), "num-examples", minimum=1)
    num_partitions = _positive(metrics.pop("num-partitions", None), "num-partitions", minimum=0)
    if "train-loss" not in metrics:
        raise InvalidUpdateError("metric train-loss is missing")
    routing = _decode_routing(content.array_records["routing"], spec)
    changes = _decode_changes(content.array_records["arrays"], spec, routing)
    return ClientUpdate(
        client, num_examples, changes, routing, _finite_metrics(metrics), num_partitions
    )


def encode_score(score: ClientScore) -> RecordDict:
    """Encode a client's score of the global model."""
    return RecordDict({"metrics": MetricRecord(vars(score).copy())})


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
        raise InvalidUpdateError(f"loss = {loss!r}, correct = {correct}, items = {items}")
    return ClientScore(decode_client(content), loss, correct, items)


def decode_client(content: RecordDict) -> int:
    """Return the client's number that every reply carries.

    Raises:
        InvalidUpdateError: if there is none.
    """
    metrics = dict(content.metric_records.get("metrics", {}))
    return _positive(metrics.get("client"), "client", minimum=0)


def _shown(value: Any) -> str:
    """Show a value that came over the network, at most 60 characters of it."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _positive(value: Any, key: str, minimum: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise InvalidUpdateError(
            f"{key} = {_shown(value)}: must be an integer of {minimum} or more"
        )
    if value > _MAX_COUNT[key]:
        raise InvalidUpdateError(f"{key} = {value}: more than the {_MAX_COUNT[key]} allowed")
    return value


def _finite_metrics(metrics: dict[str, Any]) -> dict[str, float]:
    for key, value in metrics.items():
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise InvalidUpdateError(
                f"metric {_shown(key)} = {_shown(value)}: must be a finite number"
            )
    return {key: float(value) for key, value in metrics.items()}


def _decode_routing(arrays: ArrayRecord, spec: UpdateSpec) -> RoutingStats:
    shape = (spec.num_layers, spec.num_experts)
    wanted: dict[str, tuple[tuple[int, ...], torch.dtype]]
    wanted = {name: (shape, torch.int64) for name in _COUNTS}
    wanted |= {name: (shape, torch.float32) for name in _MEANS}
    wanted["tokens"] = ((spec.num_layers,), torch.int64)
    names = {*wanted, "region"} if spec.region_size else set(wanted)
    if set(arrays) != names:
        raise InvalidUpdateError(
            f"routing holds {len(arrays)} tensors ({_shown(sorted(arrays))}), "
            f"expected {sorted(names)}"
        )
    tensors = {
        name: from_array(arrays[name], *wanted[name], key=f"routing.{name}") for name in wanted
    }
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            finite(tensor, f"routing.{name}")
        elif bool((tensor < 0).any()):
            raise InvalidUpdateError(f"routing.{name}: negative count {int(tensor.min())}")
    for name in ("prob", "margin", "peak"):
        # Sums of probabilities may round a little past 1.
        if bool((tensors[name] < 0).any()) or bool((tensors[name] > 1.001).any()):
            raise InvalidUpdateError(f"routing.{name}: outside 0 to 1")
    _check_tokens(tensors)
    if bool(((tensors["trained"] > 0) & (tensors["count"] == 0)).any()):
        raise InvalidUpdateError("routing.trained: an expert was trained that got no token")
    return RoutingStats(**tensors, region=_decode_region(arrays, spec, tensors["trained"] > 0))


def _check_tokens(routing: Mapping[str, Tensor]) -> None:
    """Refuse a histogram that no set of tokens can have: schemes weigh clients by it."""
    tokens = routing["tokens"]  # [L]
    if bool((tokens > _MAX_TOKENS).any()):
        raise InvalidUpdateError(
            f"routing.tokens = {int(tokens.max())}: more than the {_MAX_TOKENS} allowed"
        )
    if bool((routing["count"] > tokens.unsqueeze(1)).any()):
        raise InvalidUpdateError("routing.count: an expert got more tokens than there were")
    # Means of probabilities that sum to 1 for every token; 0 in a layer that saw none.
    total = routing["prob"].double().sum(dim=1)  # [L]
    if bool(((total - (tokens > 0).double()).abs() > 0.01).any()):
        raise InvalidUpdateError("routing.prob: a layer's probabilities do not sum to 1")


def _decode_region(arrays: ArrayRecord, spec: UpdateSpec, trained: Tensor) -> Tensor | None:
    """Decode the regions of the trained experts into ``[L, E, D]``, zeros elsewhere."""
    if not spec.region_size:
        return None
    packed = from_array(  # [M, D]
        arrays["region"], (int(trained.sum()), spec.region_size), torch.float32, "routing.region"
    )
    region = torch.zeros(*trained.shape, spec.region_size)  # [L, E, D]
    region[trained] = finite(packed, "routing.region")
    return region


def _decode_changes(arrays: ArrayRecord, spec: UpdateSpec, routing: RoutingStats) -> ModelState:
    """Decode dense and gate changes in full, and those of the trained experts, no others."""
    wanted = dict(spec.dense) | spec.gates
    for layer, expert in (routing.trained > 0).nonzero().tolist():
        wanted |= spec.experts[layer, expert]
    missing, unknown = wanted.keys() - arrays.keys(), arrays.keys() - wanted.keys()
    if missing:
        raise InvalidUpdateError(f"{len(missing)} tensors are missing, such as {min(missing)}")
    if unknown:
        raise InvalidUpdateError(
            f"{len(unknown)} tensors are unknown or of experts not reported as trained, "
            f"such as {_shown(min(unknown))}"
        )
    changes = ModelState()
    for key, shape in wanted.items():
        change = from_array(arrays[key], shape, torch.float32, key)
        # One pass over the values, which also finds NaN and infinity.
        largest = max(abs(float(x)) for x in change.aminmax()) if change.numel() else 0.0
        if not largest <= MAX_CHANGE:
            finite(change, key)
            raise InvalidUpdateError(
                f"{key}: a value changed by {largest:.3g}, at most {MAX_CHANGE:g} is allowed"
            )
        changes.insert(key, change)
    return changes
