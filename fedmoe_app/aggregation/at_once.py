"""Replies that are summed as they come: no disk, and no more memory than one reply and the sums.

Sums run in client order. So a reply is taken when all clients before it in that order have been;
the others wait in the spool for their turn. That needs to know which clients will answer: the
nodes' client numbers are known from earlier rounds. In a run's first round, and whenever a new node
is asked, everything waits, and the result is the same bit for bit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace

from fedmoe_app.aggregation.aggregate import round_info
from fedmoe_app.aggregation.store import Spool
from fedmoe_app.aggregation.streaming import RunningSums
from fedmoe_app.moe.state import ModelState
from fedmoe_app.wire.update import ClientUpdate


class AtOnce:
    """Takes a round's updates into running sums, in client order.

    Args:
        sums: of this round.
        holders: client -> node of all that were asked.
        num_partitions: of the run's earlier rounds; an update with another number waits, since it
            may be rejected when all are in. 0 if none is known.
        spool: where the rest of an update waits.
    """

    def __init__(
        self, sums: RunningSums, holders: Mapping[int, int], num_partitions: int, spool: Spool
    ) -> None:
        self.sums = sums
        self._holders, self._num_partitions, self._spool = holders, num_partitions, spool
        self._order = deque(sorted(holders))
        self._waiting: set[int] = set()  # clients whose update is complete in the spool

    def is_next(self, update: ClientUpdate, node: int) -> bool:
        """Whether an update that has just come can be taken."""
        return self._may_be_taken(update, node) and self._order[0] == update.client

    def put_off(self, update: ClientUpdate, node: int) -> None:
        """Note that an update waits for its turn."""
        if self._may_be_taken(update, node):
            self._waiting.add(update.client)

    def take(self, update: ClientUpdate) -> ClientUpdate:
        """Add the update that is next; return it with what has to wait until the round's end.

        Raises:
            SpoolError: if that cannot be stored; the update is then not in the sums.
        """
        rest = self._spool.store(self.sums.rest_of(update.changes), views=True)
        return self._add(update, rest)

    def take_waiting(self, stored: Callable[[int], ClientUpdate]) -> dict[int, ClientUpdate]:
        """Add those whose turn has come; return them as :meth:`take` does."""
        taken = {}
        while self._order and self._order[0] in self._waiting:
            update = stored(self._order[0])
            self._waiting.discard(update.client)
            rest = self._spool.keep_part(update.changes, self.sums.rest_of(update.changes))
            taken[update.client] = self._add(update, rest)
        return taken

    def _add(self, update: ClientUpdate, rest: ModelState) -> ClientUpdate:
        self._order.popleft()
        self.sums.add(update.client, update.changes, round_info(0, [update]))
        return replace(update, changes=rest)

    def _may_be_taken(self, update: ClientUpdate, node: int) -> bool:
        same_split = update.num_partitions in (0, self._num_partitions)
        return bool(self._order) and self._holders.get(update.client) == node and same_split
