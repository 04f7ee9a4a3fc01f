"""Which way a run goes: sketches keep angles, factors by hand, and who is left out of a round."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedmoe_app import ClientUpdate, ModelState
from fedmoe_app.aggregation.direction import PLACES, Direction
from fedmoe_app.aggregation.guard import STRENGTHS, Guard, Guarded
from tests.toy import toy_update

ALL = [(layer, expert) for layer in range(2) for expert in range(3)]


def of(length: float = 1.0) -> Direction:
    """A direction among three replies or more, with a key from a first round of these lengths."""
    direction = Direction(3)
    direction.begin([(length,)] * 3)
    return direction


def sketch_of(direction: Direction, changes: ModelState) -> Tensor:
    norm = math.sqrt(sum(float((t.double() ** 2).sum()) for _, t in changes.named()))
    found = direction.sketch(changes, norm)
    assert found is not None
    return found


def state(values: Tensor, name: str = "head.weight") -> ModelState:
    """Changes of which a half lies in a dense tensor, the other in an expert."""
    half = len(values) // 2
    return ModelState(dense={name: values[:half]}, experts={(0, 0): {"up": values[half:]}})


def unit(degrees: float) -> Tensor:
    """The sketch of a change that goes this way in a plane."""
    sketch = torch.zeros(PLACES)
    sketch[0] = math.cos(math.radians(degrees))
    sketch[1] = math.sin(math.radians(degrees))
    return sketch


def degrees(cosine: float) -> float:
    return math.degrees(math.acos(cosine))


def going(*degrees: float) -> Direction:
    """A direction that has learnt one round of clients that went these ways."""
    direction = of()
    sketches = {client: unit(way) for client, way in enumerate(degrees)}
    direction.close(sketches)
    direction.learn(sketches)
    return direction


# -- sketches -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [6, 1000, 3 * PLACES + 17])
@pytest.mark.parametrize("cosine", [-0.5, 0.0, 0.3, 1.0])
def test_a_sketch_keeps_the_angle_between_changes(size: int, cosine: float) -> None:
    generator = torch.Generator().manual_seed(size)
    first, other = torch.randn(2, size, generator=generator)
    other = other - (other @ first) / (first @ first) * first
    second = cosine * first / first.norm() + math.sqrt(1 - cosine**2) * other / other.norm()
    direction = of()
    mine, its = (sketch_of(direction, state(own)) for own in (100 * first, second / 7))
    assert float(mine @ its) == pytest.approx(cosine, abs=4 / math.sqrt(PLACES))


def test_a_change_of_one_value_has_its_place_sign_and_length_whatever_the_others() -> None:
    one = torch.zeros(10 * PLACES)
    one[12345] = -3.0
    sketch = sketch_of(of(), state(one))
    assert sketch.abs().sum() == 1  # û has length 1
    assert torch.count_nonzero(sketch) == 1
    assert torch.equal(-sketch, sketch_of(of(), state(-5 * one)))


def test_places_are_those_of_key_and_tensor() -> None:
    values = torch.ones(8)
    sketch = sketch_of(of(), state(values))
    assert torch.equal(sketch, sketch_of(of(), state(values)))
    assert not torch.equal(sketch, sketch_of(of(2.0), state(values)))
    assert not torch.equal(sketch, sketch_of(of(), state(values, "score.weight")))


@pytest.mark.parametrize("size", [0, 1, PLACES, PLACES + 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_sketch_of_any_size_and_type_is_finite(size: int, dtype: torch.dtype) -> None:
    changes = ModelState(dense={"head.weight": torch.full((size,), 2.0, dtype=dtype)})
    sketch = sketch_of(of(), changes)
    assert bool(sketch.isfinite().all())
    assert float(sketch.norm()) == pytest.approx(1 if size else 0, rel=0.05)


def test_without_a_key_or_a_change_nothing_is_known() -> None:
    assert Direction(3).sketch(state(torch.ones(4)), 2.0) is None
    assert Direction(3).along(None) == 0
    direction = going(0, 0, 0)
    assert torch.equal(direction.sketch(state(torch.zeros(4)), 0.0), torch.zeros(PLACES))
    assert direction.along(torch.zeros(PLACES)) == 0


def test_a_first_round_in_which_too_few_moved_draws_no_key() -> None:
    direction = Direction(3)
    direction.begin([(0.0, 0.0), (0.0, 0.0), (1.0, 0.0), (0.0, 2.0)])
    assert not direction.key
    direction.begin([(0.0, 1.0)] * 3)
    key = direction.key
    direction.begin([(2.0, 1.0)] * 3)  # one key a run
    assert direction.key == key


# -- factors --------------------------------------------------------------------------------------


def test_who_goes_back_by_half_of_the_median_counts_for_nothing() -> None:
    # g = 3·(1, 0), so that c = 3·cos: 3, 3, 3, 3, 0, -0.75, -1.5. Their median is 3, and nobody is
    # above it: d = 0 and t = 0.
    direction = going(0, 0, 0)
    ways = (0, 0, 0, 0, 90, degrees(-1 / 4), 120)
    factors = direction.close(dict(enumerate(map(unit, ways))))
    expected = [1, 1, 1, 1, 1, 1 - 2 * 0.75 / 3, 0]
    assert list(factors.values()) == pytest.approx(expected, abs=1e-5)


def test_where_clients_are_far_apart_who_goes_back_a_little_stays_whole() -> None:
    # c/3 = 1, 0.5, 0.25, 0.25, 0.2, -0.3, -0.9: m = 0.25, of all |c/3 - m| the median is 0.25, of
    # those from m on (0.75, 0.25, 0, 0) it is 0.125: d = 0.25 and t = 0.25 - 2·0.25 = -0.25.
    direction = going(0, 0, 0)
    cosines = [1, 0.5, 0.25, 0.25, 0.2, -0.3, -0.9]
    factors = direction.close(dict(enumerate(unit(degrees(own)) for own in cosines)))
    expected = [1, 1, 1, 1, 1, 1 - 2 * 0.05 / 0.25, 0]
    assert list(factors.values()) == pytest.approx(expected, abs=1e-5)


def test_honest_clients_that_lag_behind_are_part_of_how_far_they_are_apart() -> None:
    # Four at 0.5 are the median and not apart. With 0.9, 0.6, 0.4 and 0.3 in their place m = 0.3,
    # the median of 0.6, 0.3, 0.1, 0, 0.6, 0.61, 0.62 is 0.6, and t = 0.3 - 1.2.
    direction = going(0, 0, 0)
    for ahead, factor in (([0.5] * 4, 0), ([0.9, 0.6, 0.4, 0.3], 1)):
        ways = [degrees(own) for own in (*ahead, -0.3, -0.31, -0.32)]
        factors = direction.close(dict(enumerate(map(unit, ways))))
        assert list(factors.values()) == [1, 1, 1, 1, factor, factor, factor]


def test_a_round_that_turns_back_as_a_whole_is_left_alone() -> None:
    direction = going(0, 0, 0)
    assert set(direction.close({0: unit(180), 1: unit(170), 2: unit(0)}).values()) == {1.0}


def test_a_median_within_the_error_of_a_sketch_says_nothing() -> None:
    direction = going(0, 0, 0)  # the error is 4/128
    for cosine, factor in ((0.03, 1), (0.033, 0)):
        sketches = {0: unit(degrees(cosine)), 1: unit(degrees(cosine)), 2: unit(120)}
        assert direction.close(sketches)[2] == factor


def test_two_replies_have_no_majority() -> None:
    direction = going(0, 0, 0)
    assert direction.close({0: unit(0), 1: unit(180)}) == {0: 1.0, 1: 1.0}
    before = direction.way
    direction.learn({0: unit(0), 1: unit(180)})
    assert direction.way is before


def test_the_direction_forgets_by_halves_and_gives_each_client_a_vote() -> None:
    direction = going(0, 0, 0)
    sketches = {0: unit(90), 1: unit(90), 2: unit(45), 3: unit(180)}
    # c = 0, 0, 3/√2, -3: the median is 0, so that all count.
    assert set(direction.close(sketches).values()) == {1.0}
    direction.learn(sketches)
    assert direction.way is not None
    half = math.sqrt(0.5)
    expected = [(3 + half - 1) / 2, (2 + half) / 2]
    assert direction.way[:2].tolist() == pytest.approx(expected, abs=1e-6)


@given(st.lists(st.floats(-180, 180), min_size=3, max_size=9))
def test_factors_lie_between_0_and_1_and_half_of_all_stay_whole(ways: list[float]) -> None:
    direction = going(0, 10, -10)
    factors = list(direction.close(dict(enumerate(map(unit, ways)))).values())
    assert all(0 <= factor <= 1 for factor in factors)
    assert 2 * factors.count(1.0) >= len(ways)


def test_what_is_remembered_survives_json_exactly() -> None:
    direction = going(3, 5, 100)
    again = Direction(3)
    again.load(json.loads(json.dumps(direction.dump())))
    sketch = unit(77)
    assert again.along(sketch) == direction.along(sketch)
    changes = state(torch.ones(4))
    assert torch.equal(sketch_of(again, changes), sketch_of(direction, changes))
    empty = Direction(3)
    empty.load({})
    assert empty.dump() == {}


def test_who_looks_no_more_forgets() -> None:
    off = Direction(0)
    off.load(going(0, 0, 0).dump())
    off.begin([(1.0,)] * 9)
    assert off.dump() == {}
    assert off.sketch(state(torch.ones(4)), 2.0) is None
    assert set(off.close(dict.fromkeys(range(9))).values()) == {1.0}


def test_who_was_left_out_does_not_keep_the_direction_as_it_is() -> None:
    direction = going(0, 0, 0)
    before = direction.way
    sketches = {0: unit(10), 1: unit(10), 2: unit(180)}
    assert direction.close(sketches)[2] == 0
    direction.learn({client: sketches[client] for client in (0, 1)})
    assert before is not None
    assert direction.way is not None
    assert float(direction.way[1]) > float(before[1])


# -- the guard ------------------------------------------------------------------------------------


def played(guard: Guard, *rounds: Sequence[float]) -> tuple[list[ClientUpdate], Guarded]:
    """What the guard left of the last of these rounds; a change by client."""
    found, guarded = [], None
    for changes in rounds:
        updates = [toy_update(client, 10, own, ALL) for client, own in enumerate(changes)]
        sizes = {update.client: guard.size_of(update, {}) for update in updates}
        found, guarded = guard.close([*map(guard.counted, updates)], sizes, ())
        guard.learn({update.client: sizes[update.client] for update in found})
    assert guarded is not None
    return found, guarded


def test_a_turned_sign_is_left_out_from_the_third_round_on() -> None:
    lied, honest = (1,) * 7 + (-1,), (1,) * 8
    for rounds in ((lied, lied), (honest, lied)):  # no direction is known yet
        found, guarded = played(Guard(STRENGTHS["tight"]), *rounds)
        assert len(found) == 8
        assert guarded.factors[7] == 1
    found, guarded = played(Guard(STRENGTHS["tight"]), lied, lied, lied)
    assert [update.client for update in found] == [*range(7)]
    assert guarded.against == [7]
    assert guarded.factors == dict.fromkeys(range(7), 1)


def test_among_six_nobody_is_left_out() -> None:
    found, _ = played(Guard(STRENGTHS["tight"]), *[(1, 1, 1, 1, 1, -1)] * 4)
    assert len(found) == 6


def test_a_run_that_goes_on_under_the_default_looks_at_sizes_alone() -> None:
    tight, default = Guard(STRENGTHS["tight"]), Guard(STRENGTHS["default"])
    played(tight, *[(1,) * 7 + (-1,)] * 2)
    default.load(tight.dump())
    found, _ = played(default, (1,) * 7 + (-1,))
    assert len(found) == 8
    assert "direction" not in default.dump()


def test_the_default_looks_at_sizes_alone() -> None:
    guard = Guard(STRENGTHS["default"])
    found, guarded = played(guard, *[(1,) * 7 + (-1,)] * 4)
    assert len(found) == 8
    assert guarded.against == []
    assert "direction" not in guard.dump()


def test_only_a_reply_that_goes_back_waits_for_the_others() -> None:
    guard = Guard(STRENGTHS["tight"])
    played(guard, *[(1,) * 8] * 2)
    forward, back = (toy_update(0, 10, change, ALL) for change in (1, -1))
    assert guard.is_within(guard.size_of(forward, {}), 8)
    assert not guard.is_within(guard.size_of(back, {}), 8)
