"""Aggregation: the changes of a round into the next global state, as the parts of a scheme say.

All sums run in float32 in client order, so that a run is reproducible bit for bit and the order in
which replies arrive changes nothing. One block (a dense tensor, a gate, an expert) is combined at a
time: changes that wait on the disk are read when their turn comes; those that were summed as they
came (:mod:`fedmoe_app.aggregation.streaming`) are there already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedmoe_app.aggregation.diagnostics import Diagnostics
from fedmoe_app.aggregation.streaming import RunningSums, replies_of
from fedmoe_app.moe.state import ModelState, Tensors, flatten, unflatten
from fedmoe_app.schemes.base import Plan, step_prefix
from fedmoe_app.schemes.parts import Mean, Signal, Step, Summed, Telling, Together
from fedmoe_app.schemes.sums import PairRule, all_finite
from fedmoe_app.schemes.views import EXPERT, Block, BlockUpdates, Now, RoundInfo, blocks_of
from fedmoe_app.wire.update import ClientUpdate


class FoldError(ValueError):
    """A result that must not become the global state; the message is the reason."""


@dataclass(frozen=True)
class Aggregated:
    """What came of a round.

    Attributes:
        tensors: the next global state in the order of ``state.named()``, made one by one as they
            are asked for: once. A tensor that is not finite raises :class:`FoldError`; what came
            before it must then be dropped.
        state: of the server's steps, for the next round.
        told: what all clients are told with the next round, by signal.
    """

    tensors: Iterator[tuple[str, Tensor]]
    state: Tensors = field(default_factory=dict)
    told: dict[Signal, Tensor | Tensors] = field(default_factory=dict)


def aggregate(
    values: ModelState,
    updates: Sequence[ClientUpdate],
    plan: Plan,
    info: RoundInfo,
    state: Mapping[str, Tensor] | None = None,
    *,
    sums: RunningSums | None = None,
    pairs: PairRule | None = None,
    diagnostics: Diagnostics | None = None,
) -> Aggregated:
    """Combine the changes of a round, block by block, and let the server's steps rewrite them.

    Args:
        values: global values θ, float32; stay as they are.
        updates: the round's valid updates in client order, at least one.
        plan: the scheme's parts.
        info: of the round, see :func:`fedmoe_app.aggregation.streaming.round_info`.
        state: of the server's steps; None before the first round.
        sums: what was summed at once, of the first of ``updates``; it is used up.
        pairs: when cosines between changes are exact; None is the default.
        diagnostics: takes what the probes say of each expert; None leaves it uncomputed.

    Raises:
        FoldError: a step gave a state that is not finite, or lost a part of it.
    """
    server, sums = plan.server, sums or RunningSums(plan.server, experts=False)
    replies = replies_of(updates)
    late = [reply for reply in replies if not sums.has_taken(reply.client)]

    def change_of(block: Block, tensors: Mapping[str, Tensor]) -> Tensors | None:
        """Combine one block over the clients that trained it; None if nobody did."""
        rule = server.rule(block)
        waited = late if sums.streams(block.kind) else replies
        members = tuple(i for i, reply in enumerate(waited) if reply.change(block) is not None)
        # Only sums can have begun without the others; they are not looked at one by one.
        of_block = BlockUpdates(block, members, waited, tensors, info, pairs or PairRule())
        if isinstance(rule, Summed):
            total = sums.pop(block)
            if not members and not total.num_members:
                return None
            total.add([rule.add(reply, block) for reply in waited])
            change = rule.result(total.named(), block)
        elif isinstance(rule, Together) and members:
            change = unflatten(rule.combine(of_block), tensors)
        else:
            return None
        if block.kind == EXPERT and diagnostics is not None:
            diagnostics.add(server, of_block, flatten(change, tensors))
        return change

    if not plan.has_steps:
        tensors = _added(values, lambda block, old: change_of(block, old), server.rule)
        now = Now(dict(values.named()), {}, info)
        return Aggregated(tensors, {}, _told(plan, now, {}))

    change: Tensors = {}  # a step sees every tensor: 0 where nobody trained
    for block in blocks_of(values):
        old = _tensors(block, values)
        found = change_of(block, old)
        for name, value in old.items():
            change[block.name(name)] = torch.zeros_like(value) if found is None else found[name]
    now = Now(dict(values.named()), change, info)
    next_state: Tensors = {}
    begun = plan.initial_state(now.values) if state is None else state
    for position, step in enumerate(server.steps):
        if isinstance(step, Step):
            prefix = step_prefix(position)
            own = {k.removeprefix(prefix): t for k, t in begun.items() if k.startswith(prefix)}
            change, new = step.step(now, own)
            _check_state(type(step).__name__, own, new)
            now = Now(now.values, change, info)
            next_state |= {f"{prefix}{name}": tensor for name, tensor in new.items()}
    moved = now.change
    tensors = _added(
        values, lambda block, old: {name: moved[block.name(name)] for name in old}, lambda _: None
    )
    return Aggregated(tensors, next_state, _told(plan, now, next_state))


def _added(
    values: ModelState,
    change_of: Callable[[Block, Mapping[str, Tensor]], Mapping[str, Tensor] | None],
    rule: Callable[[Block], object],
) -> Iterator[tuple[str, Tensor]]:
    """Yield value + change of every tensor; a block without a change stays as it is."""
    for block in blocks_of(values):
        old = _tensors(block, values)
        change = change_of(block, old)
        # The sums of a mean are nobody else's, and lie where the next state is sent from.
        in_place = isinstance(rule(block), Mean)
        for name, value in old.items():
            new = value
            if change is not None:
                new = change[name].add_(value) if in_place else value + change[name]
            yield block.name(name), _finite(new, block.name(name))


def _tensors(block: Block, values: ModelState) -> Mapping[str, Tensor]:
    found = block.of(values)
    assert found is not None
    return found


def _finite(tensor: Tensor, key: str) -> Tensor:
    """Return a tensor without NaN and infinity. Dividing by zero is their usual cause."""
    if not all_finite(tensor):
        bad = int((~torch.isfinite(tensor)).sum())
        raise FoldError(f"folding gave {bad} NaN or infinite values of {tensor.numel()} in {key}")
    return tensor


def _check_state(part: str, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> None:
    """Refuse a state whose names or shapes changed: something would be lost in the next round."""
    had = {name: tuple(tensor.shape) for name, tensor in before.items()}
    has = {name: tuple(tensor.shape) for name, tensor in after.items()}
    if had != has:
        names = sorted(name for name in {*had, *has} if had.get(name) != has.get(name))
        raise FoldError(f"{part}: its state has other tensors than before ({', '.join(names[:5])})")
    for name, tensor in after.items():
        if not all_finite(tensor):
            raise FoldError(f"{part}: its state holds NaN or infinite values in {name}")


def _told(plan: Plan, now: Now, state: Mapping[str, Tensor]) -> dict[Signal, Tensor | Tensors]:
    told: dict[Signal, Tensor | Tensors] = {}
    for position, step in enumerate(plan.server.steps):
        if isinstance(step, Telling):
            prefix = step_prefix(position)
            own = {k.removeprefix(prefix): t for k, t in state.items() if k.startswith(prefix)}
            told |= step.tell(now, own)
    return told
