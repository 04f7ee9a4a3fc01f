"""Rounds in which the server learns sums over clients only.

Six messages in place of one: keys, shares, training with masked counts, shares that unmask them,
masked values, shares that unmask those (:mod:`fedmoe_app.privacy.member`,
:mod:`fedmoe_app.privacy.sparse`). A client that is lost on the way is left out of what follows. One
that is lost between the two sums counts as unchanged: its weight is in the denominators, since the
difference of two sums would tell what it trained.

What comes of it is one update, the mean change, with which the rest of the round goes on as usual.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from flwr.app import ConfigRecord, Message, RecordDict
from torch import Tensor

from fedmoe_app.config.schema import PrivacyConfig
from fedmoe_app.moe.state import ModelState, expert_of
from fedmoe_app.privacy.client_level import choice_fault
from fedmoe_app.privacy.clipping import routing_of
from fedmoe_app.privacy.member import Keys, SumError, check_keys, check_number, threshold, unmasked
from fedmoe_app.privacy.ring import Ring, numbers_from_ring, value_bits
from fedmoe_app.privacy.sparse import Counts, about_layout, counts_of, mean_values
from fedmoe_app.schemes.base import Plan
from fedmoe_app.schemes.closedhead import EstimateHead
from fedmoe_app.schemes.parts import ByExamples, Mean, Server
from fedmoe_app.server.collect import Collected, WaitForAll
from fedmoe_app.server.measuring import QUERY
from fedmoe_app.server.transport import exchange
from fedmoe_app.wire.errors import InvalidUpdateError
from fedmoe_app.wire.masked import SUM, Answer, Entries, ask, by_node, decode_answer, read_by_node
from fedmoe_app.wire.records import record_bytes
from fedmoe_app.wire.spec import NumberSpec, Shape
from fedmoe_app.wire.update import ClientUpdate

if TYPE_CHECKING:
    from fedmoe_app.server.round import Round
    from fedmoe_app.server.strategy import MoEStrategy

KEYS, SHARES, VALUES, UNMASK = (
    f"query.sum_{step}" for step in ("keys", "shares", "values", "unmask")
)
_COUNTED, _SUMMED = 0, 1  # the two sums of a round
Replies = Iterable[tuple[int, RecordDict]]


def sum_fault(plan: Plan) -> str:
    """Return why masked sums cannot serve a scheme, with the way out; or ""."""
    server = plan.server
    way_out = "choose fedavg, fedprox or fedmoe, or privacy.secure-sum = false"
    for slot in ("dense", "gates", "experts"):
        rule = getattr(server, slot)
        if type(rule) not in (Mean, ByExamples):
            return (
                f"its {slot} are combined by {type(rule).__name__}, which is no mean by examples; "
                f"{way_out}"
            )
        if isinstance(rule, Mean) and rule.over not in ("all", "members"):
            return f"its {slot} are divided by {rule.over}, which masked sums do not; {way_out}"
    if fault := choice_fault(plan):
        return f"{fault}; {way_out}"
    for step in (*server.before, *server.refresh, *server.after):
        if not isinstance(step, EstimateHead):
            return f"{type(step).__name__} may read numbers of single clients; {way_out}"
    if server.steps or plan.measured:
        part = type((*server.steps, *plan.measured)[0]).__name__
        return f"{part} reads numbers of single clients; {way_out}"
    return ""


class SummedRounds(WaitForAll):
    """A synchronous round of masked sums."""

    def __init__(self, sums: MaskedSums) -> None:
        super().__init__()
        self._sums = sums

    def ask(self, strategy: MoEStrategy, now: Round) -> None:
        """Choose the nodes of a round."""
        self._nodes = strategy.choose(now)
        now.announce(len(self._nodes))

    def replies(self, strategy: MoEStrategy, now: Round) -> Collected:
        """Go through the protocol; a sum that cannot be had is told as the round's fault."""
        try:
            return self._sums.round(strategy, now, self._nodes)
        except (SumError, ValueError) as error:
            return Collected(fault=str(error))


class MaskedSums:
    """The server's part in the protocol.

    Args:
        privacy: ``min-trainers`` and ``sum-range``.
    """

    def __init__(self, privacy: PrivacyConfig) -> None:
        self._privacy = privacy

    def round(self, strategy: MoEStrategy, now: Round, nodes: Sequence[int]) -> Collected:
        """Let nodes train, and return the mean of their changes as one update.

        Raises:
            SumError: too few are left.
        """
        protocol = _Protocol.agreed(strategy, now, nodes)
        counts, alive = protocol.counts()
        protocol.note_bytes("counts")
        spec, experts = strategy.update_spec(), counts.open(self._privacy.min_trainers)
        shapes = spec.shapes(experts)
        total, left = protocol.values(shapes, alive, counts, experts)
        protocol.note_bytes("values")
        grid = self._privacy.sum_range, value_bits(len(protocol.members))
        weights = {name: _weight(strategy.plan.server, counts, name) for name in shapes}
        means = mean_values(total, _layout(shapes), grid, weights)
        now.sums = {
            "members": len(left),
            "open_experts": len(experts),
            "closed_experts": int((counts.trained > 0).sum()) - len(experts),
            "bytes": protocol.bytes_by_step,
        }
        update = _update(means, shapes, experts, (spec.num_layers, spec.num_experts))
        return Collected([update], summed=sorted(protocol.clients[node] for node in left))

    def measured(
        self,
        strategy: MoEStrategy,
        now: Round,
        nodes: Sequence[int],
        content: RecordDict,
        specs: Mapping[str, NumberSpec],
    ) -> dict[str, Tensor]:
        """Return the sums of what steps hold that nobody trains for.

        Args:
            strategy, now: of the round.
            nodes: to ask.
            content: of the message that asks them.
            specs: of the numbers, by name.

        Raises:
            SumError: too few are left.
        """
        protocol = _Protocol.agreed(strategy, now, nodes)
        sizes = {name: prod(specs[name].shape) for name in sorted(specs)}
        total = protocol.numbers(content, sum(sizes.values()))
        parts = np.split(numbers_from_ring(total), np.cumsum(list(sizes.values()))[:-1])
        return {
            name: torch.from_numpy(part).view(specs[name].shape)
            for name, part in zip(sizes, parts, strict=True)
        }


@dataclass
class _Protocol:
    """One run through the protocol with those that agreed on keys.

    Attributes:
        keys: public, of all who sent some.
        members: those who made shares, too.
        box: node -> the shares for it, by sender.
        clients: numbers by node.
        bytes_by_step: up and down.
    """

    strategy: MoEStrategy
    now: Round
    keys: dict[int, Keys] = field(default_factory=dict)
    members: list[int] = field(default_factory=list)
    box: dict[int, dict[int, bytes]] = field(default_factory=dict)
    clients: dict[int, int] = field(default_factory=dict)
    bytes_by_step: dict[str, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.question = self.strategy.question(self.now.server_round)
        self._bytes = self.now.bytes_so_far

    # -- keys and shares -----------------------------------------------------------------------

    @classmethod
    def agreed(cls, strategy: MoEStrategy, now: Round, nodes: Sequence[int]) -> _Protocol:
        """Let nodes agree on keys.

        Raises:
            SumError: too few do.
        """
        check_number(len(nodes))
        protocol = cls(strategy, now)
        protocol._collect_keys(nodes)
        check_number(len(protocol.keys))
        protocol._collect_shares()
        protocol.note_bytes("agreement")
        return protocol

    def _collect_keys(self, nodes: Sequence[int]) -> None:
        begin, registry = ask(self.question, {}), self.strategy.registry
        found: dict[int, Keys] = {}
        rejected: dict[int, str] = {}  # told when it is settled whose they are
        for node, content in self._asked(dict.fromkeys(nodes, begin), KEYS):
            if (answer := self._decoded(node, content)) is not None:
                try:
                    found[node] = check_keys(answer.entries.get("keys"))
                    self.clients[node] = answer.client
                except SumError as error:
                    rejected[node] = f"reply rejected: {error}"
        self.now.ask_names()
        for node, reason in (rejected | registry.settle()).items():
            self._reject(node, reason)
        self.keys = {n: own for n, own in found.items() if registry.client(n) == self.clients[n]}

    def _collect_shares(self) -> None:
        entries = {
            "nodes": _texts(self.keys),
            "values": [k for own in self.keys.values() for k in own],
        }
        sent: dict[int, dict[int, bytes]] = {}
        told = ask(self.question, entries)
        for node, content in self._asked(dict.fromkeys(self.keys, told), SHARES):
            shares = self._shares(node, content, set(self.keys) - {node})
            if shares is not None:
                sent[node] = shares
        if len(sent) < (needed := threshold(len(self.keys))):
            raise SumError(f"{len(sent)} of {len(self.keys)} clients shared keys, not {needed}")
        self.members = sorted(sent)
        self.box = {n: {o: sent[o][n] for o in self.members if o != n} for n in self.members}

    # -- the sums ------------------------------------------------------------------------------

    def counts(self) -> tuple[Counts, list[int]]:
        """Let the members train; return the counts, and who is in them."""
        spec = self.strategy.update_spec()
        shape = spec.num_layers, spec.num_experts
        messages = self.strategy.configure_train(self.now, self.members, self._to_members())
        replies = (
            (message.metadata.src_node_id, message.content)
            for message in self.strategy.exchange(self.now, messages)
        )
        total, alive = self._added(replies, 2 * shape[0] * shape[1] + 1)
        total = self._unmasked(total, alive, self.members, _COUNTED)
        return counts_of(total, shape, len(alive)), alive

    def values(
        self,
        shapes: Mapping[str, Shape],
        alive: Sequence[int],
        counts: Counts,
        experts: Sequence[tuple[int, int]],
    ) -> tuple[Ring, list[int]]:
        """Return the sum of the weighted changes of these tensors, and who is in it.

        Args:
            shapes: by full name.
            alive: those in the first sum.
            counts: which that gave.
            experts: whose tensors are among these.
        """
        layout = _layout(shapes)
        names, sizes = ([entry[i] for entry in layout] for i in (0, 1))
        asked = ask(self.question, {"names": names, "sizes": sizes, "members": _texts(alive)})
        replies = self._asked(dict.fromkeys(alive, asked), VALUES)
        total, left = self._added(replies, sum(size for _, size in layout))
        counts.check_left(experts, len(alive) - len(left))
        return self._unmasked(total, left, alive, _SUMMED, about_layout(layout)), left

    def numbers(self, content: RecordDict, size: int) -> Ring:
        """Return the sum of so many numbers that nodes measure when they are asked."""
        asked = RecordDict({**content, **self._to_members()})
        replies = self._asked(dict.fromkeys(self.members, asked), QUERY)
        total, alive = self._added(replies, size, np.uint64)
        return self._unmasked(total, alive, self.members, _COUNTED)

    def note_bytes(self, step: str) -> None:
        """Note the bytes up and down since the last step."""
        before, self._bytes = self._bytes, self.now.bytes_so_far
        self.bytes_by_step[step] = [new - old for new, old in zip(self._bytes, before, strict=True)]

    def _to_members(self) -> dict[str, ConfigRecord]:
        return {SUM: ConfigRecord({"members": _texts(self.members)})}

    def _added(
        self, replies: Replies, size: int, dtype: type = np.uint32
    ) -> tuple[Ring, list[int]]:
        """Add masked vectors as they come; return the sum and whose they are, in order."""
        total: Ring = np.zeros(size, dtype)
        alive: list[int] = []
        for node, content in replies:
            answer = self._decoded(node, content, size, dtype)
            if answer is not None:
                total += answer.vector
                alive.append(node)
                self.now.came(answer.client)
        self.now.ask_names()
        if len(alive) < (least := self.strategy.limits.min_clients):
            raise SumError(f"{len(alive)} clients are left in the sum, min-clients = {least}")
        return total, sorted(alive)

    def _unmasked(
        self,
        total: Ring,
        alive: Sequence[int],
        before: Sequence[int],
        number: int,
        about: bytes = b"",
    ) -> Ring:
        gone = sorted(set(before) - set(alive))
        lists = {"number": number, "alive": _texts(alive), "gone": _texts(gone)}
        contents = {
            node: ask(self.question, lists | (by_node(self.box[node]) if number == 0 else {}))
            for node in alive
        }
        answers = []
        for node, content in self._asked(contents, UNMASK):
            if (shares := self._shares(node, content, set(before))) is not None:
                answers.append(shares)
        name = self.question.name
        return unmasked(total, self.keys, answers, alive, gone, name, number, about)

    # -- messages ------------------------------------------------------------------------------

    def _asked(
        self, contents: Mapping[int, RecordDict], kind: str
    ) -> Iterator[tuple[int, RecordDict]]:
        """Send messages; yield the replies that have content, with their nodes."""
        now = self.now
        messages = [Message(content, node, kind) for node, content in contents.items()]
        now.sent_bytes(sum(record_bytes(content) for content in contents.values()))
        for reply in exchange(now.grid, messages, now.timeout):
            self.strategy.busy.note(reply, now.timeout)
            now.received(reply)
            if reply.failure is not None:
                now.fail_node(reply)
            elif reply.message is not None:
                yield reply.node_id, reply.message.content

    def _decoded(
        self, node: int, content: RecordDict, size: int = 0, dtype: type = np.uint32
    ) -> Answer | None:
        """Decode a reply; None, and it is told, if it is no good or of another client."""
        try:
            answer = decode_answer(content, self.question, size, dtype)
            self.strategy.registry.claim(node, answer.client, worked=False)
            return answer
        except InvalidUpdateError as error:
            self._reject(node, f"reply rejected: {error}")
            return None

    def _shares(self, node: int, content: RecordDict, wanted: set[int]) -> dict[int, bytes] | None:
        """Return the shares in a reply, which must be for just these nodes; None if not."""
        answer = self._decoded(node, content)
        try:
            shares = _one_each(answer.entries) if answer is not None else None
        except InvalidUpdateError as error:
            self._reject(node, f"reply rejected: {error}")
            return None
        if shares is not None and set(shares) != wanted:
            self._reject(node, "reply rejected: shares of other nodes than those asked for")
            return None
        return shares

    def _reject(self, node: int, reason: str) -> None:
        self.now.fail(self.strategy.registry.name(node), reason)


def _one_each(entries: Entries) -> dict[int, bytes]:
    return {node: own for node, (own,) in read_by_node(entries).items()}


def _texts(nodes: Iterable[int]) -> list[str]:
    return [str(node) for node in nodes]


def _layout(shapes: Mapping[str, Shape]) -> list[tuple[str, int]]:
    return [(name, prod(shape)) for name, shape in shapes.items()]


def _weight(server: Server, counts: Counts, name: str) -> int:
    """Return what the sum of a tensor is divided by: the weights of all, or of its trainers."""
    key, rule = expert_of(name), server.experts
    by_members = isinstance(rule, ByExamples) or (isinstance(rule, Mean) and rule.over == "members")
    return int(counts.weights[key]) if key is not None and by_members else counts.weight


def _update(
    means: Mapping[str, Any],
    shapes: Mapping[str, Shape],
    experts: Sequence[tuple[int, int]],
    shape: tuple[int, int],
) -> ClientUpdate:
    """Return mean changes as the update of one client that weighs 1."""
    changes, trained = ModelState(), torch.zeros(shape, dtype=torch.int64)
    for name, of_name in shapes.items():
        changes.insert(name, torch.from_numpy(means[name]).view(of_name))
    for key in experts:
        trained[key] = 1
    return ClientUpdate(0, 1, changes, routing_of(trained), {"train-loss": 0.0})
