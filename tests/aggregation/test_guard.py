"""What one client can do to a round is bounded, and an honest round is left alone, bit for bit."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedmoe_app import ClientUpdate, FedAvg
from fedmoe_app.aggregation.guard import Guard, Strength
from fedmoe_app.aggregation.medians import weighted_median
from fedmoe_app.aggregation.sizes import CHUNK, Size, norm_of, size_of, typical_of
from fedmoe_app.aggregation.streaming import round_info
from fedmoe_app.schemes.fedalign import consistency_weights
from fedmoe_app.schemes.fednova import FedNova
from tests.toy import assert_same, fold_toy, toy_state, toy_update

ALL = [(layer, expert) for layer in range(2) for expert in range(3)]


def guard(slack: float = 3, share: float = 4) -> Guard:
    return Guard(Strength(slack, share))


def closed(own: Guard, updates: Sequence[ClientUpdate]) -> tuple[list[ClientUpdate], list[float]]:
    """A round of which nothing was summed before its end: the updates, and the least factors."""
    sizes = {update.client: size_of(update) for update in updates}
    early = [own.counted(update) for update in updates]
    found, guarded = own.close(early, sizes, ())
    own.learn(sizes)
    return found, [guarded.factors[update.client] for update in updates]


def honest(number: int = 4, change: float = 1.0) -> list[ClientUpdate]:
    return [toy_update(client, 10, change, ALL) for client in range(number)]


def test_an_honest_round_is_left_as_it_came() -> None:
    updates = [toy_update(i, 10 + i, 1 + i / 10, ALL) for i in range(4)]
    found, factors = closed(guard(), updates)
    assert factors == [1, 1, 1, 1]
    assert all(mine.changes is its.changes for mine, its in zip(found, updates, strict=True))
    assert_same(fold_toy(FedAvg(), found), fold_toy(FedAvg(), updates))


def test_each_block_shrinks_to_three_medians_and_then_the_whole() -> None:
    found, factors = closed(guard(), [*honest(4), toy_update(4, 10, -100, ALL)])
    size = size_of(found[-1])
    # Dense has 2 values, the gates 12, an expert 3 and all together 32, each 1 where it is honest.
    for norm, values in ((size.dense, 2), (size.gates, 12), (size.experts[0, 0], 3)):
        assert norm == pytest.approx(3 * math.sqrt(values), rel=1e-5)
    assert size.whole == pytest.approx(3 * math.sqrt(32), rel=1e-5)
    assert factors == [1, 1, 1, 1, pytest.approx(0.03)]
    assert found[-1].changes.dense["head.weight"].tolist() == pytest.approx([-3, -3])


def test_one_bound_holds_for_all_experts_of_a_round() -> None:
    # Only the liar trained expert (0, 0): its own median would be its own norm.
    others = [toy_update(i, 10, 1, [(0, 1), (1, 1)]) for i in range(4)]
    found, _ = closed(guard(), [*others, toy_update(4, 10, 50, [(0, 0)])])
    bound = 3 * math.sqrt(3)
    assert size_of(found[-1]).experts[0, 0] <= bound * 1.00001


def test_who_trains_more_experts_has_no_more_say() -> None:
    def size(experts: dict[tuple[int, int], float]) -> Size:
        return Size(1, 1, experts, 10, 10, 0.5)

    few = [size({(0, 0): 1.0}) for _ in range(3)]
    many = size({key: 100.0 for key in ALL})
    assert typical_of([*few, many])["expert"] == 1


def test_a_kind_that_most_clients_left_alone_has_only_the_bound_of_the_whole() -> None:
    def size(gates: float) -> Size:
        return Size(1, gates, {(0, 0): 1.0}, 10, 10, 0.5)

    assert "gates" not in typical_of([size(0), size(0), size(5)])
    updates = honest(4)
    for update in updates[:3]:
        for gate in update.changes.gates.values():
            gate["weight"].zero_()
    liar = toy_update(4, 10, 0, [])
    for gate in liar.changes.gates.values():
        gate["weight"].fill_(1000)
    found, _ = closed(guard(), [*updates[:3], liar])
    size_left = size_of(found[-1])
    assert size_left.gates <= 3 * math.sqrt(32)


def test_fewer_than_three_replies_have_no_majority() -> None:
    _, factors = closed(guard(), [toy_update(0, 10, 1, ALL), toy_update(1, 10, 100, ALL)])
    assert factors == [1, 1]


def test_a_client_counts_for_four_medians_at_most() -> None:
    found, _ = closed(guard(), [*honest(4), toy_update(4, 10**8, 1, ALL)])
    assert [update.counted for update in found] == [10, 10, 10, 10, 40]
    assert found[-1].num_examples == 10**8  # what it said stays on record
    assert round_info(1, found).num_examples.tolist() == [10, 10, 10, 10, 40]


def with_steps(client: int, examples: int, steps: int, change: float = 1.0) -> ClientUpdate:
    return replace(toy_update(client, examples, change, ALL), metrics={"num-steps": float(steps)})


@pytest.mark.parametrize(
    ("examples", "steps", "taken"),
    [
        (10**8, 6_250_000, 40),  # counts for 640 examples, 16 a step
        (160, 1, 2.5),  # 64 examples a step at most
        (160, 0, 2.5),  # said nothing
        (16, 1, 1),  # a small client is left alone
        (1600, 100, 40),  # a large one shrinks as a whole
    ],
)
def test_steps_are_those_of_the_examples_that_a_client_counts_for(
    examples: int, steps: int, taken: float
) -> None:
    honest = [with_steps(client, 160, 10) for client in range(4)]
    found, _ = closed(guard(), [*honest, with_steps(4, examples, steps)])
    assert found[-1].steps == taken
    assert found[-1].metrics["num-steps"] == steps  # what it said stays on record
    assert round_info(1, found).num_steps.tolist() == [10, 10, 10, 10, taken]
    # FedNova goes Σpτ·Σp·Δ/τ: forged steps once took the model 138,890 changes away.
    moved = fold_toy(FedNova(), found).dense["head.weight"] - toy_state().dense["head.weight"]
    assert 0.9 < float(moved[0]) < 3.5


def test_bounds_of_shares_follow_the_rounds_that_were_learnt() -> None:
    """They are worked out once a round, since the medians are those of all clients."""
    own, large = guard(), toy_update(9, 10**6, 1, ALL)
    assert own.counted(large).counted == 10**6  # nobody is known yet
    for examples in (10, 100):
        own.learn({c: size_of(toy_update(c, examples, 1, ALL)) for c in range(4)})
        assert own.counted(large).counted == own.counted(large).counted == 4 * examples
    again = guard()
    assert again.counted(large).counted == 10**6
    again.load(own.dump())
    assert again.counted(large).counted == 400


def test_a_checkpoint_of_shares_without_steps_can_be_gone_on_from() -> None:
    own = guard()
    own.load({"typical": {}, "known": {str(client): [160, 3, 0.1] for client in range(4)}})
    assert own.counted(with_steps(4, 160, 1)).steps == 1
    assert own.counted(with_steps(4, 10**8, 10**6)).counted == 640


def test_a_forged_histogram_counts_for_four_medians_too() -> None:
    liar = toy_update(4, 10, 1, ALL)
    tokens, count = torch.tensor([3000, 3000]), torch.full((2, 3), 2000)
    liar = replace(liar, routing=replace(liar.routing, tokens=tokens, count=count))
    found, _ = closed(guard(), [*honest(4), liar])  # the others have 3 tokens a layer
    assert found[-1].routing.tokens.tolist() == [12, 12]
    assert found[-1].routing.count.tolist() == [[8, 8, 8], [8, 8, 8]]
    assert found[0].routing is honest()[0].routing or found[0].routing.tokens.tolist() == [3, 3]


def test_a_router_that_is_surer_than_any_counts_for_four_medians_at_most() -> None:
    def unsure(client: int) -> ClientUpdate:
        update = toy_update(client, 10, 1, ALL)
        return replace(update, routing=replace(update.routing, margin=torch.full((2, 3), 0.01)))

    found, _ = closed(guard(), [*map(unsure, range(4)), toy_update(4, 10, 1, ALL)])  # margins 1/6
    torch.testing.assert_close(found[-1].routing.margin, torch.full((2, 3), 0.04))
    assert found[0].routing.margin.tolist() == unsure(0).routing.margin.tolist()


def test_a_lead_put_into_one_expert_of_one_layer_is_no_way_around() -> None:
    def sure(client: int, prob: torch.Tensor, margin: torch.Tensor) -> ClientUpdate:
        update = toy_update(client, 10, 1, ALL)
        own = replace(update.routing, prob=prob, margin=margin, peak=prob)
        return replace(update, routing=own)

    even, one = torch.full((2, 3), 1 / 3), torch.zeros(2, 3)
    one[0, 0] = 1
    honest = [sure(i, even, torch.full((2, 3), 0.2)) for i in range(9)]
    # Over both layers its leads are 0.5, less than the others' 0.6.
    found, _ = closed(guard(2, 2), [*honest, sure(9, one, one)])
    assert found[0].routing is honest[0].routing
    assert float(found[-1].routing.margin[0, 0]) == pytest.approx(2 * 0.2 / 3)
    prob, margin = (
        torch.stack([getattr(u.routing, name)[0] for u in found]) for name in ("prob", "margin")
    )
    assert float(consistency_weights(prob, margin)[9, 0]) == pytest.approx(2 / 11)  # not 5 / 8


def test_what_is_within_the_last_rounds_bounds_need_not_wait() -> None:
    own = guard()
    small, large = (size_of(toy_update(0, 10, change, ALL)) for change in (2.9, 3.1))
    assert not own.is_within(small, 4)  # nothing is known in the first round
    closed(own, honest())
    assert own.is_within(small, 4)
    assert not own.is_within(large, 4)
    assert guard().is_within(large, 2)  # two have no majority, so that nothing will be clipped


def test_a_round_of_larger_changes_is_no_attack() -> None:
    # As in the warm-up of a learning rate: all grow together.
    own = guard()
    closed(own, honest(change=1))
    _, factors = closed(own, honest(change=50))
    assert factors == [1, 1, 1, 1]
    _, factors = closed(own, honest(change=0.1))  # and neither is one of smaller ones
    assert factors == [1, 1, 1, 1]


def test_shares_go_by_all_clients_of_earlier_rounds() -> None:
    own = guard()
    closed(own, [toy_update(i, 10, 1, ALL) for i in range(3)])
    closed(own, [toy_update(i, 1000, 1, ALL) for i in (3, 4)])
    # Median of 10, 10, 10, 1000, 1000; that of this round alone would be 1000.
    found, _ = closed(own, [toy_update(i, 1000, 1, ALL) for i in (5, 6, 7)])
    assert [update.counted for update in found] == [40, 40, 40]


def test_what_is_remembered_survives_json_exactly() -> None:
    own, other = guard(), guard()
    closed(own, [toy_update(i, 10, 1 / (3 + i), ALL) for i in range(4)])
    other.load(json.loads(json.dumps(own.dump())))
    assert (other.typical, other.known) == (own.typical, own.known)
    fresh = guard()
    fresh.load({})  # of a run without a guard
    assert (fresh.typical, fresh.known) == ({}, {})


@given(
    st.lists(st.floats(0.01, 100), min_size=5, max_size=9),
    st.floats(1e-3, 1e4),
    st.sampled_from([1.5, 3.0]),
)
def test_nothing_is_beyond_its_bound(norms: list[float], lie: float, slack: float) -> None:
    updates = [toy_update(i, 10, norm, ALL) for i, norm in enumerate([*norms, lie])]
    typical = typical_of([size_of(update) for update in updates])
    found, _ = closed(guard(slack), updates)
    for update in found:
        size = size_of(update)
        for kind, norm in typical.items():
            assert max(size.of(kind), default=0) <= slack * norm * 1.001


@given(st.lists(st.floats(0, 10), min_size=1, max_size=20))
def test_a_median_has_half_of_the_weight_on_either_side(values: list[float]) -> None:
    found = weighted_median([(value, 1.0) for value in values])
    assert 2 * sum(value <= found for value in values) >= len(values)
    assert 2 * sum(value >= found for value in values) >= len(values)


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, 3 * CHUNK + 5])
def test_a_norm_is_that_of_all_chunks(size: int) -> None:
    tensor = torch.randn(size, generator=torch.Generator().manual_seed(size))
    exact = float(tensor.double().norm())
    assert norm_of([tensor]) == pytest.approx(exact, rel=1e-6)
    assert norm_of([tensor, tensor]) == pytest.approx(exact * math.sqrt(2), rel=1e-6)


def test_the_state_stays_as_it_was() -> None:
    updates = [*honest(4), toy_update(4, 10, -100, ALL)]
    closed(guard(), updates)
    assert float(updates[-1].changes.dense["head.weight"][0]) == -100  # the reply, too
    assert_same(toy_state(), toy_state())
