"""Folding: client updates into the next global state, as the scheme weighs them.

All sums run in float32 in client order, so that a run is reproducible bit for bit and the order in
which replies arrive changes nothing. One tensor, or one expert, is folded at a time: changes that
wait on the disk are read when their turn comes; those that were summed as they came
(:mod:`fedmoe_app.aggregation.streaming`) are there already.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fedmoe_app.aggregation.diagnostics import Diagnostics
from fedmoe_app.aggregation.streaming import RunningSums
from fedmoe_app.moe.state import (
    ExpertKey,
    ModelState,
    Tensors,
    expert_name,
    flatten,
    gate_name,
    unflatten,
)
from fedmoe_app.schemes.base import ExpertUpdates, RoundInfo, Scheme
from fedmoe_app.schemes.sums import PairRule, add_scaled, all_finite, mean_of, weighted_sum
from fedmoe_app.wire.update import ClientUpdate


def fold(
    state: ModelState,
    updates: Sequence[ClientUpdate],
    scheme: Scheme,
    info: RoundInfo,
    diagnostics: Diagnostics | None = None,
    pairs: PairRule | None = None,
    sums: RunningSums | None = None,
) -> ModelState:
    """Return the next global state; ``state`` stays as it is. See :func:`folded_tensors`."""
    folded = ModelState()
    for key, tensor in folded_tensors(state, updates, scheme, info, diagnostics, pairs, sums):
        folded.insert(key, tensor)
    return folded


def folded_tensors(
    state: ModelState,
    updates: Sequence[ClientUpdate],
    scheme: Scheme,
    info: RoundInfo,
    diagnostics: Diagnostics | None = None,
    pairs: PairRule | None = None,
    sums: RunningSums | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of the next global state, in the order of ``state.named()``.

    Args:
        state: global values, float32; stays as it is.
        updates: the round's valid updates in client order, at least one.
        scheme: the scheme's server half.
        info: see :func:`round_info`.
        diagnostics: takes what the scheme says of each expert; None leaves it uncomputed.
        pairs: when cosines between changes are exact; None is the default.
        sums: what was summed at once, of the first of ``updates``; it is used up.

    Raises:
        FoldError: when a tensor is not finite; what was yielded before must then be dropped.
    """
    sums = sums or RunningSums(scheme, experts=False)
    one = _Fold(updates, scheme, info, diagnostics, pairs or PairRule(), sums)
    for name, value in state.dense.items():
        yield name, _finite(one.dense(name, value), name)
    for layer, gate in sorted(state.gates.items()):
        for name, tensor in one.gate(layer, gate).items():
            key = gate_name(layer, name)
            yield key, _finite(tensor, key)
    for expert, values in sorted(state.experts.items()):
        for name, tensor in one.expert(expert, values).items():
            key = expert_name(*expert, name)
            yield key, _finite(tensor, key)


class FoldError(ValueError):
    """A fold whose result must not become the global state; the message is the reason."""


def _finite(tensor: Tensor, key: str) -> Tensor:
    """Return a folded tensor without NaN and infinity. Dividing by zero is their usual cause."""
    if not all_finite(tensor):
        bad = int((~torch.isfinite(tensor)).sum())
        raise FoldError(f"folding gave {bad} NaN or infinite values of {tensor.numel()} in {key}")
    return tensor


class _Fold:
    """The fold of one round, part by part."""

    def __init__(
        self,
        updates: Sequence[ClientUpdate],
        scheme: Scheme,
        info: RoundInfo,
        diagnostics: Diagnostics | None,
        pairs: PairRule,
        sums: RunningSums,
    ) -> None:
        self._updates, self._scheme, self._info = updates, scheme, info
        self._diagnostics, self._pairs, self._sums = diagnostics, pairs, sums
        self._dense_weights = scheme.dense_weights(info)  # [N]
        # Positions of those whose dense tensors, and experts, had to wait.
        late = [i for i, u in enumerate(updates) if not sums.has_taken(u.client)]
        self._late_dense = late if sums.sums_dense else list(range(len(updates)))
        self._late = set(late if sums.sums_experts else range(len(updates)))
        self._shares: dict[int, Tensor] = {}  # of the layer at hand

    def dense(self, name: str, value: Tensor) -> Tensor:
        """Return a dense tensor's next value."""
        if not self._sums.sums_dense:
            changes = [update.changes.dense[name] for update in self._updates]
            return value + weighted_sum(self._dense_weights, changes)
        total = self._sums.pop_dense(name, value)
        examples = self._info.num_examples
        changes = [self._updates[i].changes.dense[name] for i in self._late_dense]
        factors = examples[self._late_dense].tolist()
        return mean_of(add_scaled(total, factors, changes), examples).add_(value)

    def gate(self, layer: int, values: Tensors) -> Tensors:
        """Return a gate's next values."""
        changes = [update.changes.gates[layer] for update in self._updates]
        weights = self._scheme.gate_weights(self._info, layer)
        scale = self._scheme.gate_scale(self._info, layer)
        return _add(values, changes, weights, scale, self._dense_weights)

    def expert(self, key: ExpertKey, values: Tensors) -> Tensors:
        """Combine one expert over the clients that trained it; without any it stays as it was."""
        members = tuple(i for i in range(len(self._updates)) if self._has(i, key))
        if not members:
            return values
        if self._scheme.means_of_experts:
            mean = self._mean(key, values, members)
            if self._diagnostics is not None:
                self._diagnose(self._of_expert(key, values, members), flatten(mean, values))
            return {name: mean[name].add_(value) for name, value in values.items()}
        of_expert = self._of_expert(key, values, members)
        change = self._scheme.combine_expert(of_expert)  # [P]
        self._diagnose(of_expert, change)
        parts = unflatten(change, values)
        return {name: value + parts[name] for name, value in values.items()}

    def _has(self, position: int, key: ExpertKey) -> bool:
        update = self._updates[position]
        if position in self._late:
            return key in update.changes.experts
        return bool(update.routing.trained[key])  # its changes are in the sums

    def _mean(self, key: ExpertKey, values: Tensors, members: tuple[int, ...]) -> Tensors:
        """Return Σ_{i∈S_e} a_i·Δ_i / Σ a_i of the scheme's shares a, tensor by tensor."""
        if key[0] not in self._shares:
            self._shares = {key[0]: self._scheme.expert_shares(self._info, key[0])}  # [N, E]
        shares = self._shares[key[0]][:, key[1]]  # [N]
        counted = shares if self._scheme.absent_count else shares[list(members)]
        waited = [i for i in members if i in self._late]
        factors = shares[waited].tolist()
        totals = self._sums.pop_expert(key, values)
        for name, total in totals.items():
            changes = [self._updates[i].changes.experts[key][name] for i in waited]
            mean_of(add_scaled(total, factors, changes), counted)
        return totals

    def _of_expert(
        self, key: ExpertKey, values: Tensors, members: tuple[int, ...]
    ) -> ExpertUpdates:
        changes = tuple(self._updates[i].changes.experts[key] for i in members)
        return ExpertUpdates(*key, members, changes, values, self._info, self._pairs)

    def _diagnose(self, of_expert: ExpertUpdates, change: Tensor) -> None:
        if self._diagnostics is not None:
            self._diagnostics.add(self._scheme, of_expert, change)


def _add(
    values: Tensors,
    changes: Sequence[Tensors],
    weights: Tensor,
    scale: float,
    without_rows: Tensor,
) -> Tensors:
    """scale·values + Σ_i weights[i]·changes[i], tensor by tensor.

    Weights ``[N, E]`` are for rows: a gate's tensor without a row an expert takes ``without_rows``.
    """
    result = {}
    for name, value in values.items():
        fits = weights.dim() == 1 or (value.dim() > 0 and len(value) == weights.shape[1])
        chosen = weights if fits else without_rows
        total = weighted_sum(chosen, [change[name] for change in changes])
        result[name] = value * scale + total
    return result
