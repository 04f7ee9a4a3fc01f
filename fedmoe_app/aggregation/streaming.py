"""Sums of a round that grow as replies come: no disk, no more memory than a reply and the sums.

A block whose rule is a ``Summed`` (:mod:`fedmoe_app.schemes.parts`) needs neither the other
clients' changes nor their weights, so that nothing of it has to wait; all else waits until the
round is complete. Sums run in float32 in client order. :class:`RunningSums` takes the first clients
of that order one by one; :func:`fedmoe_app.aggregation.aggregate.aggregate` adds the others, which
waited, with the same arithmetic: whoever was taken at once, the result is the same bit for bit.

So a reply is taken when all clients before it in that order have been; the others wait in the spool
for their turn. That needs to know which clients will answer: the nodes' client numbers are known
from earlier rounds. In a run's first round, and whenever a new node is asked, everything waits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fedmoe_app.aggregation.store import Spool
from fedmoe_app.moe.state import ModelState, Tensors
from fedmoe_app.schemes.faults import PartError, call, shown
from fedmoe_app.schemes.parts import Scaled, Server, Summed
from fedmoe_app.schemes.sums import add_scaled
from fedmoe_app.schemes.unwritten import Unwritten
from fedmoe_app.schemes.views import DENSE, EXPERT, GATE, Block, Reply, RoundInfo, blocks_of

if TYPE_CHECKING:
    from fedmoe_app.wire.update import ClientUpdate

_Zeros = Callable[[Sequence[int]], Tensor]


class BlockSums:
    """The named sums of one block so far.

    Attributes:
        num_members: clients in them that trained the block.
    """

    def __init__(self, zeros: _Zeros = torch.zeros) -> None:
        self._zeros = zeros
        self._tensors: Tensors = {}
        self._numbers: dict[str, float] = {}
        self.num_members = 0

    def add(self, added: Sequence[Mapping[str, Scaled | float]]) -> None:
        """Add what the next clients add, in client order."""
        scaled: dict[str, list[Scaled]] = {}
        for item in added:
            for name, value in item.items():
                if isinstance(value, Scaled):
                    scaled.setdefault(name, []).append(value)
                else:
                    self._numbers[name] = self._numbers.get(name, 0.0) + float(value)
        for name, parts in scaled.items():
            if name not in self._tensors:
                self._tensors[name] = self._zeros(parts[0].tensor.shape)
            factors, tensors = [p.factor for p in parts], [p.tensor for p in parts]
            add_scaled(self._tensors[name], factors, tensors)

    def named(self) -> dict[str, Any]:
        """Return the sums by name: tensors, and numbers."""
        return {**self._tensors, **self._numbers}


class RunningSums:
    """The sums of a round, for the clients that were taken at once.

    Args:
        server: the scheme's half.
        experts: whether experts may be summed at once, too; diagnostics look at each client's
            changes once more and need them to wait.
        values: global values, whose blocks are summed.
        zeros: makes the tensors of sums, float32 and contiguous, for a shape.
    """

    def __init__(
        self,
        server: Server,
        experts: bool,
        values: ModelState | None = None,
        zeros: _Zeros = torch.zeros,
    ) -> None:
        self._server, self._zeros = server, zeros
        rules = {DENSE: server.dense, GATE: server.gates, EXPERT: server.experts}
        self._kinds = {kind for kind, rule in rules.items() if isinstance(rule, Summed)}
        if not experts:
            self._kinds.discard(EXPERT)
        if server.admit is not None:  # who counts is decided when all replies are in
            self._kinds.clear()
        blocks = blocks_of(values or ModelState())
        self._blocks = [block for block in blocks if block.kind in self._kinds]
        self._taken: set[int] = set()
        self._sums: dict[Block, BlockSums] = {}
        self._fault: PartError | None = None

    def has_taken(self, client: int) -> bool:
        """Whether this client's changes are in the sums."""
        return client in self._taken

    def streams(self, kind: str) -> bool:
        """Whether blocks of a kind do not wait."""
        return kind in self._kinds

    def rest_of(self, changes: ModelState) -> ModelState:
        """Return what of a client's changes has to wait."""
        return ModelState(
            {} if self.streams(DENSE) else changes.dense,
            {} if self.streams(GATE) else changes.gates,
            {} if self.streams(EXPERT) else changes.experts,
        )

    def add(self, reply: Reply) -> None:
        """Add what a client sent, the next one in client order; changes are float32.

        A fault of a rule waits until the round is aggregated: :meth:`pop` raises it.
        """
        self._taken.add(reply.client)
        try:
            self._add(reply)
        except PartError as error:
            self._fault = self._fault or error

    def _add(self, reply: Reply) -> None:
        for block in self._blocks:
            rule = self._server.rule(block)
            assert isinstance(rule, Summed)
            if added := added_by(rule, reply, block):
                sums = self._sums.setdefault(block, BlockSums(self._zeros))
                sums.add([added])
                sums.num_members += reply.change(block) is not None

    def pop(self, block: Block) -> BlockSums:
        """Return the sums of a block so far and give them up.

        Raises:
            PartError: a rule failed while the sums grew; they are of no use.
        """
        if self._fault is not None:
            raise self._fault
        return self._sums.pop(block, None) or BlockSums(self._zeros)


def added_by(rule: Summed, reply: Reply, block: Block) -> Mapping[str, Scaled | float]:
    """Return what a client adds to the sums of a block.

    Raises:
        PartError: the rule raised, returned something else, or wrote to the reply.
    """
    unwritten = Unwritten("reply", changes=reply.change(block) or {})
    added = call(rule, "add", reply, block)
    unwritten.check(rule, "add")
    if not isinstance(added, Mapping):
        raise PartError.of(rule, "add", f"returned {shown(added)}: must be a dict by name")
    for name, value in added.items():
        is_scalar = isinstance(value, Tensor) and not value.dim()
        if not is_scalar and not isinstance(value, Scaled | Real):
            raise PartError.of(
                rule, "add", f"returned {shown(value)} under {name!r}: must be Scaled or a number"
            )
    return added


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
        self.sums.add(reply_of(update))
        return replace(update, changes=rest)

    def _may_be_taken(self, update: ClientUpdate, node: int) -> bool:
        same_split = update.num_partitions in (0, self._num_partitions)
        return bool(self._order) and self._holders.get(update.client) == node and same_split


def reply_of(update: ClientUpdate) -> Reply:
    """Return what a scheme's parts see of an update."""
    steps = update.metrics.get("num-steps", 0.0)
    return Reply(
        update.client,
        float(update.counted),
        steps,
        update.routing,
        update.changes,
        update.statistics,
        update.expert_budget,
    )


def replies_of(updates: Sequence[ClientUpdate]) -> list[Reply]:
    """Return what a scheme's parts see of updates, in their order."""
    return [reply_of(update) for update in updates]


def round_info(server_round: int, updates: Sequence[ClientUpdate]) -> RoundInfo:
    """Describe a round to the scheme; ``updates`` must be in client order."""
    examples = torch.tensor([float(update.counted) for update in updates])  # [N]
    steps = torch.tensor([update.metrics.get("num-steps", 0.0) for update in updates])  # [N]
    routing = tuple(update.routing for update in updates)
    statistics = tuple(update.statistics for update in updates)
    return RoundInfo(server_round, examples, steps, routing, statistics)
