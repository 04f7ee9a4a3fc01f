"""Sums of a round that grow as replies come: parts whose weights one reply alone tells.

A mean Σ_i a_i·Δ_i / Σ_i a_i, where a_i depends on client i only, needs neither the other clients'
changes nor their weights, so that nothing has to wait. Dense tensors with FedAvg's weights
are such means, and the experts of every scheme that says so by :meth:`Scheme.expert_shares`. All
else (gates, conflicts, cosines) waits until the round is complete.

Sums run in float32 in client order. :class:`RunningSums` takes the first clients of that order one
by one; :func:`fedmoe_app.aggregation.aggregate.folded_tensors` adds the others, which waited, with the same
arithmetic: whoever was taken at once, the result is the same bit for bit.

Shapes: N clients, E experts a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from fedmoe_app.moe.state import ExpertKey, ModelState, Tensors
from fedmoe_app.schemes.base import RoundInfo, Scheme
from fedmoe_app.schemes.sums import add_scaled


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
