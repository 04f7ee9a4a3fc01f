"""What leaves a client, after the last word of a scheme's parts on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedmoe_app.moe.state import ModelState, Tensors
from fedmoe_app.schemes.faults import PartError, call, named
from fedmoe_app.schemes.parts import Outgoing
from fedmoe_app.schemes.unwritten import Unwritten


def sent_by(
    parts: Sequence[Outgoing], changes: ModelState, statistics: Mapping[str, Tensor], seed: int
) -> tuple[ModelState, Tensors]:
    """Return the changes and statistics that leave; the same objects where there is no part.

    Args:
        parts: ``Client.send``, in order.
        changes: local − received.
        statistics: by ``Statistic/name``.
        seed: of the client and the round.

    Raises:
        PartError: a part raised, returned other names or shapes, or NaN, or wrote to what it was
            given: what the client keeps for itself is as it was trained.
    """
    if not parts:
        return changes, dict(statistics)
    before = dict(changes.named())
    sent: Mapping[str, Tensor] = {**before, **statistics}
    for part in parts:
        unwritten = Unwritten("sent", tensors=sent)
        found = named(part, "send", "", call(part, "send", sent, seed))
        unwritten.check(part, "send")
        _check(part, sent, found)
        sent = {name: found[name].detach().float() for name in sent}  # in the order given
    left = ModelState()
    for name in before:
        left.insert(name, sent[name])
    return left, {name: sent[name] for name in statistics}


def _check(part: Outgoing, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> None:
    had = {name: tuple(tensor.shape) for name, tensor in before.items()}
    has = {name: tuple(tensor.shape) for name, tensor in after.items()}
    if had != has:
        names = sorted(name for name in {*had, *has} if had.get(name) != has.get(name))
        raise PartError.of(
            part, "send", f"returned other tensors or shapes than given ({', '.join(names[:5])})"
        )
    for name, tensor in after.items():
        if not bool(torch.isfinite(tensor).all()) and bool(torch.isfinite(before[name]).all()):
            raise PartError.of(part, "send", f"returned NaN or infinity in {name}")
