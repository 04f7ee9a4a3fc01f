"""Nodes that work for another run: a round that lacks them waits, and has not failed.

A node that works for another run says so at once (:mod:`fedmoe_app.client.serving`). If too few are
left for a round, the server waits, tells so, and asks again, for a time that is limited.
"""

from __future__ import annotations

import random
import time

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedmoe_app.config.names import BUSY_WITH_ANOTHER_RUN
from fedmoe_app.results.events import Waiting, tell
from fedmoe_app.server.busy import BusyNodes
from fedmoe_app.server.clients import ClientRegistry
from fedmoe_app.server.transport import exchange

FIRST_PAUSE, MAX_PAUSE = 10.0, 120.0  # seconds between two questions whether nodes are free
RELEASE_SECONDS = 60.0  # to wait for the nodes to note that they are free


class OtherRuns:
    """Which of the nodes asked in a round work for another run, and how long that was waited for.

    Args:
        limit: seconds to wait in a row.
        registry: knows the clients' names.
        busy: knows which nodes still work on an earlier message.

    Attributes:
        nodes: those that said so in this round, with what they said.
    """

    def __init__(self, limit: float, registry: ClientRegistry, busy: BusyNodes) -> None:
        self._limit = limit
        self._registry, self._busy = registry, busy
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

    def wait(self, grid: Grid, server_round: int, run_key: str, min_clients: int) -> bool:
        """Wait until enough nodes say that they are free, or it has been waited long enough.

        Returns:
            whether the nodes are to be asked again: False if nobody works for another run, or the
            time is over.
        """
        pause = self.next_pause()
        may_ask_again = pause is not None
        while pause is not None:
            # Two runs that each held some of the nodes would wait for each other.
            self._release(grid, run_key)
            tell(Waiting(server_round, dict(self.nodes), pause, self.left))
            time.sleep(pause)
            if self._count_free(grid, run_key) >= min_clients:
                break
            pause = self.next_pause()
        self.begin_round()
        return may_ask_again

    def _count_free(self, grid: Grid, run_key: str) -> int:
        """Ask the nodes whether they may work for this run; count those that say so in time."""
        content = RecordDict({"task": ConfigRecord({"run-key": run_key})})
        nodes = self._busy.free(grid, sorted(grid.get_node_ids()))
        messages = [Message(content, node, "query.free") for node in nodes]
        self.begin_round()
        count = 0
        for reply in exchange(grid, messages, self.left):
            count += reply.failure is None
            if reply.failure is not None:
                self.note(self._registry.name(reply.node_id), reply.failure)
        return count

    def _release(self, grid: Grid, run_key: str) -> None:
        """Tell the nodes that did not say that they work for another run that this one waits."""
        task = ConfigRecord({"run-key": run_key, "release": True})
        nodes = self._busy.free(grid, sorted(grid.get_node_ids()))
        own = [node for node in nodes if self._registry.name(node) not in self.nodes]
        messages = [Message(RecordDict({"task": task}), node, "query.free") for node in own]
        for _ in exchange(grid, messages, RELEASE_SECONDS):
            pass
