"""Parts on one dense tensor ``w``: what a test needs to work a rule or a step out by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fedmoe_app import (
    Block,
    BlockUpdates,
    ModelState,
    Now,
    PairRule,
    Reply,
    RoundInfo,
    Step,
    Summed,
    Together,
    Trained,
)
from fedmoe_app.aggregation.streaming import BlockSums
from tests.toy import toy_stats

W = Block("dense", "w")


def reply(client: int, change: Sequence[float], **others: Any) -> Reply:
    """A reply that changes ``w``; one example and one step unless said otherwise."""
    changes = ModelState(dense={"w": torch.tensor(change)})
    return replace(Reply(client, 1.0, 1.0, toy_stats([]), changes), **others)


def result_of(rule: Summed, replies: Sequence[Reply]) -> list[float]:
    """What a rule of sums makes of replies."""
    sums = BlockSums()
    sums.add([rule.add(reply, W) for reply in replies])
    return rule.result(sums.named(), W)["w"].tolist()  # type: ignore[no-any-return]


def combined(rule: Together, *changes: Sequence[float]) -> Tensor:
    """What a rule makes of the changes of so many members."""
    replies = [reply(i, change) for i, change in enumerate(changes)]
    members, values = tuple(range(len(changes))), {"w": torch.zeros(len(changes[0]))}
    return rule.combine(BlockUpdates(W, members, replies, values, info(len(changes)), PairRule()))


def info(clients: int, **statistics: Sequence[float]) -> RoundInfo:
    """A round of so many clients, each with a number of these statistics."""
    ones = torch.ones(clients)
    sent = tuple(
        {name.replace("__", "/"): torch.tensor([values[i]]) for name, values in statistics.items()}
        for i in range(clients)
    )
    return RoundInfo(1, ones, ones, (toy_stats([]),) * clients, sent)


def walked(step: Step, changes: Sequence[float], clients: int = 1) -> list[float]:
    """The change of one value that a step makes of each round's, with its state in between."""
    values = {"w": torch.zeros(1)}
    state: Mapping[str, Tensor] = step.init(values)
    found = []
    for change in changes:
        new, state = step.step(Now(values, {"w": torch.tensor([change])}, info(clients)), state)
        found.append(float(new["w"]))
    return found


def trained(change: float, *, gradient: float | None = None, **others: Any) -> Trained:
    """A client's round that changed ``w``."""
    return Trained(
        ModelState(dense={"w": torch.zeros(1)}),
        ModelState(dense={"w": torch.tensor([change])}),
        gradient={} if gradient is None else {"w": torch.tensor([gradient])},
        **others,
    )
