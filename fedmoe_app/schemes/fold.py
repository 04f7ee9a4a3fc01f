"""Folding: client updates into the next global state, as the scheme weighs them.

All sums run in float32 in client order, so that a run is reproducible bit for bit and the order in
which replies arrive changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedmoe_app.moe.state import ExpertKey, ModelState, Tensors, flatten, unflatten
from fedmoe_app.schemes.base import ExpertUpdates, RoundInfo, Scheme
from fedmoe_app.schemes.diagnostics import Diagnostics
from fedmoe_app.schemes.sums import weighted_sum
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
) -> ModelState:
    """Return the next global state; ``state`` stays as it is.

    Args:
        state: global values, float32.
        updates: the round's valid updates in client order, at least one.
        scheme: the scheme's server half.
        info: see :func:`round_info`.
        diagnostics: takes what the scheme says of each expert; None leaves it uncomputed.
    """
    dense_weights = scheme.dense_weights(info)  # [N]
    return ModelState(
        dense=_add(state.dense, [update.changes.dense for update in updates], dense_weights),
        gates={
            layer: _add(
                gate,
                [update.changes.gates[layer] for update in updates],
                scheme.gate_weights(info, layer),
                scheme.gate_scale(info, layer),
                without_rows=dense_weights,
            )
            for layer, gate in state.gates.items()
        },
        experts={
            key: _fold_expert(key, values, updates, scheme, info, diagnostics)
            for key, values in state.experts.items()
        },
    )


class FoldError(ValueError):
    """A fold whose result must not become the global state; the message is the reason."""


def check_finite(state: ModelState) -> None:
    """Refuse a folded state with NaN or infinite values.

    Raises:
        FoldError: naming the first such tensor. A scheme that divides by zero is the usual cause.
    """
    for key, tensor in state.named():
        bad = int((~torch.isfinite(tensor)).sum())
        if bad:
            raise FoldError(
                f"folding gave {bad} NaN or infinite values of {tensor.numel()} in {key}"
            )


def _add(
    values: Tensors,
    changes: Sequence[Tensors],
    weights: Tensor,
    scale: float = 1.0,
    without_rows: Tensor | None = None,
) -> Tensors:
    """scale·values + Σ_i weights[i]·changes[i], tensor by tensor.

    Weights ``[N, E]`` are for rows: a gate's tensor without a row an expert takes ``without_rows``.
    """
    result = {}
    for name, value in values.items():
        fits = weights.dim() == 1 or (value.dim() > 0 and len(value) == weights.shape[1])
        chosen = weights if fits or without_rows is None else without_rows
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
) -> Tensors:
    """Combine one expert over the clients that trained it; without any it stays as it was."""
    members = tuple(i for i, update in enumerate(updates) if key in update.changes.experts)
    if not members:
        return values
    deltas = torch.stack(  # [M, P]
        [flatten(updates[i].changes.experts[key], values) for i in members]
    )
    of_expert = ExpertUpdates(*key, members, deltas, info)
    change = scheme.combine_expert(of_expert)  # [P]
    if diagnostics is not None:
        diagnostics.add(scheme, of_expert, change)
    parts = unflatten(change, values)
    return {name: value + parts[name] for name, value in values.items()}
