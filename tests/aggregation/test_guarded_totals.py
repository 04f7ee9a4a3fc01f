"""What a client has sent in all of numbers that add up: factors by hand, rounds, and sketches."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedmoe_app import ClientUpdate
from fedmoe_app.aggregation.guard import Guard, Guarded, Strength
from fedmoe_app.aggregation.totals import PLACES, Totals, most, sketched
from fedmoe_app.wire.spec import NumberSpec
from tests.toy import toy_update

HEAD = "ControlVariate/head.weight"
GATE = "ControlVariate/layers.0.gate.weight"
FIRST = "ControlVariate/layers.0.experts.0.up"
SECOND = "ControlVariate/layers.0.experts.1.up"
NUMBERS = {
    name: NumberSpec((1,), -1e4, 1e4, optional=True, adds_up=True)
    for name in (HEAD, GATE, FIRST, SECOND)
}
TWICE = Strength(slack=2, share=2, total=2)
NAMES = {"head": HEAD, "gate": GATE, "first": FIRST, "second": SECOND}


def sent(client: int, **numbers: float) -> ClientUpdate:
    """An update with some control variates of one value, whose sketches are exact."""
    own = {NAMES[name]: torch.tensor([value]) for name, value in numbers.items()}
    return replace(toy_update(client, 10, 1, []), statistics=own)


def close(guard: Guard, updates: Sequence[ClientUpdate]) -> tuple[list[ClientUpdate], Guarded]:
    sizes = {update.client: guard.size_of(update, NUMBERS) for update in updates}
    found, guarded = guard.close([*map(guard.counted, updates)], sizes, ())
    guard.learn(sizes)
    return found, guarded


def taken(update: ClientUpdate) -> Mapping[str, float]:
    return {name: float(tensor) for name, tensor in update.statistics.items()}


def honest(value: float = 1.0, number: int = 3) -> list[ClientUpdate]:
    return [sent(client, head=value) for client in range(number)]


# -- factors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "now", "bound", "factor"),
    [
        ([3.0, 0.0], [0.0, 4.0], 5.0, 1.0),
        ([3.0, 0.0], [0.0, 4.0], 4.0, math.sqrt(7) / 4),  # 9 + 16·λ² = 16
        (None, [0.0, 4.0], 1.0, 0.25),
        ([6.0, 0.0], [1.0, 0.0], 4.0, 0.0),  # beyond already, and further away
        ([6.0, 0.0], [-1.0, 0.0], 4.0, 1.0),  # on the way back
        ([6.0, 0.0], [-20.0, 0.0], 4.0, 0.5),  # through the ball to its other side
        ([6.0, 0.0], [0.0, 1.0], 4.0, 0.0),
        ([1.0, 0.0], [0.0, 0.0], 0.5, 1.0),  # nothing was sent
        ([1.0, 0.0], [100.0, 0.0], None, 1.0),
    ],
)
def test_a_step_ends_at_the_bound(
    before: list[float] | None, now: list[float], bound: float | None, factor: float
) -> None:
    old = None if before is None else torch.tensor(before)
    assert most(old, torch.tensor(now), bound) == pytest.approx(factor)


@given(
    st.lists(st.floats(-10, 10, width=32), min_size=4, max_size=4),
    st.lists(st.floats(-10, 10, width=32), min_size=4, max_size=4),
    st.floats(0.1, 10),
)
def test_from_within_no_step_leads_out(old: list[float], new: list[float], bound: float) -> None:
    before, now = torch.tensor(old), torch.tensor(new)
    before = before * min(1.0, bound / max(float(before.norm()), 1e-9))
    factor = most(before, now, bound)
    assert 0 <= factor <= 1
    left = before.double() + factor * now.double()
    assert float(left.norm()) <= bound * (1 + 1e-5)


# -- rounds ---------------------------------------------------------------------------------------


def test_a_long_one_is_two_medians_at_most() -> None:
    found, guarded = close(Guard(TWICE), [*honest(), sent(3, head=-1e4)])
    assert taken(found[3]) == {HEAD: pytest.approx(-2)}
    assert guarded.masses == {0: 1, 1: 1, 2: 1, 3: pytest.approx(2e-4)}


def test_small_steps_the_same_way_do_not_add_up() -> None:
    """The others stay at 1; who goes on by 1 each round is at 2 after two, and there it stays."""
    guard = Guard(TWICE)
    steps = []
    for later in (1.0, 0.0, 0.0, 0.0):
        found, _ = close(guard, [*honest(later), sent(3, head=1.0)])
        steps.append(taken(found[3])[HEAD])
    assert steps == [1, 1, 0, 0]
    found, _ = close(guard, [*honest(0.0), sent(3, head=-1.0)])
    assert taken(found[3]) == {HEAD: -1}  # back it may go


def test_a_round_that_came_to_nothing_is_forgotten() -> None:
    guard = Guard(TWICE)
    close(guard, [*honest(), sent(3, head=1.0)])
    lost = [*honest(0.0), sent(3, head=1.0)]
    sizes = {update.client: guard.size_of(update, NUMBERS) for update in lost}
    guard.close(lost, sizes, ())  # and never learnt
    found, _ = close(guard, lost)
    assert taken(found[3]) == {HEAD: 1}


def test_a_reply_that_came_before_the_first_round_closed_is_bounded_in_the_next() -> None:
    """Under buffered rounds late replies wait for the buffer after."""
    guard = Guard(TWICE)
    late = sent(3, head=-1e4)
    sizes = {3: guard.size_of(late, NUMBERS)}
    close(guard, honest())
    others = honest(0.0)
    sizes |= {update.client: guard.size_of(update, NUMBERS) for update in others}
    found, _ = guard.close([*others, late], sizes, ())
    assert taken(found[3]) == {HEAD: pytest.approx(-2)}


def test_gates_have_a_median_of_their_own() -> None:
    """All in the gates, which are short in the others, is no way around."""
    others = [sent(i, head=4.0, gate=0.1) for i in range(3)]
    found, _ = close(Guard(TWICE), [*others, sent(3, head=0.1, gate=4.0)])
    assert taken(found[3]) == pytest.approx({HEAD: 0.1, GATE: 0.2})


def test_experts_share_one_median_in_which_each_client_counts_once() -> None:
    others = [sent(i, first=1.0, second=1.0) for i in range(3)]
    found, _ = close(Guard(TWICE), [*others, sent(3, first=5.0)])
    assert taken(found[3]) == pytest.approx({FIRST: 2})
    alone = [*honest(), sent(3, head=1.0, first=5.0)]  # one in four: no median, but the whole's 1
    found, _ = close(Guard(TWICE), alone)
    assert taken(found[3])[FIRST] < 2


def test_within_the_last_rounds_bounds_nobody_waits() -> None:
    guard = Guard(TWICE)
    close(guard, honest())
    for value, is_within in ((0.5, True), (1.0, True), (1.1, False), (-3.0, True)):
        size = guard.size_of(sent(0, head=value), NUMBERS)
        assert guard.is_within(size, 3) == is_within


def test_what_is_within_stays_the_same_object() -> None:
    updates = [*honest(), sent(3, head=1.9)]
    found, guarded = close(Guard(TWICE), updates)
    assert all(mine.statistics is its.statistics for mine, its in zip(found, updates, strict=True))
    assert set(guarded.masses.values()) == {1}


def test_two_replies_have_no_median() -> None:
    guard = Guard(TWICE)
    found, _ = close(guard, [sent(0, head=1.0), sent(1, head=1e4)])
    assert taken(found[1]) == {HEAD: 1e4}
    assert not guard.totals.key


def test_a_resumed_run_knows_what_was_sent() -> None:
    guard, again = Guard(TWICE), Guard(TWICE)
    close(guard, [sent(i, head=1 / 3, first=0.1 + i) for i in range(4)])
    again.load(json.loads(json.dumps(guard.dump())))
    assert again.dump() == guard.dump()
    later = [*(sent(i, head=0.0) for i in range(3)), sent(3, head=1.0)]
    assert taken(close(again, later)[0][3]) == taken(close(guard, later)[0][3]) != {HEAD: 1}


def test_a_checkpoint_without_such_numbers_says_nothing_of_them() -> None:
    guard = Guard(TWICE)
    close(guard, [toy_update(i, 10, 1, []) for i in range(3)])
    assert "totals" not in guard.dump()


# -- sketches -------------------------------------------------------------------------------------


def test_the_sketch_of_a_sum_is_the_sum_of_the_sketches() -> None:
    a, b = (torch.randn(1000, generator=torch.Generator().manual_seed(i)) for i in range(2))
    torch.testing.assert_close(sketched(a + b, "key"), sketched(a, "key") + sketched(b, "key"))


def test_a_sketch_is_about_as_long_as_what_it_is_of() -> None:
    values = torch.randn(3, 500, generator=torch.Generator().manual_seed(0))
    ratios = torch.stack([sketched(values, str(i)).norm() / values.norm() for i in range(100)])
    assert float((ratios - 1).abs().max()) < 0.3
    assert float(ratios.std()) < 1.5 / math.sqrt(2 * PLACES)
    assert abs(float(ratios.mean()) - 1) < 0.03


def test_places_depend_on_what_all_clients_sent() -> None:
    """So a client that knows its own numbers only cannot tell where to hide."""
    keys = []
    for others in (1.0, 1.0, 1.0000001):
        totals = Totals(2)
        totals.begin([(others,), (1.0,), (2.0,)])
        keys.append(totals.key)
    assert keys[0] == keys[1] != keys[2]
