"""Which experts a node holds: the scheme's choice, filled up to top-k."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from fedmoe_app import ConfigError, FedMoE, HFedMoE, LocalClient, Once, RoutingStats, Scheme
from fedmoe_app.client.placement import choose, chosen_by, fill_up
from fedmoe_app.schemes.faults import PartError
from tests.toy import both_layers, plan_of, select, toy_client, toy_stats


def usage(max_examples: int) -> RoutingStats:
    """All tokens go to expert 2; expert 0 comes next by probability."""
    prob = both_layers([0.3, 0.1, 0.6])
    return replace(toy_stats([], count=[[0, 0, 9]] * 2), prob=prob, peak=prob)


def test_layers_with_too_few_experts_take_the_likeliest() -> None:
    held = torch.tensor([[False, False, True, False], [True, False, True, False]])
    prob = torch.tensor([[0.2, 0.4, 0.3, 0.1], [0.7, 0.1, 0.1, 0.1]])
    assert fill_up(held, prob, 2).tolist() == [
        [False, True, True, False],
        [True, False, True, False],
    ]
    assert fill_up(held, prob, 3)[1].tolist() == [True, True, True, False]  # a tie: the lower
    assert held.sum() == 3  # what was given stays


def test_a_choice_of_routed_experts_only_is_filled_up() -> None:
    scheme = HFedMoE(selection="round", budgets=(3,))
    assert select(scheme).choose(toy_client(usage)) == [[2], [2]]
    placement = choose(select(scheme), toy_client(usage))
    assert placement.by_layer() == [[0, 2], [0, 2]]
    assert placement.budget == 3


def test_fedmoe_and_the_node_bound_the_choice() -> None:
    placement = choose(select(FedMoE(experts_per_client=3)), toy_client(usage, expert_budget=2))
    assert placement.budget == 2
    assert [len(subset) for subset in placement.by_layer()] == [2, 2]


def test_a_budget_below_top_k_is_refused_with_both_numbers() -> None:
    with pytest.raises(ConfigError, match=r"a budget of 1 experts a layer: a token uses 2"):
        choose(select(FedMoE()), toy_client(usage, expert_budget=1))


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([[0, 1]], r"Mine\.choose: returned 1 layers: .* each of the model's 2 MoE layers"),
        (None, r"Mine\.choose: returned None: must be experts of each"),
        ([[0, 1], [1, 3, -1]], r"Mine\.choose: returned \[3, -1\] for layer 1: .* 0 to 2"),
        ([[0, 1], 1], r"Mine\.choose: returned 1 for layer 1: must be experts 0 to 2"),
    ],
)
def test_a_choice_that_does_not_fit_the_model_is_refused(found: Any, message: str) -> None:
    class Mine(Once):
        def budget(self, own: LocalClient) -> int:
            return 2

        def choose(self, own: LocalClient) -> Any:
            return found

    for asked in (choose, chosen_by):
        with pytest.raises(PartError, match=message):
            asked(Mine(), toy_client(usage))


def test_which_schemes_choose_once_a_round() -> None:
    schemes = (FedMoE(), HFedMoE(selection="round"), HFedMoE(), HFedMoE(selection="none"), Scheme())
    assert [plan_of(s).chooses_once for s in schemes] == [True, True, False, False, False]
