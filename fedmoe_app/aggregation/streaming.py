"""Sums of a round that grow as replies come: parts whose weights one reply alone tells.

A mean Σ_i a_i·Δ_i / Σ_i a_i, where a_i depends on client i only, needs neither the other clients'
changes nor their weights, so that nothing has to wait. Dense tensors with FedAvg's weights
are such means, and the experts of every scheme that says so by :meth:`Scheme.expert_shares`. All
else (gates, conflicts, cosines) waits until the round is complete.

Sums run in float32 in client order. :class:`RunningSums` takes the first clients of that order one
by one; :func:`fedmoe_app.aggregation.aggregate.folded_tensors` adds the others, which waited, with
the same arithmetic: whoever was taken at once, the result is the same bit for bit.

Shapes: N clients, E experts a layer.

Replies that are summed as they come: no disk, and no more memory than one reply and the sums.

Sums run in client order. So a reply is taken when all clients before it in that order have been;
the others wait in the spool for their turn. That needs to know which clients will answer: the
nodes' client numbers are known from earlier rounds. In a run's first round, and whenever a new node
is asked, everything waits, and the result is the same bit for bit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fedmoe_app.aggregation.store import Spool
from fedmoe_app.moe.state import ExpertKey, ModelState, Tensors
from fedmoe_app.schemes.base import RoundInfo, Scheme
from fedmoe_app.schemes.sums import add_scaled
from fedmoe_app.wire.update import ClientUpdate


def has_running_dense(scheme: Scheme) -> bool:
    """Whether dense tensors are averaged by examples, as FedAvg does."""
    return type(scheme).dense_weights is Scheme.dense_weights


class RunningSums:
    """Numerators of a round's means, for the clients that were taken at once.

    Args:
        scheme: the scheme's server half.
        experts: whether experts may be summed at once, too; diagnostics look at each client's
            changes once more and need them to wait.
        zeros: makes the tensors of sums, float32 and contiguous, for a shape.
    """

    def __init__(
        self,
        scheme: Scheme,
        experts: bool,
        zeros: Callable[[Sequence[int]], Tensor] = torch.zeros,
    ) -> None:
        self._zeros = zeros
        self._scheme = scheme
        self._dense = has_running_dense(scheme)
        self._experts = experts and scheme.means_of_experts
        self._taken: set[int] = set()
        self._sums = ModelState()

    def has_taken(self, client: int) -> bool:
        """Whether this client's changes are in the sums."""
        return client in self._taken

    def rest_of(self, changes: ModelState) -> ModelState:
        """Return what of a client's changes has to wait."""
        return ModelState(
            {} if self._dense else changes.dense,
            changes.gates,
            {} if self._experts else changes.experts,
        )

    def add(self, client: int, changes: ModelState, info: RoundInfo) -> None:
        """Add a client's changes, the next one in client order.

        Args:
            client: its number.
            changes: float32.
            info: of a round of this client alone.
        """
        self._taken.add(client)
        if self._dense:
            self._add(self._sums.dense, changes.dense, float(info.num_examples))
        if self._experts:
            shares = _own_shares(self._scheme, info, changes)
            for key, tensors in changes.experts.items():
                self._add(self._sums.experts.setdefault(key, {}), tensors, shares[key])

    def pop_dense(self, name: str, like: Tensor) -> Tensor:
        """Return the sum of a dense tensor so far and give it up; zeros where there is none."""
        return self._or_zeros(self._sums.dense.pop(name, None), like)

    def pop_expert(self, key: ExpertKey, like: Mapping[str, Tensor]) -> Tensors:
        """Return the sums of an expert so far and give them up; zeros where there are none."""
        sums = self._sums.experts.pop(key, {})
        return {name: self._or_zeros(sums.get(name), value) for name, value in like.items()}

    def _add(self, sums: Tensors, changes: Mapping[str, Tensor], factor: float) -> None:
        for name, change in changes.items():
            if name not in sums:
                sums[name] = self._zeros(change.shape)
            add_scaled(sums[name], [factor], [change])

    def _or_zeros(self, total: Tensor | None, like: Tensor) -> Tensor:
        return self._zeros(like.shape) if total is None else total

    @property
    def sums_experts(self) -> bool:
        """Whether experts do not wait."""
        return self._experts

    @property
    def sums_dense(self) -> bool:
        """Whether dense tensors do not wait."""
        return self._dense


def _own_shares(scheme: Scheme, info: RoundInfo, changes: ModelState) -> dict[ExpertKey, float]:
    """Return a_i of one client's trained experts."""
    by_layer = {
        layer: scheme.expert_shares(info, layer)[0].tolist()
        for layer in {layer for layer, _ in changes.experts}
    }
    return {(layer, expert): by_layer[layer][expert] for layer, expert in changes.experts}


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


def round_info(server_round: int, updates: Sequence[ClientUpdate]) -> RoundInfo:
    """Describe a round to the scheme; ``updates`` must be in client order."""
    examples = torch.tensor([float(update.num_examples) for update in updates])  # [N]
    steps = torch.tensor([update.metrics.get("num-steps", 0.0) for update in updates])  # [N]
    return RoundInfo(server_round, examples, steps, tuple(update.routing for update in updates))
