"""Who counts in a round, and how much, where a scheme decides that before any rule (``Admit``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

from torch import Tensor

from fedmoe_app.aggregation.diagnostics import Diagnostics
from fedmoe_app.aggregation.times import Times
from fedmoe_app.moe.state import ModelState, Tensors
from fedmoe_app.schemes.faults import PartError, call, vector
from fedmoe_app.schemes.parts import Admit
from fedmoe_app.schemes.unwritten import Changes, Unwritten, tensors_of
from fedmoe_app.schemes.views import Reply, RoundInfo, SharedUpdates


def admitted(
    admit: Admit, shared: SharedUpdates, diagnostics: Diagnostics | None = None
) -> tuple[Sequence[Reply], RoundInfo]:
    """Let a part decide how much each client counts; one that does not has sent nothing.

    Args:
        admit: the part.
        shared: what it decides on.
        diagnostics: takes the factors.

    Raises:
        PartError: it raised, wrote to what it was given, or returned what cannot be used.
    """
    replies, info = shared.replies, shared.info
    unwritten = Unwritten("shared", replies=Changes(replies), info=tensors_of(info))
    factors = _factors(admit, "admit", call(admit, "admit", shared), len(replies))
    scale = call(admit, "scale", shared)
    unwritten.check(admit, "admit")
    if diagnostics is not None:
        diagnostics.note("admitted", factors)
    scales = [1.0] * len(replies)
    if scale is not None:
        scales = _factors(admit, "scale", scale, len(replies)).tolist()
    counted = info.num_examples * factors  # [N]
    heard = [
        replace(
            reply,
            num_examples=float(examples),
            changes=_scaled(reply.changes, own) if factor else ModelState(),
            statistics=reply.statistics if factor else {},
        )
        for reply, examples, factor, own in zip(replies, counted, factors, scales, strict=True)
    ]
    statistics = tuple(reply.statistics for reply in heard)
    return heard, replace(info, num_examples=counted, statistics=statistics)


def _factors(admit: Admit, method: str, found: object, count: int) -> Tensor:
    factors = vector(admit, method, found, count, "the clients").float()
    if bool((factors < 0).any()) or not bool((factors > 0).any()):
        raise PartError.of(
            admit, method, f"returned {factors.tolist()}: must be 0 or more, and not 0 for all"
        )
    return factors


def _scaled(changes: ModelState, factor: float) -> ModelState:
    """Return changes times a factor, multiplied as they are read; the same ones for 1."""
    if factor == 1:
        return changes

    def times(tensors: Mapping[str, Tensor], by: float) -> Tensors:
        return cast(Tensors, Times(tensors, by)) if by != 1 else cast(Tensors, tensors)

    return ModelState(
        times(changes.dense, factor),
        {layer: times(gate, factor) for layer, gate in changes.gates.items()},
        {key: times(expert, min(1.0, factor)) for key, expert in changes.experts.items()},
    )
