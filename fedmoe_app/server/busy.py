"""Nodes that still work on a message of an earlier round, and nodes that work for another run.

A SuperNode carries out one message after the other and sends heartbeats meanwhile, so Flower counts
a node that is far behind as connected. Asked again it would only be further behind, and a round
would wait for it in vain. It is therefore left out until its late reply comes, which is dropped.

Some never reply: a node that was killed and is back under the same id within the minute in which
Flower would have noticed. So a node is asked again after a pause, which doubles with every message
that it misses in a row.

A node that works for another run says so at once (:mod:`fedmoe_app.client.serving`). If too few are
left for a round, the round is not a failed one: the server waits, tells so, and asks again, for a
time that is limited.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from flwr.app import RecordDict
from flwr.serverapp import Grid

from fedmoe_app.config.names import BUSY_WITH_ANOTHER_RUN

FIRST_PAUSE, MAX_PAUSE = 10.0, 120.0  # seconds between two questions whether nodes are free


@dataclass(frozen=True)
class _Owed:
    node_id: int
    until: float  # monotonic time at which the node is asked again, reply or not


class BusyNodes:
    """What nodes still owe, by message id.

    Args:
        on_late: called with the node's id and the content when a late reply is dropped.
    """

    def __init__(
        self, on_late: Callable[[int, RecordDict], None] = lambda node_id, content: None
    ) -> None:
        self._on_late = on_late
        self._owed: dict[str, _Owed] = {}
        self._misses: dict[int, int] = {}  # node -> messages missed in a row

    def missed(self, message_id: str, node_id: int, timeout: float) -> None:
        """Note that a node has not replied within ``timeout`` seconds."""
        pause = timeout * 2 ** self._misses.get(node_id, 0)
        self._misses[node_id] = self._misses.get(node_id, 0) + 1
        self._owed[message_id] = _Owed(node_id, time.monotonic() + pause)

    def answered(self, node_id: int) -> None:
        """Note that a node has replied in time."""
        self._misses.pop(node_id, None)

    def free(self, grid: Grid, nodes: Iterable[int]) -> list[int]:
        """Return those of the connected nodes that can be asked; fetch and drop late replies."""
        if self._owed:
            for reply in grid.pull_messages(list(self._owed)):
                owed = self._owed.pop(reply.metadata.reply_to_message_id, None)
                if owed is not None and not reply.has_error():
                    self._on_late(owed.node_id, reply.content)
        now = time.monotonic()
        self._owed = {key: owed for key, owed in self._owed.items() if owed.until > now}
        waiting = {owed.node_id for owed in self._owed.values()}
        return [node for node in nodes if node not in waiting]


class OtherRuns:
    """Which of the nodes asked in a round work for another run, and how long that was waited for.

    Args:
        limit: seconds to wait in a row.

    Attributes:
        nodes: those that said so in this round, with what they said.
    """

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._since: float | None = None  # monotonic time since which nothing else was done
        self._pause = FIRST_PAUSE
        self.nodes: dict[str, str] = {}

    def begin_round(self) -> None:
        """Forget who was busy when the nodes were asked before."""
        self.nodes = {}

    def note(self, who: str, reason: str) -> None:
        """Take a node's reason for a failure."""
        if BUSY_WITH_ANOTHER_RUN in reason:
            self.nodes[who] = reason

    def round_done(self) -> None:
        """Note that a round got through: waiting begins anew."""
        self._since, self._pause = None, FIRST_PAUSE

    def next_pause(self) -> float | None:
        """Return the seconds to wait before the nodes are asked again; None for not at all."""
        if not self.nodes:
            return None
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        left = self._limit - (now - self._since)
        if left <= 0:
            return None
        pause, self._pause = self._pause, min(MAX_PAUSE, 2 * self._pause)
        # Two runs that wait for the same nodes must not ask at the same moment again and again.
        return min(pause * random.uniform(0.75, 1.25), left)

    @property
    def left(self) -> float:
        """Seconds that may still be waited."""
        waited = 0.0 if self._since is None else time.monotonic() - self._since
        return max(0.0, self._limit - waited)
