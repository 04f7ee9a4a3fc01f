"""Folding: client updates into the next global state, as the scheme weighs them.

All sums run in float32 in client order, so that a run is reproducible bit for bit and the order in
which replies arrive changes nothing. One tensor, or one expert, is folded at a time: changes that
wait on the disk are read when their turn comes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fedmoe_app.moe.state import (
    ExpertKey,
    ModelState,
    Tensors,
    expert_name,
    gate_name,
    unflatten,
)
from fedmoe_app.schemes.base import ExpertUpdates, RoundInfo, Scheme
from fedmoe_app.schemes.diagnostics import Diagnostics
from fedmoe_app.schemes.projection import PairRule
from fedmoe_app.schemes.sums import all_finite, weighted_sum
from fedmoe_app.wire.update import ClientUpdate


def round_info(server_round: int, updates: Sequence[ClientUpdate]) -> RoundInfo:
    """Describe a round to the scheme; ``updates`` must be in client order."""
    examples = torch.tensor([float(update.num_examples) for update in updates])  # [N]
    steps = torch.tensor([update.metrics.get("num-steps", 0.0) for update in updates])  # [N]
    return RoundInfo(server_round, examples, steps, tuple(update.routing for update in updates))


def fold(
    state: ModelState,
    updates: Sequence[ClientUpdate],
    scheme: Scheme,
    info: RoundInfo,
    diagnostics: Diagnostics | None = None,
    pairs: PairRule | None = None,
) -> ModelState:
    """Return the next global state; ``state`` stays as it is. See :func:`folded_tensors`."""
    folded = ModelState()
    for key, tensor in folded_tensors(state, updates, scheme, info, diagnostics, pairs):
        folded.insert(key, tensor)
    return folded


def folded_tensors(
    state: ModelState,
    updates: Sequence[ClientUpdate],
    scheme: Scheme,
    info: RoundInfo,
    diagnostics: Diagnostics | None = None,
    pairs: PairRule | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of the next global state, in the order of ``state.named()``.

    Args:
        state: global values, float32; stays as it is.
        updates: the round's valid updates in client order, at least one.
        scheme: the scheme's server half.
        info: see :func:`round_info`.
        diagnostics: takes what the scheme says of each expert; None leaves it uncomputed.
        pairs: when cosines between changes are exact; None is the default.

    Raises:
        FoldError: when a tensor is not finite; what was yielded before must then be dropped.
    """
    dense_weights = scheme.dense_weights(info)  # [N]
    dense = [update.changes.dense for update in updates]
    for name, value in state.dense.items():
        folded = value + weighted_sum(dense_weights, [change[name] for change in dense])
        yield name, _finite(folded, name)
    for layer, gate in sorted(state.gates.items()):
        changes = [update.changes.gates[layer] for update in updates]
        weights, scale = scheme.gate_weights(info, layer), scheme.gate_scale(info, layer)
        for name, tensor in _add(gate, changes, weights, scale, dense_weights).items():
            key = gate_name(layer, name)
            yield key, _finite(tensor, key)
    rule = pairs or PairRule()
    for expert, values in sorted(state.experts.items()):
        parts = _fold_expert(expert, values, updates, scheme, info, diagnostics, rule)
        for name, tensor in parts.items():
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


def _fold_expert(
    key: ExpertKey,
    values: Tensors,
    updates: Sequence[ClientUpdate],
    scheme: Scheme,
    info: RoundInfo,
    diagnostics: Diagnostics | None,
    pairs: PairRule,
) -> Tensors:
    """Combine one expert over the clients that trained it; without any it stays as it was."""
    members = tuple(i for i, update in enumerate(updates) if key in update.changes.experts)
    if not members:
        return values
    changes = tuple(updates[i].changes.experts[key] for i in members)
    of_expert = ExpertUpdates(*key, members, changes, values, info, pairs)
    change = scheme.combine_expert(of_expert)  # [P]
    if diagnostics is not None:
        diagnostics.add(scheme, of_expert, change)
    parts = unflatten(change, values)
    return {name: value + parts[name] for name, value in values.items()}
