"""What a client weighs by a scheme's own numbers is bounded: factors by hand, and the merge."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
import torch

from fedmoe_app import ClientUpdate
from fedmoe_app.aggregation.guard import Guard, Guarded, Strength
from fedmoe_app.aggregation.sizes import size_of
from fedmoe_app.schemes.grammerge import GRAM, GramMerge
from fedmoe_app.schemes.qfedavg import QFedAvg
from fedmoe_app.server.measuring import specs_of
from fedmoe_app.wire.spec import NumberSpec
from tests.toy import assert_same, fold, fold_toy, plan_of, toy_state, toy_update

ALL = [(layer, expert) for layer in range(2) for expert in range(3)]
HEAD = "GramDiagonal/head.weight"
FIRST = "GramDiagonal/layers.0.experts.0.w"
SECOND = "GramDiagonal/layers.0.experts.1.w"
TWICE = Strength(slack=2, share=2)
NUMBERS = {
    name: NumberSpec((2,), 0, 1e15, optional=True, mass=mass)
    for name, mass in {
        HEAD: "head.weight",
        FIRST: "layers.0.experts: w",
        SECOND: "layers.0.experts: w",
    }.items()
}


def sent(client: int, change: float = 1.0, **numbers: Sequence[float]) -> ClientUpdate:
    """An update with the squares of inputs of some maps."""
    names = {"head": HEAD, "first": FIRST, "second": SECOND}
    grams = {names[name]: torch.tensor(values) for name, values in numbers.items()}
    return replace(toy_update(client, 10, change, ALL), statistics=grams)


def closed(guard: Guard, updates: Sequence[ClientUpdate]) -> tuple[list[ClientUpdate], Guarded]:
    sizes = {update.client: size_of(update, NUMBERS) for update in updates}
    found, guarded = guard.close([*map(guard.counted, updates)], sizes, ())
    guard.learn(sizes)
    return found, guarded


def grams(update: ClientUpdate) -> Mapping[str, list[float]]:
    return {name: tensor.tolist() for name, tensor in update.statistics.items()}


def honest(number: int = 3, scale: float = 1.0) -> list[ClientUpdate]:
    """Masses of 4 of the head, and of 6 of the experts of the first layer."""
    return [
        sent(i, head=[scale, 3 * scale], first=[scale, scale], second=[0.0, 4 * scale])
        for i in range(number)
    ]


def test_a_mass_is_two_medians_at_most() -> None:
    liar = sent(3, head=[4e6, 0.0], first=[0.0, 2.0], second=[5.0, 5.0])
    found, guarded = closed(Guard(TWICE), [*honest(), liar])
    assert grams(found[3]) == {HEAD: [8, 0], FIRST: [0, 2], SECOND: [5, 5]}
    assert guarded.masses == {0: 1, 1: 1, 2: 1, 3: 2e-6}


def test_the_experts_of_a_layer_have_one_mass() -> None:
    """24 where the bound is 12: both experts of the liar shrink by a half, whatever each has."""
    liar = sent(3, head=[1.0, 1.0], first=[20.0, 0.0], second=[2.0, 2.0])
    found, guarded = closed(Guard(TWICE), [*honest(), liar])
    assert grams(found[3]) == {HEAD: [1, 1], FIRST: [10, 0], SECOND: [1, 1]}
    assert guarded.masses[3] == 0.5


def test_one_that_has_all_its_tokens_in_one_expert_is_left_alone() -> None:
    updates = [*honest(), sent(3, head=[4.0, 0.0], first=[6.0, 6.0])]
    found, guarded = closed(Guard(TWICE), updates)
    assert set(guarded.masses.values()) == {1}
    assert all(mine.statistics is its.statistics for mine, its in zip(found, updates, strict=True))


def test_what_most_did_not_send_counts_for_nothing() -> None:
    """Else a map that all merge by examples would follow the one that sent squares for it."""
    others = [sent(i, first=[1.0, 1.0]) for i in range(3)]
    found, guarded = closed(Guard(TWICE), [*others, sent(3, head=[1.0, 1.0])])
    assert grams(found[3])[HEAD] == [0, 0]
    assert guarded.masses[3] == 0
    assert_same(
        fold_toy(GramMerge(), found),
        fold_toy(GramMerge(), [*others, sent(3)]),
    )


def test_fewer_than_three_replies_are_left_alone() -> None:
    updates = [sent(0, head=[1.0, 1.0]), sent(1, head=[1e6, 1e6])]
    found, guarded = closed(Guard(TWICE), updates)
    assert grams(found[1]) == {HEAD: [1e6, 1e6]}
    assert guarded.masses == {0: 1, 1: 1}


def test_a_round_without_such_numbers_tells_nothing_of_them() -> None:
    _, guarded = closed(Guard(TWICE), [sent(i) for i in range(3)])
    assert guarded.masses == {}


def test_within_the_last_rounds_median_nobody_waits() -> None:
    guard = Guard(TWICE)
    closed(guard, honest())
    within, beyond = sent(0, head=[8.0, 0.0]), sent(0, head=[8.1, 0.0])
    assert guard.is_within(size_of(within, NUMBERS), 3)
    assert not guard.is_within(size_of(beyond, NUMBERS), 3)


def test_inputs_may_grow_from_round_to_round() -> None:
    """The larger one of two rounds' medians counts, or all would be cut when features grow."""
    guard = Guard(TWICE)
    closed(guard, honest())
    assert set(closed(guard, honest(scale=100))[1].masses.values()) == {1}
    assert set(closed(guard, honest(scale=0.01))[1].masses.values()) == {1}


def test_a_resumed_run_knows_the_masses() -> None:
    guard, again = Guard(TWICE), Guard(TWICE)
    closed(guard, honest())
    again.load(json.loads(json.dumps(guard.dump())))
    assert again.usual == guard.usual == {"head.weight": 4, "layers.0.experts: w": 6}


def test_a_checkpoint_of_an_older_release_has_no_masses() -> None:
    guard = Guard(TWICE)
    guard.load({"typical": {"dense": 1.0}, "known": {}})
    assert guard.usual == {}


@pytest.mark.parametrize("key", ["layers.1.experts.1.w", "layers.0.experts.2.down.lora_A.weight"])
def test_which_numbers_are_one_mass(key: str) -> None:
    layer, name = key.split(".")[1], key.split(".", 4)[4]
    fields = GRAM.spec({key: (2, 3), "layers.1.weight": (4, 5), "bias": (2,)})
    assert {n: field.mass for n, field in fields.items()} == {
        key: f"layers.{layer}.experts: {name}",
        "layers.1.weight": "layers.1.weight",
    }


def test_a_gram_of_a_million_times_the_size_does_not_own_the_merge() -> None:
    """Four clients with g = 2 and Δ = 1, and one with g = 2·10⁶ and Δ = −3; ρ = 1, w_i = 1/5.

    As it came: (−3 + mean)/2 = −1.4. With g = 4 and τ = 12: (4·(2 + 2.4) − 3·(4 + 2.4))/(12 + 12).
    """

    def linear(client: int, change: float, gram: float) -> ClientUpdate:
        update = toy_update(client, 10, change, ALL)
        update.changes.dense["head.weight"] = torch.full((1, 1), change)
        return replace(update, statistics={HEAD: torch.tensor([gram])})

    def merged(given: Sequence[ClientUpdate]) -> float:
        state = toy_state()
        state.dense["head.weight"] = torch.zeros(1, 1)
        return float(fold(state, given, GramMerge()).dense["head.weight"])

    updates = [*(linear(i, 1.0, 2.0) for i in range(4)), linear(4, -3.0, 2e6)]
    assert merged(updates) == pytest.approx(-1.4, abs=1e-4)
    found, _ = closed(Guard(Strength(3, 2)), updates)
    assert merged(found) == pytest.approx((4 * 4.4 - 3 * 6.4) / 24)


# -- powers ---------------------------------------------------------------------------------------


def with_loss(client: int, loss: float, squared: float = 1.0) -> ClientUpdate:
    numbers = {"ReceivedLoss/mean": loss, "SquaredChange/all": squared}
    sent = {name: torch.tensor(value) for name, value in numbers.items()}
    return replace(toy_update(client, 10, 1.0, ALL), statistics=sent)


@pytest.mark.parametrize(
    ("q", "loss", "used"),
    [
        (2.0, 1e4, 3 * 2**0.5),  # F² ≤ 2·3²
        (2.0, 0.0, 0.0),  # a small one weighs little
        (1.0, 1e4, 6.0),
        (0.5, 1e4, 12.0),  # √F ≤ 2·√3
        (0.5, 0.0, 0.75),  # 1/√F ≤ 2/√3
        (0.5, 1.0, 1.0),
        (1e-4, 1e4, 1e4),  # weighs next to nothing
        (0.0, 1e4, 1e4),  # weighs nothing
    ],
)
def test_a_loss_is_bounded_in_the_power_by_which_it_weighs(
    q: float, loss: float, used: float
) -> None:
    numbers = specs_of(plan_of(QFedAvg(q)).measured, toy_state())
    updates = [*(with_loss(i, 3.0) for i in range(4)), with_loss(4, loss)]
    guard = Guard(TWICE)
    sizes = {update.client: guard.size_of(update, numbers) for update in updates}
    found, _ = guard.close(updates, sizes, ())
    assert float(found[4].statistics["ReceivedLoss/mean"]) == pytest.approx(used)
    assert all(
        own.statistics is its.statistics for own, its in zip(found[:4], updates, strict=False)
    )


def test_the_square_of_a_length_is_bounded_by_the_length() -> None:
    """Four clients of length 1, and one of 10¹⁰: 2 is left of it, whose square is 4.

    With q = 1, Λ = 1 and F = 1: h = 1 + 1 of the four, and 4 + 1; Δ = 5/(4·2 + 5).
    """
    scheme = QFedAvg(1.0, 1.0)
    numbers = specs_of(plan_of(scheme).measured, toy_state())
    updates = [*(with_loss(i, 1.0) for i in range(4)), with_loss(4, 1.0, 1e20)]
    guard = Guard(TWICE)
    sizes = {update.client: guard.size_of(update, numbers) for update in updates}
    found, guarded = guard.close(updates, sizes, ())
    assert guarded.masses[4] == pytest.approx(4e-20)
    moved = fold_toy(scheme, found).dense["head.weight"] - 1
    assert moved.tolist() == pytest.approx([5 / 13, 5 / 13])
