"""Aggregation: the changes of a round into the next global state, as the parts of a scheme say.

All sums run in float32 in client order, so that a run is reproducible bit for bit and the order in
which replies arrive changes nothing. One block (a dense tensor, a gate, an expert) is combined at a
time: changes that wait on the disk are read when their turn comes; those that were summed as they
came (:mod:`fedmoe_app.aggregation.streaming`) are there already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedmoe_app.aggregation.admitted import admitted
from fedmoe_app.aggregation.diagnostics import Diagnostics
from fedmoe_app.aggregation.streaming import RunningSums, added_by, replies_of
from fedmoe_app.moe.state import ModelState, Tensors, flatten, unflatten
from fedmoe_app.schemes.base import Plan, reported_prefix, step_prefix
from fedmoe_app.schemes.faults import PartError, call, named, shown, vector
from fedmoe_app.schemes.parts import Mean, Server, Signal, Step, Summed, Telling, Together
from fedmoe_app.schemes.sums import PairRule, all_finite
from fedmoe_app.schemes.unwritten import Changes, GuardedValues, Unwritten, tensors_of
from fedmoe_app.schemes.views import (
    EXPERT,
    GATE,
    Block,
    BlockUpdates,
    Now,
    Reply,
    RoundInfo,
    SharedUpdates,
    blocks_of,
)

if TYPE_CHECKING:
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
    root: ModelState | None = None,
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
        root: changes of the server's own training, where a part reads them.

    Raises:
        FoldError: a step gave a state that is not finite, or lost a part of it.
        PartError: a part raised, or returned what cannot be used; also while the tensors are made.
    """
    replies: Sequence[Reply] = replies_of(updates)
    if plan.server.admit is not None:
        blocks = _shared_blocks(plan, values)
        replies, info = admitted(
            plan.server.admit, SharedUpdates(blocks, replies, info, root), diagnostics
        )
    one = _Round(
        values,
        replies,
        plan.server,
        info,
        sums or RunningSums(plan.server, experts=False),
        pairs or PairRule(),
        diagnostics,
    )
    before = dict(values.named())
    if not plan.has_steps:  # one block at a time: nothing but the next state is whole in memory
        tensors = _added(values, one.change_of, plan.server)
        return Aggregated(tensors, {}, _told(plan, Now(GuardedValues(before), {}, info), {}))
    now = Now(GuardedValues(before), one.all_changes(), info)
    if state is None:  # a state may be the values themselves, and is written to by some steps
        state = plan.initial_state(GuardedValues(before))
    now, next_state = _stepped(plan, now, state)
    tensors = ((key, _finite(value + now.change[key], key)) for key, value in before.items())
    return Aggregated(tensors, next_state, _told(plan, now, next_state))


def _shared_blocks(plan: Plan, values: ModelState) -> list[Block]:
    """Return the blocks that all clients train: no experts, and no gates that they keep."""
    own = {EXPERT} if plan.client.start_gates is None else {EXPERT, GATE}
    return [block for block in blocks_of(values) if block.kind not in own]


@dataclass(frozen=True)
class _Round:
    """The changes of a round; see :func:`aggregate`."""

    values: ModelState
    replies: Sequence[Reply]
    server: Server
    info: RoundInfo
    sums: RunningSums
    pairs: PairRule
    diagnostics: Diagnostics | None

    def change_of(self, block: Block) -> Tensors | None:
        """Combine one block over the clients that trained it; None if nobody did."""
        rule, values = self.server.rule(block), _tensors(block, self.values)
        waited = self._waited(block)
        members = tuple(i for i, reply in enumerate(waited) if reply.change(block) is not None)
        shown_values = GuardedValues(values)
        updates = BlockUpdates(block, members, waited, shown_values, self.info, self.pairs)
        if isinstance(rule, Summed):
            total = self.sums.pop(block)  # of the clients that did not wait
            if not members and not total.num_members:
                return None
            total.add([added_by(rule, reply, block) for reply in waited])
            change = _result(rule, total.named(), block, values)
        elif isinstance(rule, Together) and members:
            size = sum(value.numel() for value in values.values())
            found = self._combined(rule, updates)
            whole = vector(rule, "combine", found, size, f"the values of {block.kind} {block.key}")
            change = unflatten(whole, values)
        else:
            return None
        if block.kind == EXPERT and self.diagnostics is not None:
            self.diagnostics.add(self.server, updates, flatten(change, values))
        return change

    def _combined(self, rule: Together, updates: BlockUpdates) -> object:
        """Return what a rule makes of a block, if it wrote to nothing."""
        members = [updates.replies[i] for i in updates.members]
        unwritten = Unwritten(
            "updates",
            values=updates.values,
            changes=Changes(members, updates.block),
            info=self._info_tensors,
        )
        found = call(rule, "combine", updates)
        unwritten.check(rule, "combine")
        return found

    @cached_property
    def _info_tensors(self) -> Mapping[str, Tensor]:
        return tensors_of(self.info)

    def all_changes(self) -> Tensors:
        """Return the changes of all blocks, 0 where nobody trained: a step sees every tensor."""
        changes: Tensors = {}
        for block in blocks_of(self.values):
            change = self.change_of(block)
            for name, value in _tensors(block, self.values).items():
                changes[block.name(name)] = (
                    torch.zeros_like(value) if change is None else change[name]
                )
        return changes

    def _waited(self, block: Block) -> Sequence[Reply]:
        """Return the replies whose changes of a block are not in the sums already."""
        if not self.sums.streams(block.kind):
            return self.replies
        return [reply for reply in self.replies if not self.sums.has_taken(reply.client)]


def _stepped(plan: Plan, now: Now, state: Mapping[str, Tensor]) -> tuple[Now, Tensors]:
    """Let the server's steps rewrite the change, in their order; return it and their state."""
    next_state: Tensors = {}
    for position, step in enumerate(plan.server.steps):
        if isinstance(step, Step):
            own = _of_step(position, state)
            change, new = stepped(step, now, own)
            name = type(step).__name__
            _check_same(name, "change", now.change, change)
            _check_same(name, "state", own, new)
            now = replace(now, change=change)
            next_state |= {f"{step_prefix(position)}{key}": tensor for key, tensor in new.items()}
    return now, next_state


def reported(
    values: Mapping[str, Tensor],
    steps: Sequence[Step],
    info: RoundInfo,
    state: Mapping[str, Tensor],
) -> tuple[Tensors, Tensors]:
    """Make of the global model the one that is evaluated and saved.

    Args:
        values: of the global model, by full name; stay as they are.
        steps: ``Server.reported``.
        info: of the round.
        state: theirs, by names that begin with :func:`reported_prefix`; empty in the first round.

    Returns:
        the values by full name, and the state for the next round.

    Raises:
        FoldError: a step gave values or a state that are not finite, or lost a part of it.
        PartError: a step raised, or returned what cannot be used.
    """
    change, next_state = dict[str, Tensor](), dict[str, Tensor]()
    for position, step in enumerate(steps):
        prefix = reported_prefix(position)
        own = {k.removeprefix(prefix): t for k, t in state.items() if k.startswith(prefix)}
        own = own or dict(named(step, "init", "", call(step, "init", GuardedValues(values))))
        change, new = stepped(step, Now(GuardedValues(values), change, info), own)
        name = type(step).__name__
        _check_same(name, "state", own, new)
        among = {key: value for key, value in values.items() if key in change}
        _check_same(name, "change", among, change)
        next_state |= {f"{prefix}{key}": tensor for key, tensor in new.items()}
    found = {k: v + change[k] if k in change else v for k, v in values.items()}
    return {key: _finite(value, key) for key, value in found.items()}, next_state


def stepped(step: Step, now: Now, state: Mapping[str, Tensor]) -> tuple[Tensors, Tensors]:
    """Call a step; return its change and state.

    Raises:
        PartError: it raised, returned something else, or wrote to what it was given to read.
    """
    unwritten = Unwritten("now", values=now.values, change=now.change, info=tensors_of(now.info))
    found = call(step, "step", now, state)
    unwritten.check(step, "step")
    if not isinstance(found, tuple) or len(found) != 2:
        raise PartError.of(step, "step", f"returned {shown(found)}: must be (change, state)")
    change, new = (
        dict(named(step, "step", f"its {what}", given))
        for what, given in zip(("change", "state"), found, strict=True)
    )
    return change, new


def _result(
    rule: Summed, sums: Mapping[str, object], block: Block, values: Mapping[str, Tensor]
) -> Tensors:
    """Return a rule's change of a block, in the shapes of its values."""
    change = dict(named(rule, "result", "", call(rule, "result", sums, block)))
    for name, value in values.items():
        if name not in change or change[name].shape != value.shape:
            raise PartError.of(
                rule,
                "result",
                f"returned {shown(change.get(name))} for {block.name(name)}: must be a tensor of "
                f"shape {list(value.shape)}",
            )
    return change


def _of_step(position: int, state: Mapping[str, Tensor]) -> Tensors:
    prefix = step_prefix(position)
    return {k.removeprefix(prefix): t for k, t in state.items() if k.startswith(prefix)}


def _added(
    values: ModelState, change_of: Callable[[Block], Tensors | None], server: Server
) -> Iterator[tuple[str, Tensor]]:
    """Yield value + change of every tensor; a block without a change stays as it is."""
    for block in blocks_of(values):
        change = change_of(block)
        # The sums of a mean are nobody else's, and lie where the next state is sent from.
        in_place = isinstance(server.rule(block), Mean)
        for name, value in _tensors(block, values).items():
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


def _check_same(
    part: str, what: str, before: Mapping[str, Tensor], after: Mapping[str, Tensor]
) -> None:
    """Refuse other names or shapes than before, and NaN: something would be lost."""
    had = {name: tuple(tensor.shape) for name, tensor in before.items()}
    has = {name: tuple(tensor.shape) for name, tensor in after.items()}
    if had != has:
        names = sorted(name for name in {*had, *has} if had.get(name) != has.get(name))
        raise FoldError(
            f"{part}: its {what} has other tensors or shapes than before ({', '.join(names[:5])})"
        )
    for name, tensor in after.items():
        if not all_finite(tensor):
            raise FoldError(f"{part}: its {what} holds NaN or infinite values in {name}")


def _told(plan: Plan, now: Now, state: Mapping[str, Tensor]) -> dict[Signal, Tensor | Tensors]:
    told: dict[Signal, Tensor | Tensors] = {}
    for position, step in enumerate(plan.server.steps):
        if isinstance(step, Telling):
            told |= told_by(step, now, _of_step(position, state))
    return told


def told_by(part: Telling, now: Now, state: Mapping[str, Tensor]) -> dict[Signal, Tensor | Tensors]:
    """Call a part that tells something.

    Raises:
        PartError: it raised, returned something else, or wrote to what it was given to read.
    """
    unwritten = Unwritten("now", values=now.values, change=now.change, info=tensors_of(now.info))
    found = call(part, "tell", now, state)
    unwritten.check(part, "tell")
    if not isinstance(found, dict):
        raise PartError.of(part, "tell", f"returned {shown(found)}: must be a dict")
    return found
