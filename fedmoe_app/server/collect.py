"""How the replies of a round come together: asked for, checked, put in client order.

A training reply goes one way down through the server, and nothing that it is given to calls back:

1. ``transport.exchange`` pulls it from the SuperLink;
2. ``DeltaSync.exchange`` notes which version of the state its node has now;
3. ``MoEStrategy.exchange`` notes its size, or the failure that came in its place;
4. :meth:`UpdateCollector.add` has it decoded and checked (room ``wire``), asks the client registry
   whom it speaks for, and puts its changes into the sums or the store (room ``aggregation``);
5. when all are in, :meth:`UpdateCollector.finish` returns the good ones in client order;
6. ``MoEStrategy.aggregate_train`` makes the next global state of them (room ``aggregation``).

When a round is complete is a policy: :class:`WaitForAll`, or
:class:`~fedmoe_app.server.buffered.Buffered`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

from flwr.app import Message

from fedmoe_app.aggregation.guard import Guard, Guarded
from fedmoe_app.aggregation.sizes import Size
from fedmoe_app.aggregation.store import Spool, SpoolError
from fedmoe_app.aggregation.streaming import AtOnce
from fedmoe_app.moe.state import ModelState
from fedmoe_app.server.clients import ClientRegistry
from fedmoe_app.wire.bounds import TaskBounds
from fedmoe_app.wire.errors import InvalidUpdateError
from fedmoe_app.wire.question import Question
from fedmoe_app.wire.records import UpdateSpec, decode_score, decode_update, record_bytes
from fedmoe_app.wire.update import ClientScore, ClientUpdate

if TYPE_CHECKING:
    from fedmoe_app.server.round import Round
    from fedmoe_app.server.strategy import MoEStrategy


class Collect(Protocol):
    """When a round is complete, and whom it asks; a run has one for all its rounds."""

    is_buffered: bool  # whether replies may start from older states

    def ask(self, strategy: MoEStrategy, now: Round) -> None:
        """Choose the nodes of a round and make their messages."""

    def replies(self, strategy: MoEStrategy, now: Round) -> Collected:
        """Return what came of the replies, once the round is complete."""

    def evaluators(self, strategy: MoEStrategy, now: Round) -> list[int]:
        """Return the nodes that can score the global model: those that do not train."""


class WaitForAll:
    """A synchronous round: it is complete when all have replied that were asked."""

    is_buffered = False

    def __init__(self) -> None:
        self._nodes: list[int] = []
        self._messages: list[Message] = []

    def ask(self, strategy: MoEStrategy, now: Round) -> None:
        """Choose the nodes of a round and make their messages."""
        self._nodes = strategy.choose(now)
        self._messages = strategy.configure_train(now, self._nodes)
        now.announce(len(self._nodes))

    def replies(self, strategy: MoEStrategy, now: Round) -> Collected:
        """Send the messages and take the replies as they arrive."""
        messages, self._messages = self._messages, []
        return self.take(strategy, now, self._nodes, strategy.exchange(now, messages))

    def take(
        self,
        strategy: MoEStrategy,
        now: Round,
        nodes: Sequence[int],
        replies: Iterable[Message],
    ) -> Collected:
        """Take the replies of these nodes."""
        strategy.aggregation.store.clear()
        collector = strategy.collector(nodes, strategy.question(now.server_round))
        for message in replies:
            collect(now, collector, message, adjust=strategy.adjusted)
            del message  # before the next one is pulled
        return collector.finish()

    def evaluators(self, strategy: MoEStrategy, now: Round) -> list[int]:
        """Return the connected nodes that do not work on an earlier message."""
        return strategy.busy.free(now.grid, strategy.connected(now.grid))


@dataclass
class Collected:
    """What came of the replies.

    Attributes:
        updates: the usable ones, in client order; their changes may lie in the store.
        bytes_up: size of each usable reply, by client.
        rejected: reason by the client that the node is bound to, else by node.
        kinds: how many were rejected, by :attr:`InvalidUpdateError.kind`.
        guarded: what the guard did; None without one.
        sizes: of the usable replies as they came, by client, where there is a guard.
        summed: clients whose changes are in the one update that a masked sum gives.
        fault: why there is nothing, where that is known.
    """

    updates: list[ClientUpdate] = field(default_factory=list)
    bytes_up: dict[int, int] = field(default_factory=dict)
    rejected: dict[str, str] = field(default_factory=dict)
    kinds: Counter[str] = field(default_factory=Counter)
    guarded: Guarded | None = None
    sizes: dict[int, Size] = field(default_factory=dict)
    summed: list[int] = field(default_factory=list)
    fault: str = ""


AGAINST = "its change goes against those of the rounds before"


class UpdateCollector:
    """Takes the training replies of a round one by one, as they arrive.

    Each is collected, validated and stored at once, and its message emptied. The result does not
    depend on the order of arrival.

    Args:
        spec: names and shapes that an update may hold.
        registry: knows which node serves which client.
        store: where the changes wait; None keeps all of them in memory.
        holders: client -> the node that served it in earlier rounds, of those that were asked.
        num_partitions: of the clients in earlier rounds; 0 if none is known.
        streaming: takes what need not wait until the round is complete.
        question: that was asked; None takes answers to any.
        bounds: of what clients may say of themselves.
        guard: bounds what one client can do to the round; None leaves updates as they came.
        num_asked: clients that were asked.
    """

    def __init__(
        self,
        spec: UpdateSpec,
        registry: ClientRegistry,
        store: Spool | None = None,
        holders: Mapping[int, int] | None = None,
        num_partitions: int = 0,
        streaming: AtOnce | None = None,
        question: Question | None = None,
        bounds: TaskBounds | None = None,
        guard: Guard | None = None,
        num_asked: int = 0,
    ) -> None:
        self._guard, self._num_asked = guard, num_asked
        self._sizes: dict[int, Size] = {}  # by node
        self._spec, self._registry, self._store = spec, registry, store
        self._holders, self._num_partitions = holders or {}, num_partitions
        self._streaming = streaming
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
        question: Question | None = None,
        adjust: Callable[[ClientUpdate], ClientUpdate] = lambda update: update,
    ) -> ClientUpdate | None:
        """Check and store a reply; return None for one that cannot be used.

        All of it is checked before its client's number is believed.

        Args:
            message: the reply; it is emptied.
            node: the node that was asked.
            question: that this node was asked, if others were asked another.
            adjust: changes a good update before it is stored.
        """
        node = message.metadata.src_node_id if node is None else node
        try:
            asked = question or self._question
            update = decode_update(message.content, self._spec, asked, self._bounds)
            self._registry.claim(node, update.client)
            update = self._measured(adjust(update), node)
            if update.statistics and self._store is not None:  # they may be as large as the model
                stored = self._store.store(ModelState(dense=update.statistics))
                update = replace(update, statistics=stored.dense)
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

    def finish(self) -> Collected:
        """Decide on new nodes' claims and return what is left when all replies are in."""
        refused = self._registry.settle()
        collected = Collected(kinds=self._kinds)
        for client, copies in sorted(self._updates.items()):
            for node, update in copies.items():
                if self._registry.client(node) == client:
                    collected.updates.append(update)
                    collected.bytes_up[client] = self._bytes_up[node]
                else:
                    reason = refused.get(node) or self._why_not(node, client)
                    self._reject(node, f"reply rejected: {reason}", "client")
        collected.rejected = {
            self._registry.name(node): why for node, why in self._rejected.items()
        }
        _drop_other_splits(collected, self._num_partitions)
        self._close(collected)
        return collected

    def _measured(self, update: ClientUpdate, node: int) -> ClientUpdate:
        """Note how large a reply is; return it with the share that it may have."""
        if self._guard is None:
            return update
        self._sizes[node] = self._guard.size_of(update, self._spec.statistics)
        return self._guard.counted(update)

    def _is_within(self, node: int) -> bool:
        """Whether the guard will leave a reply as it is."""
        return self._guard is None or self._guard.is_within(self._sizes[node], self._num_asked)

    def _close(self, collected: Collected) -> None:
        """Have the guard bound the updates."""
        if self._guard is None:
            return
        nodes = {
            client: node
            for client, copies in self._updates.items()
            for node in copies
            if self._registry.client(node) == client
        }
        collected.sizes = {u.client: self._sizes[nodes[u.client]] for u in collected.updates}
        summed = [c for c in nodes if self._streaming and self._streaming.sums.has_taken(c)]
        collected.updates, collected.guarded = self._guard.close(
            collected.updates, collected.sizes, summed
        )
        for client in collected.guarded.against:
            _drop(collected, client, "direction", f"reply rejected: {AGAINST}")

    def _why_not(self, node: int, client: int) -> str:
        """Return why a node whose reply waited for this round speaks for its client no more."""
        try:
            self._registry.claim(node, client)
        except InvalidUpdateError as error:
            return str(error)
        return f"client {client} is not known to be this node's"

    def _put(self, update: ClientUpdate, node: int) -> None:
        copies = self._updates.setdefault(update.client, {})
        if node in copies:
            raise InvalidUpdateError("the node has answered before", "client")
        if self._store is None:
            copies[node] = update
            return
        # What may still shrink when the round is complete is not summed before.
        streaming = self._streaming if self._is_within(node) else None
        if streaming is None or not streaming.is_next(update, node):
            copies[node] = replace(update, changes=self._store.store(update.changes))
            if streaming is not None:
                streaming.put_off(update, node)
            return
        copies[node] = streaming.take(update)
        for client, rest in streaming.take_waiting(self._of_holder).items():
            self._updates[client][self._holders[client]] = rest

    def _of_holder(self, client: int) -> ClientUpdate:
        return self._updates[client][self._holders[client]]

    def _reject(self, node: int, reason: str, kind: str) -> None:
        self._kinds[kind] += 1
        self._rejected[node] = reason


def collect(
    now: Round,
    collector: UpdateCollector,
    message: Message,
    question: Question | None = None,
    adjust: Callable[[ClientUpdate], ClientUpdate] = lambda update: update,
) -> None:
    """Put a training reply into a collector and tell of it; see :meth:`UpdateCollector.add`."""
    node = message.metadata.src_node_id
    update = collector.add(message, node, question, adjust)
    if update is not None:
        now.good(update)
    else:
        now.unusable(node)


def release(message: Message) -> None:
    """Empty a message that was decoded: what is still needed of its bytes has views on them.

    A RecordDict and the view of its array records hold each other, so that it would stay in memory
    until Python looks for cycles, which large replies do not hasten.
    """
    for record in message.content.array_records.values():
        record.clear()


def _drop_other_splits(collected: Collected, known: int) -> None:
    """Reject clients that split the data into another number of partitions than the run does.

    That is ``known``, or what most have if it is 0.
    """
    numbers = Counter(u.num_partitions for u in collected.updates if u.num_partitions)
    if not numbers or set(numbers) == {known}:
        return
    usual = known or max(numbers, key=lambda number: (numbers[number], -number))
    others = "earlier rounds had" if known else "most nodes have"
    for update in list(collected.updates):
        if update.num_partitions not in (0, usual):
            collected.updates.remove(update)
            _drop(
                collected,
                update.client,
                "client",
                f"reply rejected: num-partitions = {update.num_partitions}, but {others} "
                f"{usual}; give all nodes the same",
            )


def _drop(collected: Collected, client: int, kind: str, why: str) -> None:
    """Note that a good reply is left out."""
    collected.kinds[kind] += 1
    del collected.bytes_up[client]
    collected.rejected[f"client {client}"] = why


def decode_scores(
    replies: Iterable[Message],
    registry: ClientRegistry,
    question: Question | None = None,
    bounds: TaskBounds | None = None,
) -> tuple[list[ClientScore], dict[str, str]]:
    """Decode evaluation replies.

    Args:
        replies: of the nodes.
        registry: knows which node serves which client, and how many test items each client has.
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
            registry.claim(node, score.client, worked=False)
            most = registry.most_tests(score.client, bounds or TaskBounds())
            if score.items > most:
                raise InvalidUpdateError(f"items = {score.items}: it can have {most} at most")
            scores[node] = score
        except InvalidUpdateError as error:
            rejected[node] = str(error)
    rejected |= {node: why for node, why in registry.settle().items() if node in scores}
    good = [s for node, s in scores.items() if registry.client(node) == s.client]
    named = {registry.name(node): f"score rejected: {why}" for node, why in rejected.items()}
    return sorted(good, key=lambda score: score.client), named
