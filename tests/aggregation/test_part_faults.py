"""A part of an own scheme that fails costs the round, and its reason names the part."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fedmoe_app import (
    Admit,
    Block,
    BlockUpdates,
    ClientUpdate,
    Mean,
    ModelShape,
    Now,
    Reply,
    Scaled,
    Scheme,
    Server,
    SharedUpdates,
    Step,
    Summed,
    Together,
    Weighted,
)
from fedmoe_app.aggregation.store import Spool
from fedmoe_app.aggregation.streaming import RunningSums, replies_of
from fedmoe_app.moe.state import Tensors
from fedmoe_app.schemes.faults import PartError
from tests.toy import assert_same, fold, toy_state, toy_update

ALL = [(layer, expert) for layer in range(2) for expert in range(3)]


def updates() -> list[ClientUpdate]:
    return [toy_update(0, 1, 2.0, ALL), toy_update(1, 3, 6.0, ALL)]


EMPTY = Server()


@dataclass(frozen=True)
class Built(Scheme):
    """A scheme of one half."""

    half: Server

    def server(self, model: ModelShape) -> Server:
        return self.half


def combining(found: Callable[[], Any]) -> Together:
    class Mine(Together):
        def combine(self, updates: BlockUpdates) -> Tensor:
            return found()  # type: ignore[no-any-return]

    return Mine()


class Shrinks(Together):
    def combine(self, updates: BlockUpdates) -> Tensor:
        for change in updates.changes:
            change["up"].mul_(0.5)
        return updates.weighted_sum(updates.by_examples)


class Recounts(Together):
    def combine(self, updates: BlockUpdates) -> Tensor:
        updates.info.routing[1].count.zero_()
        return updates.weighted_sum(updates.by_examples)


class Negates(Summed):
    def add(self, reply: Reply, block: Block) -> Mapping[str, Scaled | float]:
        change = reply.change(block) or {}
        return {name: Scaled(1.0, tensor.neg_()) for name, tensor in change.items()}

    def result(self, sums: Mapping[str, Any], block: Block) -> Tensors:
        return dict(sums)


class Doubles(Admit):
    def admit(self, shared: SharedUpdates) -> Tensor:
        for reply in shared.replies:
            reply.changes.experts[0, 0]["down"].mul_(2)
        return torch.ones(len(shared.replies))


class Overwrites(Together):
    def combine(self, updates: BlockUpdates) -> Tensor:
        return torch.cat([value.add_(1).reshape(-1) for value in updates.values.values()])


def weighing(found: Any) -> Weighted:
    class Mine(Weighted):
        def weights(self, updates: BlockUpdates) -> Tensor:
            return found  # type: ignore[no-any-return]

    return Mine()


def sharing(found: Any) -> Mean:
    class Mine(Mean):
        def weight(self, reply: Reply, block: Block) -> float:
            return found if reply.client else 1.0  # type: ignore[no-any-return]

    return Mine()


def stepping(do: Callable[[Now], Any]) -> Step:
    class Mine(Step):
        def step(self, now: Now, state: Mapping[str, Tensor]) -> Any:
            return do(now)

    return Mine()


def no_key() -> Tensor:
    return {}["here"]  # type: ignore[no-any-return]


def in_place(what: str) -> Callable[[Now], Any]:
    def do(now: Now) -> Any:
        for tensor in getattr(now, what).values():
            tensor.add_(1.0)
        return dict(now.change), {}

    return do


FAULTS: dict[str, tuple[Server, str]] = {
    "combine raises": (
        Server(experts=combining(no_key)),
        r"Mine\.combine: raised KeyError: 'here' \(test_part_faults\.py, line \d+\)",
    ),
    "combine is too short": (
        Server(experts=combining(lambda: torch.zeros(2))),
        r"Mine\.combine: returned a tensor of shape \[2\], torch\.float32: .* \[3\], .*\(0, 0",
    ),
    "combine gives nothing": (
        Server(gates=combining(lambda: None)),
        r"Mine\.combine: returned None: .*, the values of gate 0",
    ),
    "weights of three": (
        Server(experts=weighing(torch.ones(3))),
        r"Mine\.weights: returned a tensor of shape \[3\], torch\.float32 for 2 members",
    ),
    "weights are a list": (
        Server(dense=weighing([0.5, 0.5])),
        r"Mine\.weights: returned a list for 2 members",
    ),
    "step gives nothing": (
        Server(steps=(stepping(lambda now: None),)),
        r"Mine\.step: returned None: must be \(change, state\)",
    ),
    "step gives a list": (
        Server(steps=(stepping(lambda now: ([], {})),)),
        r"Mine\.step: its change is a list: must be a dict",
    ),
    "step raises": (
        Server(steps=(stepping(lambda now: no_key()),)),
        r"Mine\.step: raised KeyError: 'here'",
    ),
    "step writes to values": (
        Server(steps=(stepping(in_place("values")),)),
        r"Mine\.step: wrote in place to now\.values \(head\.weight, ",
    ),
    "step writes to change": (
        Server(steps=(stepping(in_place("change")),)),
        r"Mine\.step: wrote in place to now\.change \(head\.weight, ",
    ),
    "rule writes to values": (
        Server(experts=Overwrites()),
        r"Overwrites\.combine: wrote in place to updates\.values \(up, down\)",
    ),
    "rule writes to changes": (
        Server(experts=Shrinks()),
        r"Shrinks\.combine: wrote in place to updates\.changes \(client 0: up, client 1: up\)",
    ),
    "rule writes to the histogram": (
        Server(experts=Recounts()),
        r"Recounts\.combine: wrote in place to updates\.info \(routing\[1\]\.count\)",
    ),
    "sum writes to a reply": (
        Server(dense=Negates()),
        r"Negates\.add: wrote in place to reply\.changes \(head\.weight\)",
    ),
    "admit writes to experts": (
        Server(admit=Doubles()),
        r"Doubles\.admit: wrote in place to shared\.replies \(client 0: down, client 1: down\)",
    ),
    "weight below 0": (
        Server(experts=sharing(-0.5)),
        r"Mine\.weight: returned -0\.5 for client 1, expert \(0, 0\): must be a finite number",
    ),
    "weight is nan": (Server(dense=sharing(float("nan"))), r"Mine\.weight: returned nan"),
    "weight is inf": (Server(dense=sharing(torch.tensor(torch.inf))), r"weight: returned inf"),
    "weight is text": (Server(experts=sharing("much")), r"Mine\.weight: returned a str"),
}


@pytest.mark.parametrize(("half", "reason"), FAULTS.values(), ids=FAULTS)
def test_a_fault_names_the_part_and_leaves_the_state(half: Server, reason: str) -> None:
    state = toy_state()
    with pytest.raises(PartError, match=reason):
        fold(state, updates(), Built(half))
    assert_same(state, toy_state())


def test_a_write_to_what_lies_on_the_disk_is_refused_and_gone_with_the_round() -> None:
    spool = Spool(limit=0)
    for _ in range(2):
        stored = [replace(each, changes=spool.store(each.changes)) for each in updates()]
        expected = fold(toy_state(), updates(), Built(EMPTY))
        assert_same(fold(toy_state(), stored, Built(EMPTY)), expected)
        with pytest.raises(PartError, match=r"Shrinks\.combine: wrote in place"):
            fold(toy_state(), stored, Built(Server(experts=Shrinks())))
        spool.clear()


def test_a_fault_while_replies_come_waits_for_the_round() -> None:
    half = Server(dense=sharing(-1.0))
    sums = RunningSums(half, experts=True, values=toy_state())
    for reply in replies_of(updates()):
        sums.add(reply)  # as a reply arrives: the others are still to be taken
    with pytest.raises(PartError, match=r"Mine\.weight: returned -1\.0 for client 1, dense"):
        fold(toy_state(), updates(), Built(half), sums=sums)


def test_an_error_of_the_engine_is_raised_as_it_is() -> None:
    with pytest.raises(AttributeError):
        fold(toy_state(), [None], Built(EMPTY))  # type: ignore[list-item]


def test_a_step_may_read_what_it_likes() -> None:
    step = stepping(lambda now: ({k: now.values[k] + c for k, c in now.change.items()}, {}))
    # 1 + (1 + (2 + 18)/4) = 7
    found = fold(toy_state(), updates(), Built(Server(steps=(step,))))
    assert found.dense["head.weight"].tolist() == [7.0, 7.0]
