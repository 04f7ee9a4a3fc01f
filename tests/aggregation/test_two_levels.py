"""Region servers below a global one: sums of sums are the sums of all, so two levels equal one.

A region that passes on the named sums of its clients loses nothing, whatever a ``Summed`` rule
divides by. A region that passes itself off as one client with a mean and Σ n is right where the
denominator counts all clients, and wrong where it counts those that trained an expert.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fedmoe_app import SCHEMES, Block, ModelState, Reply, Summed
from fedmoe_app.aggregation.streaming import BlockSums, added_by, reply_of
from fedmoe_app.schemes.views import blocks_of
from tests.aggregation.test_store import measured, updates
from tests.toy import assert_same, fold, plan_of, toy_state

GIVEN = measured(updates(seed=12))
REGIONS = ((0, 3), (1, 2, 4))
NAMES = [n for n in SCHEMES if isinstance(plan_of(SCHEMES[n]()).server.experts, Summed)]


def test_most_schemes_are_asked() -> None:
    assert {"fedavg", "fedprox", "fedmoe", "pflmoe", "hfedmoe"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_sums_of_regions_add_up_to_the_sums_of_all_clients(name: str) -> None:
    rule = plan_of(SCHEMES[name]()).server.experts
    assert isinstance(rule, Summed)
    replies = [reply_of(update) for update in GIVEN]
    trained = 0
    for block in (block for block in blocks_of(toy_state()) if block.kind == "expert"):
        one = sums_of(rule, replies, block)
        two: dict[str, Any] = {}
        for region in REGIONS:
            for key, value in sums_of(rule, [replies[i] for i in region], block).items():
                two[key] = two[key] + value if key in two else value
        assert one.keys() == two.keys()
        if any(isinstance(value, Tensor) for value in one.values()):
            trained += 1
            wanted = rule.result(one, block)
            torch.testing.assert_close(rule.result(two, block), wanted, rtol=1e-6, atol=1e-7)
    assert trained > 5


def test_a_region_may_be_one_client_of_fedavg() -> None:
    assert_same(two_levels("fedavg"), fold(toy_state(), GIVEN, SCHEMES["fedavg"]()), 1e-6)


def test_but_not_of_fedmoe_whose_experts_count_those_that_trained_them() -> None:
    one = dict(fold(toy_state(), GIVEN, SCHEMES["fedmoe"]()).named())
    two = dict(two_levels("fedmoe").named())
    assert max(float((two[name] - one[name]).abs().max()) for name in one) > 0.01


def two_levels(name: str) -> ModelState:
    """Every region sends its mean change and the sum of its examples, as one client would."""
    before, regions = toy_state(), []
    for number, region in enumerate(REGIONS):
        given = [GIVEN[i] for i in region]
        after, changes = fold(before, given, SCHEMES[name]()), ModelState()
        old = dict(before.named())
        for key, tensor in after.named():
            changes.insert(key, tensor - old[key])
        examples = sum(update.num_examples for update in given)
        regions.append(replace(given[0], client=number, num_examples=examples, changes=changes))
    return fold(before, regions, SCHEMES[name]())


def sums_of(rule: Summed, replies: Sequence[Reply], block: Block) -> dict[str, Any]:
    sums = BlockSums()
    for reply in replies:
        if added := added_by(rule, reply, block):
            sums.add([added])
    return sums.named()
