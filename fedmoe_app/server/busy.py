"""Nodes that still work on a message of an earlier round.

A SuperNode carries out one message after the other and sends heartbeats meanwhile, so Flower counts
a node that is far behind as connected. Asked again it would only be further behind, and a round
would wait for it in vain. It is therefore left out until its late reply comes, which is dropped.

Some never reply: a node that was killed and is back under the same id within the minute in which
Flower would have noticed. So a node is asked again after a pause, which doubles with every message
that it misses in a row.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flwr.app import RecordDict
from flwr.serverapp import Grid

if TYPE_CHECKING:
    from fedmoe_app.server.transport import Reply


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

    def note(self, reply: Reply, timeout: float) -> None:
        """Note whether a node still works on what it was asked."""
        if reply.message is None and reply.message_id:
            self.missed(reply.message_id, reply.node_id, timeout)
        elif reply.failure is None:
            self.answered(reply.node_id)

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
