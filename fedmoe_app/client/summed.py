"""A client's steps in a masked sum, from message to message.

What it must remember between messages, its secrets, is in Flower's state of the node for the run;
its trained changes wait on the node's disk, as what a scheme keeps does. Both are of one round: new
keys begin a new one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Context, RecordDict
from numpy.typing import NDArray
from safetensors.numpy import load_file, save
from torch import Tensor

from fedmoe_app.client.store import ClientStore
from fedmoe_app.config.node import Node
from fedmoe_app.config.policy import node_policy
from fedmoe_app.config.schema import PrivacyConfig, RunConfig
from fedmoe_app.privacy.answered_sums import AnsweredSums, start_of
from fedmoe_app.privacy.member import Member, SumError
from fedmoe_app.privacy.node_ledger import data_set
from fedmoe_app.privacy.ring import numbers_to_ring, value_bits, weight_of
from fedmoe_app.privacy.sparse import about_layout, counts_vector, values_vector
from fedmoe_app.wire.masked import SUM, by_node, encode_answer, read_by_node, read_nodes
from fedmoe_app.wire.question import Question
from fedmoe_app.wire.tasks import TrainTask
from fedmoe_app.wire.update import ClientUpdate

_STATE, _PART = "masked-sum", "summed"
_TRAINED, _MEASURED = "training", "measuring"
Vector = NDArray[np.unsignedinteger]


def send_keys(content: RecordDict, context: Context) -> dict[str, Any]:
    """Begin a round: make new secrets, and return the public keys."""
    member = Member.begin(context.node_id, Question.of(content).name)
    _remember(context, member)
    return {"keys": list(member.public())}


def send_shares(content: RecordDict, context: Context) -> dict[str, Any]:
    """Return shares of this client's secrets for all others, encrypted."""
    member = _member(content, context)
    keys = read_by_node(content.config_records[SUM], each=3)
    shares = member.share(keys)
    _remember(context, member)
    return by_node(shares)


def send_counts(
    content: RecordDict,
    context: Context,
    client: int,
    num_examples: int,
    trained: NDArray[np.bool_],
    changes: Mapping[str, NDArray[np.float32]],
    privacy: PrivacyConfig,
    start: str,
) -> Vector:
    """Keep the trained changes, and return the masked counts.

    Args:
        content: of the message that asked to train.
        context: Flower's.
        client: its number.
        num_examples: of its own.
        trained: experts that it trained, ``[L, E]``.
        changes: by full name.
        privacy: of the run config.
        start: digest of the values that it trained from.

    Raises:
        SumError: no keys were agreed on, or a change is not finite.
        OSError: no room for the changes.
    """
    member = _member(content, context)
    weight = weight_of(num_examples, privacy.weight_unit)
    for name, values in changes.items():
        if not np.isfinite(values).all():
            raise SumError(f"{name}: NaN or infinite values; training diverged")
    members = read_nodes(content.config_records[SUM]["members"])
    masked = member.masked(counts_vector(trained, weight), members, 0)
    store, name = _store(content, client)
    store.drop(store.names())  # of a round that never ended
    store.write(name, save(dict(changes)))
    _remember(context, member, _Kept(weight, _TRAINED, start))
    return masked


def send_numbers(
    content: RecordDict,
    context: Context,
    numbers: Mapping[str, NDArray[np.floating]],
    start: str,
) -> Vector:
    """Return masked numbers that need no count first, joined in the order of their names."""
    member = _member(content, context)
    members = read_nodes(content.config_records[SUM]["members"])
    joined = np.concatenate([numbers[name].reshape(-1) for name in sorted(numbers)])
    masked = member.masked(numbers_to_ring(joined, len(members)), members, 0)
    _remember(context, member, _Kept(0, _MEASURED, start))
    return masked


def send_values(
    content: RecordDict, context: Context, client: int, seed: int, privacy: PrivacyConfig
) -> Vector:
    """Return the masked changes of what is asked for.

    Raises:
        SumError: they are there no more.
    """
    member = _member(content, context)
    asked: Any = content.config_records[SUM]
    store, name = _store(content, client)
    changes = store.read(name, load_file)
    if changes is None:
        raise SumError("the trained changes are on this node's disk no more")
    question = Question.of(content)
    layout = list(zip(asked["names"], asked["sizes"], strict=True))
    grid = privacy.sum_range, value_bits(len(member.members))
    kept = _kept(context)
    seeds = (seed, question.server_round, client)
    vector = values_vector(changes, layout, kept.weight, grid, seeds)
    masked = member.masked(vector, read_nodes(asked["members"]), 1, about_layout(layout))
    store.drop([name])
    _remember(context, member, kept)
    return masked


def send_unmasking(content: RecordDict, context: Context) -> dict[str, Any]:
    """Return the shares that take the masks off a sum.

    Raises:
        SumError: it would break the protocol, or this node has let other clients into the same sum.
        RefusedError: the node's policy allows sums over fewer lists of clients.
    """
    member = _member(content, context)
    asked: Any = content.config_records[SUM]
    number = int(asked["number"])
    if number == 0:
        member.take_shares({node: own for node, (own,) in read_by_node(asked).items()})
    alive = read_nodes(asked["alive"])
    shares = member.unmask(alive, read_nodes(asked["gone"]), number)
    kept = _kept(context)
    node = Node.from_config(context.node_config, context.node_id)
    if node.data_path is not None:  # other rows are those that the server has, too
        _note(Question.of(content), node, kept, number, alive)
    _remember(context, member, kept)
    return by_node(shares)


def _note(
    question: Question, node: Node, kept: _Kept, number: int, clients: Collection[int]
) -> None:
    """Write down over whom a sum is, or refuse it."""
    policy, own = node_policy(), data_set(node)
    names = _names_of_sum(question, node.client, kept.kind, number)
    if kept.start and (policy is None or policy.same_start == "refused"):
        names.append(f"{kept.kind} {number} of {own}, start {kept.start}")
    AnsweredSums().note(names, clients, own, None if policy is None else policy.max_sum_lists)


def _names_of_sum(question: Question, client: int, kind: str, number: int) -> list[str]:
    """Return by what a sum is known in its run: its state, and its round, whatever its state.

    Numbers that nobody trains for may be asked for before and after the training of one round.
    """
    what = f"{kind} {number} of client {client} in run {question.run_key}"
    by_state = f"{what}, state {question.state_version}"
    if kind == _MEASURED:
        return [by_state]
    return [by_state, f"{what}, round {question.server_round}"]


def masked_reply(
    update: ClientUpdate,
    content: RecordDict,
    context: Context,
    task: TrainTask,
    privacy: PrivacyConfig,
    version: str,
) -> RecordDict:
    """Keep what a client trained, and return its reply to the message that asked for it."""
    vector = send_counts(
        content,
        context,
        update.client,
        update.num_examples,
        (update.routing.trained > 0).numpy(),
        {name: t.detach().cpu().float().numpy() for name, t in update.changes.named()},
        privacy,
        start_of(task.state, task.base_fingerprint),
    )
    return encode_answer(update.client, Question.of(content), None, vector, version)


def masked_numbers_reply(
    numbers: Mapping[str, Tensor],
    content: RecordDict,
    context: Context,
    task: TrainTask,
    client: int,
) -> RecordDict:
    """Return a client's reply to the message that asked for sums of the model's outputs."""
    plain = {name: tensor.numpy() for name, tensor in numbers.items()}
    vector = send_numbers(content, context, plain, start_of(task.state, task.base_fingerprint))
    return encode_answer(client, Question.of(content), None, vector)


def values_reply(
    content: RecordDict, context: Context, client: int, config: RunConfig
) -> RecordDict:
    """Return a client's masked changes."""
    vector = send_values(content, context, client, config.seed, config.privacy)
    return encode_answer(client, Question.of(content), None, vector)


def _store(content: RecordDict, client: int) -> tuple[ClientStore, str]:
    question = Question.of(content)
    return ClientStore(question.run_key, client, _PART), f"round-{question.server_round}"


def _member(content: RecordDict, context: Context) -> Member:
    state = context.state.config_records.get(_STATE)
    member = None if state is None else Member.load(bytes(state["member"]))  # type: ignore[arg-type]
    if member is None or member.context != Question.of(content).name:
        raise SumError("no keys were agreed on for this round")
    return member


@dataclass(frozen=True)
class _Kept:
    """What a client knows of its sum from message to message, beside its secrets.

    Attributes:
        weight: its own, of changes.
        kind: what its vector was made of.
        start: digest of the values that this was made from.
    """

    weight: int = 0
    kind: str = ""
    start: str = ""


def _remember(context: Context, member: Member, kept: _Kept = _Kept()) -> None:
    context.state[_STATE] = ConfigRecord({"member": member.dump(), **asdict(kept)})


def _kept(context: Context) -> _Kept:
    state: Any = context.state.config_records[_STATE]
    kept = {entry.name: state.get(entry.name, entry.default) for entry in fields(_Kept)}
    return _Kept(int(kept["weight"]), str(kept["kind"]), str(kept["start"]))
