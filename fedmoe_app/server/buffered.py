"""Buffered rounds: a round is complete as soon as ``size`` replies are in, and waits for no node.

FedBuff (Nguyen et al., "Federated Learning with Buffered Asynchronous Aggregation", AISTATS 2022,
arXiv:2106.06639). Only how a round's replies come together differs from a synchronous round:

* A node is asked when it is idle and the newest global state is newer than what it trained on last.
* The round is complete when K replies are in its buffer; they are aggregated in client order. The
  others go on training; their replies enter the next buffer.
* A reply that started from a global state s versions ago is a change all the same: it is added to
  the newest state, discounted by 1/√(1+s).
* A client is in a buffer once at most; a second reply of it waits for the next one.

With K = all nodes and nobody late this is the synchronous round, bit for bit. Given the order of
arrival, so is everything.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from flwr.app import Message

from fedmoe_app.aggregation.store import Spool
from fedmoe_app.moe.state import ModelState
from fedmoe_app.server.collect import Collected, UpdateCollector, collect
from fedmoe_app.server.transport import POLL_SECONDS, PULL_AT_A_TIME, Reply, pull, wait_for_nodes
from fedmoe_app.wire.question import Question
from fedmoe_app.wire.update import ClientUpdate

if TYPE_CHECKING:
    from fedmoe_app.server.round import Round
    from fedmoe_app.server.strategy import MoEStrategy


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


@dataclass(frozen=True)
class _Asked:
    """A message that is out."""

    node: int
    question: Question
    sent: float  # time.monotonic()


class Buffered:
    """Collects ``size`` replies a round.

    Args:
        size: replies that complete a round.
    """

    is_buffered = True

    def __init__(self, size: int) -> None:
        self._size = size
        self._started = 0.0
        self._out: dict[str, _Asked] = {}  # by message id
        self._done: set[int] = set()  # nodes that were asked with the newest state
        self._again: set[int] = set()  # nodes that could not put it together, once a round
        self._stores: list[Spool] = []  # of this buffer and of the next one
        self._buffer: UpdateCollector | None = None
        self._next: UpdateCollector | None = None  # the buffer after this one

    def ask(self, strategy: MoEStrategy, now: Round) -> None:
        """Open the round's buffer, and ask the first nodes unless late replies have filled it."""
        self._started = time.monotonic()
        self._done.clear()
        self._again.clear()
        strategy.registry.question = strategy.question(now.server_round)
        limits = strategy.limits
        wait_for_nodes(
            *(now.grid, limits.min_clients, limits.wait_for_clients), connected=strategy.connected
        )
        now.announce(self._size)
        self._open(strategy)
        strategy.begin_sums()  # of clients that nobody knows beforehand: all wait
        if not self._is_full:
            self._ask_idle(strategy, now)

    def replies(self, strategy: MoEStrategy, now: Round) -> Collected:
        """Take replies, and ask who has become idle, until the buffer is full."""
        while not self._is_full and self._out and time.monotonic() - self._started < now.timeout:
            if not self._pull(strategy, now):
                self._drop_late(strategy, now)
                time.sleep(POLL_SECONDS)
            if not self._is_full:
                self._ask_idle(strategy, now)
        now.ask_names()
        buffer, self._buffer = self._buffer, None  # nobody holds its changes once they are summed
        assert buffer is not None
        return buffer.finish()

    def evaluators(self, strategy: MoEStrategy, now: Round) -> list[int]:
        """Return the connected nodes that do not train."""
        training = {asked.node for asked in self._out.values()}
        return [node for node in strategy.connected(now.grid) if node not in training]

    # -- the buffer ----------------------------------------------------------------------------

    @property
    def _is_full(self) -> bool:
        return self._buffer is not None and self._buffer.num_usable >= self._size

    def _open(self, strategy: MoEStrategy) -> None:
        """Take the replies that came too late for the last buffer; open the one after."""
        if not self._stores:
            own = strategy.aggregation.store
            self._stores = [own.another(), own]
        self._buffer = self._next or self._new_buffer(strategy, self._stores[0])
        self._stores.reverse()
        self._stores[0].clear()  # its buffer is aggregated
        self._next = self._new_buffer(strategy, self._stores[0])

    def _new_buffer(self, strategy: MoEStrategy, store: Spool) -> UpdateCollector:
        spec, bounds, guard = strategy.update_spec(), strategy.task.bounds, strategy.guard
        return UpdateCollector(spec, strategy.registry, store, bounds=bounds, guard=guard)

    def _pull(self, strategy: MoEStrategy, now: Round) -> bool:
        """Take the replies that are there until the buffer is full; return whether any was."""
        found = False
        ids = list(self._out)
        for start in range(0, len(ids), PULL_AT_A_TIME):
            if self._is_full:
                break
            # What one call brings is taken to the end: Flower hands a reply over only once.
            for message in pull(now.grid, ids[start : start + PULL_AT_A_TIME]):
                asked = self._out.pop(message.metadata.reply_to_message_id, None)
                if asked is not None:
                    self._take(strategy, now, asked, message)
                    found = True
                del message
        return found

    def _take(self, strategy: MoEStrategy, now: Round, asked: _Asked, message: Message) -> None:
        reply = Reply(asked.node, message, time.monotonic() - asked.sent)
        if not strategy.sync.learn(reply) and asked.node not in self._again:
            self._again.add(asked.node)
            self._done.discard(asked.node)  # it is asked again, with the whole state
            return
        if reply.failure is not None:
            now.fail_node(reply)
            return
        now.arrived(reply)
        assert self._buffer is not None and self._next is not None
        waits = self._is_full or asked.node in self._buffer.nodes
        # A reply for the next buffer is one version older by then.
        staleness = strategy.num_aggregated - asked.question.state_version + int(waits)
        target = self._next if waits else self._buffer
        adjust = partial(discounted, staleness=staleness)
        collect(now, target, message, asked.question, adjust)

    # -- asking --------------------------------------------------------------------------------

    def _ask_idle(self, strategy: MoEStrategy, now: Round) -> None:
        """Send the newest state to idle nodes that have not trained on it."""
        limits, registry = strategy.limits, strategy.registry
        connected = strategy.connected(now.grid)
        busy = {asked.node for asked in self._out.values()}
        at_once = strategy.sample_size(len(connected))
        idle = [node for node in connected if node not in busy and node not in self._done]
        at_least = max(0, limits.min_clients - len(busy))
        idle = registry.awake(now.grid, idle, now.server_round, at_least)
        wanted = min(at_once - len(busy), len(idle))
        if wanted > 0:
            self._send(strategy, now, registry.draw(now.grid, idle, now.server_round, wanted))

    def _send(self, strategy: MoEStrategy, now: Round, nodes: Sequence[int]) -> None:
        messages = strategy.configure_train(now, nodes)
        pushed = set(now.grid.push_messages(messages))  # sets the messages' ids
        question = strategy.question(now.server_round)
        for message in messages:
            node, sent = message.metadata.dst_node_id, message.metadata.message_id
            self._done.add(node)
            if sent in pushed:
                self._out[sent] = _Asked(node, question, time.monotonic())
            else:
                strategy.sync.learn(Reply(node, None, 0.0))
                now.fail(strategy.registry.name(node), "the message could not be sent")
        now.num_asked += len(nodes)

    def _drop_late(self, strategy: MoEStrategy, now: Round) -> None:
        """Wait no longer for messages that are older than ``round-timeout``."""
        moment = time.monotonic()
        for message_id, asked in list(self._out.items()):
            if moment - asked.sent >= now.timeout:
                del self._out[message_id]
                strategy.sync.learn(Reply(asked.node, None, moment - asked.sent))
                now.fail(strategy.registry.name(asked.node), f"no reply within {now.timeout:g} s")
