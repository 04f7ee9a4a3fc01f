"""Buffered rounds: a round folds as soon as ``buffer-size`` replies are in, and waits for no node.

FedBuff (Nguyen et al., arXiv:2106.06639) over the loop of ``rounds.py``, which evaluates and
reports as ever; only how a round's replies come together differs:

* A node is asked when it is idle and the newest global state is newer than what it trained on last.
* The round folds when K replies are in its buffer, in client order. The others go on training;
  their replies enter the next buffer.
* A reply that started from a global state s folds ago is a change all the same: it is added to the
  newest state, discounted by 1/√(1+s).
* A client is in a buffer once at most; a second reply of it waits for the next one.

With K = all nodes and nobody late this is the synchronous round, bit for bit. Given the order of
arrival, so is everything.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType
from flwr.serverapp import Grid

from fedmoe_app.results.metrics import RoundReport
from fedmoe_app.schemes.base import Run
from fedmoe_app.server.clients import sample_size
from fedmoe_app.server.collect import Intake
from fedmoe_app.server.strategy import MoEStrategy
from fedmoe_app.server.transport import POLL_SECONDS, PULL_AT_A_TIME, Reply, pull, wait_for_nodes
from fedmoe_app.wire.question import Question


@dataclass(frozen=True)
class _Asked:
    """A message that is out."""

    node: int
    question: Question
    sent: float  # time.monotonic()


class BufferedStrategy(MoEStrategy):
    """The strategy with buffered rounds; the arguments are those of :class:`MoEStrategy`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.plan.check(Run(self.shape, buffered=True))
        self._out: dict[str, _Asked] = {}  # by message id
        self._done: set[int] = set()  # nodes that were asked with the newest state
        self._again: set[int] = set()  # nodes that could not put it together, once a round
        self._next_spool = self.spool.another()
        self._next: Intake | None = None  # the buffer after this one

    def _train_round(
        self, grid: Grid, server_round: int, timeout: float, config: ConfigRecord | None
    ) -> None:
        """Fill a buffer and fold it; a failed round leaves the arrays as they were."""
        started = time.monotonic()
        self.report = RoundReport(server_round)
        self._done.clear()
        self._again.clear()
        self.roster.question = self.question(server_round)
        limits = self.limits
        wait_for_nodes(grid, limits.min_clients, limits.wait_for_clients, connected=self.connected)
        self.progress.round_started(server_round, self.limits.buffer_size)
        buffer = self._begin_buffer()
        self._begin_sums()  # of clients that nobody knows beforehand: all wait
        while buffer.num_usable < self.limits.buffer_size:
            self._ask(grid, server_round, config or ConfigRecord())
            if not self._out or time.monotonic() - started >= timeout:
                break
            if not self._pull(grid, buffer):
                self._drop_late(timeout)
                time.sleep(POLL_SECONDS)
        self.roster.ask(grid, self._to_ask)
        self._to_ask.clear()
        arrays, metrics = self.finish_train(server_round, buffer.finish())
        if arrays is not None and metrics is not None:
            self._adopt(server_round, arrays, metrics)
        self.report.seconds["train"] = time.monotonic() - started

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask the nodes that do not train to score the global model."""
        content = self._content(server_round, arrays, config)
        training = {asked.node for asked in self._out.values()}
        nodes = [node for node in self.connected(grid) if node not in training]
        messages, sizes = self._address(content, nodes, MessageType.EVALUATE, server_round)
        self.report.bytes_down += sum(sizes.values())
        return messages

    def spool_to(self, folder: Path) -> None:
        """Let replies that do not fit in memory wait in this folder."""
        super().spool_to(folder)
        self._next_spool.folder = folder

    # -- the buffer ----------------------------------------------------------------------------

    def _new_buffer(self) -> Intake:
        return Intake(self.update_spec(), self.roster, self._next_spool, bounds=self.bounds)

    def _begin_buffer(self) -> Intake:
        """Take the replies that came too late for the last buffer; open the one after."""
        buffer = self._next or self._new_buffer()
        self.spool, self._next_spool = self._next_spool, self.spool
        self._next_spool.clear()  # its buffer is folded
        self._next = self._new_buffer()
        return buffer

    def _pull(self, grid: Grid, buffer: Intake) -> bool:
        """Take the replies that are there until the buffer is full; return whether any was."""
        found = False
        ids = list(self._out)
        for start in range(0, len(ids), PULL_AT_A_TIME):
            if buffer.num_usable >= self.limits.buffer_size:
                break
            # What one call brings is taken to the end: Flower hands a reply over only once.
            for message in pull(grid, ids[start : start + PULL_AT_A_TIME]):
                asked = self._out.pop(message.metadata.reply_to_message_id, None)
                if asked is not None:
                    self._take(buffer, asked, message)
                    found = True
                del message
        return found

    def _take(self, buffer: Intake, asked: _Asked, message: Message) -> None:
        reply = Reply(asked.node, message, time.monotonic() - asked.sent)
        if not self.downloads.learn(reply) and asked.node not in self._again:
            self._again.add(asked.node)
            self._done.discard(asked.node)  # it is asked again, with the whole state
            return
        if reply.failure is not None:
            self._fail_node(reply)
            return
        self._note_arrival(reply)
        is_full = buffer.num_usable >= self.limits.buffer_size
        waits = is_full or asked.node in buffer.nodes
        target = self._next if waits and self._next is not None else buffer
        # A reply for the next buffer is one fold older by then.
        staleness = self.num_folded - asked.question.state_version + int(waits)
        self.take(target, message, staleness, asked.question)

    # -- asking --------------------------------------------------------------------------------

    def _ask(self, grid: Grid, server_round: int, config: ConfigRecord) -> None:
        """Send the newest state to idle nodes that have not trained on it."""
        limits, connected = self.limits, self.connected(grid)
        busy = {asked.node for asked in self._out.values()}
        at_once = sample_size(
            len(connected), limits.fraction_train, limits.min_clients, limits.clients_per_round
        )
        idle = [node for node in connected if node not in busy and node not in self._done]
        idle = self.roster.awake(grid, idle, server_round, max(0, limits.min_clients - len(busy)))
        wanted = min(at_once - len(busy), len(idle))
        if wanted > 0:
            self._send(
                grid, server_round, config, self.roster.draw(grid, idle, server_round, wanted)
            )

    def _send(
        self, grid: Grid, server_round: int, config: ConfigRecord, nodes: Sequence[int]
    ) -> None:
        content = self._content(server_round, self.result.arrays, config)
        messages, sizes = self._address(content, nodes, MessageType.TRAIN, server_round)
        pushed = set(grid.push_messages(messages))  # sets the messages' ids
        for message in messages:
            node, sent = message.metadata.dst_node_id, message.metadata.message_id
            self._done.add(node)
            if sent in pushed:
                self._out[sent] = _Asked(node, self.question(server_round), time.monotonic())
            else:
                self.downloads.learn(Reply(node, None, 0.0))
                self._fail(self.roster.name(node), "the message could not be sent")
        self.report.num_asked += len(nodes)
        self.report.bytes_down_by_node |= sizes
        self.report.bytes_down += sum(sizes.values())

    def _drop_late(self, timeout: float) -> None:
        """Wait no longer for messages that are older than ``round-timeout``."""
        now = time.monotonic()
        for message_id, asked in list(self._out.items()):
            if now - asked.sent >= timeout:
                del self._out[message_id]
                self.downloads.learn(Reply(asked.node, None, now - asked.sent))
                self._fail(self.roster.name(asked.node), f"no reply within {timeout:g} s")
