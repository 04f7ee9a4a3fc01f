"""Replies of a round: decoded, validated and put in client order, or rejected with the reason.

Changes relative to an older global state, discounted by their age.

Nguyen et al., "Federated Learning with Buffered Asynchronous Aggregation" (FedBuff), AISTATS 2022,
arXiv:2106.06639: a change that started s versions ago counts Δ/√(1+s).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from flwr.app import Message

from fedmoe_app.aggregation.store import Spool, SpoolError
from fedmoe_app.aggregation.streaming import AtOnce
from fedmoe_app.moe.state import ModelState
from fedmoe_app.server.clients import Roster
from fedmoe_app.wire.bounds import TaskBounds
from fedmoe_app.wire.errors import InvalidUpdateError
from fedmoe_app.wire.question import Question
from fedmoe_app.wire.records import UpdateSpec, decode_score, decode_update, record_bytes
from fedmoe_app.wire.update import ClientScore, ClientUpdate


def discount(staleness: int) -> float:
    """Return 1/√(1+s) for s ≥ 0 versions."""
    return float((1 + staleness) ** -0.5)


def discounted(update: ClientUpdate, staleness: int) -> ClientUpdate:
    """Return the update with discounted changes, and ``staleness`` among its metrics.

    One that is not stale keeps its changes bit for bit.
    """
    metrics = update.metrics | {"staleness": float(staleness)}
    if not staleness:
        return replace(update, metrics=metrics)
    scaled = ModelState()
    for key, tensor in update.changes.named():
        scaled.insert(key, tensor * discount(staleness))
    return replace(update, changes=scaled, metrics=metrics)


@dataclass
class Decoded:
    """What came of the replies.

    Attributes:
        updates: the usable ones, in client order; their changes may lie in the spool.
        bytes_up: size of each usable reply, by client.
        rejected: reason by the client that the node is bound to, else by node.
        kinds: how many were rejected, by :attr:`InvalidUpdateError.kind`.
    """

    updates: list[ClientUpdate] = field(default_factory=list)
    bytes_up: dict[int, int] = field(default_factory=dict)
    rejected: dict[str, str] = field(default_factory=dict)
    kinds: Counter[str] = field(default_factory=Counter)


class Intake:
    """Takes the training replies of a round one by one, as they arrive.

    Each is decoded, validated and stored at once, and its message emptied. The result does not
    depend on the order of arrival.

    Args:
        spec: names and shapes that an update may hold.
        roster: knows which node serves which client.
        spool: where the changes wait; None keeps all of them in memory.
        holders: client -> the node that served it in earlier rounds, of those that were asked.
        num_partitions: of the clients in earlier rounds; 0 if none is known.
        at_once: takes what need not wait until the round is complete.
        question: that was asked; None takes answers to any.
        bounds: of what clients may say of themselves.
    """

    def __init__(
        self,
        spec: UpdateSpec,
        roster: Roster,
        spool: Spool | None = None,
        holders: Mapping[int, int] | None = None,
        num_partitions: int = 0,
        at_once: AtOnce | None = None,
        question: Question | None = None,
        bounds: TaskBounds | None = None,
    ) -> None:
        self._spec, self._roster, self._spool = spec, roster, spool
        self._holders, self._num_partitions = holders or {}, num_partitions
        self._at_once = at_once
        self._question, self._bounds = question, bounds
        self._rejected: dict[int, str] = {}  # by node
        self._kinds: Counter[str] = Counter()
        self._updates: dict[int, dict[int, ClientUpdate]] = {}  # client -> node -> its update
        self._bytes_up: dict[int, int] = {}  # by node
        self.nodes: set[int] = set()  # that gave a good reply

    @property
    def num_usable(self) -> int:
        """Clients with one good reply so far; those that two new nodes claim have none."""
        return sum(len(copies) == 1 for copies in self._updates.values())

    def add(
        self,
        message: Message,
        node: int | None = None,
        staleness: int | None = None,
        question: Question | None = None,
    ) -> ClientUpdate | None:
        """Decode, check and store a reply; return None for one that cannot be used.

        All of it is checked before its client's number is believed.

        Args:
            message: the reply; it is emptied.
            node: the node that was asked.
            staleness: folds since the state that the reply started from; None is a synchronous
                round, in which there is no such thing.
            question: that this node was asked, if others were asked another.
        """
        node = message.metadata.src_node_id if node is None else node
        try:
            asked = question or self._question
            update = decode_update(message.content, self._spec, asked, self._bounds)
            self._roster.claim(node, update.client)
            if staleness is not None:
                update = discounted(update, staleness)
            self._put(update, node)
            self._bytes_up[node] = record_bytes(message.content)
            self.nodes.add(node)
            return update
        except InvalidUpdateError as error:
            self._reject(node, f"reply rejected: {error}", error.kind)
        except SpoolError as error:
            self._reject(node, f"reply lost: {error}", "disk")
        finally:
            release(message)
        return None

    def finish(self) -> Decoded:
        """Decide on new nodes' claims and return what is left when all replies are in."""
        refused = self._roster.settle()
        decoded = Decoded(kinds=self._kinds)
        for client, copies in sorted(self._updates.items()):
            for node, update in copies.items():
                if self._roster.client(node) == client:
                    decoded.updates.append(update)
                    decoded.bytes_up[client] = self._bytes_up[node]
                else:
                    reason = refused.get(node) or self._why_not(node, client)
                    self._reject(node, f"reply rejected: {reason}", "client")
        decoded.rejected = {self._roster.name(node): why for node, why in self._rejected.items()}
        _drop_other_splits(decoded, self._num_partitions)
        return decoded

    def _why_not(self, node: int, client: int) -> str:
        """Return why a node whose reply waited for this round speaks for its client no more."""
        try:
            self._roster.claim(node, client)
        except InvalidUpdateError as error:
            return str(error)
        return f"client {client} is not known to be this node's"

    def _put(self, update: ClientUpdate, node: int) -> None:
        copies = self._updates.setdefault(update.client, {})
        if node in copies:
            raise InvalidUpdateError("the node has answered before", "client")
        if self._spool is None:
            copies[node] = update
            return
        at_once = self._at_once
        if at_once is None or not at_once.is_next(update, node):
            copies[node] = replace(update, changes=self._spool.store(update.changes))
            if at_once is not None:
                at_once.put_off(update, node)
            return
        copies[node] = at_once.take(update)
        for client, rest in at_once.take_waiting(self._of_holder).items():
            self._updates[client][self._holders[client]] = rest

    def _of_holder(self, client: int) -> ClientUpdate:
        return self._updates[client][self._holders[client]]

    def _reject(self, node: int, reason: str, kind: str) -> None:
        self._kinds[kind] += 1
        self._rejected[node] = reason


def release(message: Message) -> None:
    """Empty a message that was decoded: what is still needed of its bytes has views on them.

    A RecordDict and the view of its array records hold each other, so that it would stay in memory
    until Python looks for cycles, which large replies do not hasten.
    """
    for record in message.content.array_records.values():
        record.clear()


def _drop_other_splits(decoded: Decoded, known: int) -> None:
    """Reject clients that split the data into another number of partitions than the run does.

    That is ``known``, or what most have if it is 0.
    """
    numbers = Counter(u.num_partitions for u in decoded.updates if u.num_partitions)
    if not numbers or set(numbers) == {known}:
        return
    usual = known or max(numbers, key=lambda number: (numbers[number], -number))
    others = "earlier rounds had" if known else "most nodes have"
    for update in list(decoded.updates):
        if update.num_partitions not in (0, usual):
            decoded.updates.remove(update)
            decoded.kinds["client"] += 1
            del decoded.bytes_up[update.client]
            decoded.rejected[f"client {update.client}"] = (
                f"reply rejected: num-partitions = {update.num_partitions}, but {others} "
                f"{usual}; give all nodes the same"
            )


def decode_scores(
    replies: Iterable[Message],
    roster: Roster,
    question: Question | None = None,
    bounds: TaskBounds | None = None,
) -> tuple[list[ClientScore], dict[str, str]]:
    """Decode evaluation replies.

    Args:
        replies: of the nodes.
        roster: knows which node serves which client, and how many test items each client has.
        question: that was asked; None takes answers to any.
        bounds: of what clients may say of themselves.

    Returns:
        scores in client order, and reasons for the rejected ones.
    """
    scores: dict[int, ClientScore] = {}  # by node
    rejected: dict[int, str] = {}
    for message in replies:
        node = message.metadata.src_node_id
        try:
            score = decode_score(message.content, question)
            roster.claim(node, score.client, worked=False)
            most = roster.most_tests(score.client, bounds or TaskBounds())
            if score.items > most:
                raise InvalidUpdateError(f"items = {score.items}: it can have {most} at most")
            scores[node] = score
        except InvalidUpdateError as error:
            rejected[node] = str(error)
    rejected |= {node: why for node, why in roster.settle().items() if node in scores}
    good = [s for node, s in scores.items() if roster.client(node) == s.client]
    named = {roster.name(node): f"score rejected: {why}" for node, why in rejected.items()}
    return sorted(good, key=lambda score: score.client), named
