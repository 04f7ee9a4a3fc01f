"""HFedMoE on two and three clients, with the arithmetic beside the numbers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmoe_app import (
    expert_importance,
    expert_weights,
    gate_weights,
    information_bottleneck,
    select_experts,
)

PROBS = torch.tensor([[0.8, 0.2], [0.4, 0.6]])  # [T, E]
USAGE = torch.tensor([[0.5, 0.1], [0.3, 0.3], [0.2, 0.05]])  # [N, E]
IMPORTANCE = torch.tensor([[1.0, 1.0], [0.5, 2.0], [1.0, 1.0]])  # [N, E]
EXAMPLES = torch.tensor([1, 3, 4])


def test_importance_mixes_mean_and_peak() -> None:
    # 0.25·0.6 + 0.75·0.8 = 0.75;  0.25·0.4 + 0.75·0.6 = 0.55
    assert expert_importance(PROBS, lam=0.25).tolist() == pytest.approx([0.75, 0.55])
    assert expert_importance(PROBS, lam=1.0).tolist() == pytest.approx([0.6, 0.4])
    assert expert_importance(PROBS, lam=0.0).tolist() == pytest.approx([0.8, 0.6])


def test_the_score_subtracts_the_information() -> None:
    # (0.8·ln(4/3) + 0.4·ln(2/3))/2 = (0.230146 − 0.162186)/2 = 0.033980;  0.75 − 2·0.033980
    # (0.2·ln(1/2) + 0.6·ln(3/2))/2 = (−0.138629 + 0.243279)/2 = 0.052325;  0.55 − 2·0.052325
    score = information_bottleneck(PROBS, lam=0.25, beta=2.0)
    assert score.tolist() == pytest.approx([0.682040, 0.445350], abs=1e-6)


def test_equal_tokens_carry_no_information() -> None:
    probs = torch.tensor([0.7, 0.3, 0.0]).expand(4, 3)
    assert information_bottleneck(probs, lam=0.5, beta=100.0).tolist() == pytest.approx(
        [0.7, 0.3, 0.0]
    )


def test_no_tokens_give_zeros() -> None:
    assert expert_importance(torch.empty(0, 3), 0.5).tolist() == [0.0, 0.0, 0.0]
    assert information_bottleneck(torch.empty(0, 3), 0.5, 1.0).tolist() == [0.0, 0.0, 0.0]


def test_the_best_routed_experts_are_selected() -> None:
    scores = torch.tensor([0.1, 0.9, 0.5, 0.5])
    assert select_experts(scores, 2).tolist() == [False, True, True, False]  # tie: lower index
    routed = torch.tensor([True, False, True, True])
    assert select_experts(scores, 1, routed).tolist() == [False, False, True, False]


@pytest.mark.parametrize(("budget", "chosen"), [(-1, 0), (0, 0), (1, 1), (3, 3), (9, 3)])
def test_budgets_at_the_edges(budget: int, chosen: int) -> None:
    routed = torch.tensor([True, True, False, True])
    mask = select_experts(torch.tensor([-5.0, -1.0, 3.0, -2.0]), budget, routed)
    assert int(mask.sum()) == chosen
    assert not mask[2]  # never one that the batch did not reach


def test_experts_go_by_examples_over_those_who_use_them() -> None:
    # τ = 0.2: expert 0 is used by all three, expert 1 by the second client alone.
    weights = expert_weights(USAGE, EXAMPLES, tau=0.2)
    assert weights.T.tolist() == [[0.125, 0.375, 0.5], [0.0, 1.0, 0.0]]


def test_an_expert_used_by_nobody_gets_no_weight() -> None:
    assert expert_weights(USAGE, EXAMPLES, tau=0.4).T.tolist() == [[1, 0, 0], [0, 0, 0]]
    assert expert_weights(USAGE, torch.zeros(3), tau=0.0).eq(0).all()


def test_a_usage_equal_to_tau_qualifies() -> None:
    # 0.7 in float32 is 0.69999999, below the float64 0.7
    assert expert_weights(torch.tensor([[0.7]]), torch.tensor([5]), tau=0.7).tolist() == [[1.0]]


def test_gate_weights_go_by_preference() -> None:
    # S = {0}, {0, 1}, {0};  preferences 0.5·1, 0.3·0.5 + 0.3·2 = 0.75, 0.2·1;  |∪S| = 2
    printed = gate_weights(USAGE, IMPORTANCE, tau=0.2, normalise=False)
    assert printed.tolist() == pytest.approx([0.25, 0.375, 0.1])
    normalised = gate_weights(USAGE, IMPORTANCE, tau=0.2)
    assert normalised.tolist() == pytest.approx([0.5 / 1.45, 0.75 / 1.45, 0.2 / 1.45])


@pytest.mark.parametrize("normalise", [True, False])
def test_gates_stay_where_nobody_qualifies(normalise: bool) -> None:
    assert gate_weights(USAGE, IMPORTANCE, 0.9, normalise).tolist() == [0.0, 0.0, 0.0]
    assert gate_weights(USAGE, torch.zeros(3, 2), 0.0, normalise).tolist() == [0.0, 0.0, 0.0]


def test_one_client_has_all_the_weight() -> None:
    assert expert_weights(USAGE[:1], EXAMPLES[:1], 0.0).tolist() == [[1.0, 1.0]]
    assert gate_weights(USAGE[:1], IMPORTANCE[:1], 0.0).tolist() == [1.0]


def test_permuted_clients_permute_the_weights() -> None:
    order = [2, 0, 1]
    torch.testing.assert_close(
        gate_weights(USAGE[order], IMPORTANCE[order], 0.2),
        gate_weights(USAGE, IMPORTANCE, 0.2)[order],
    )
    torch.testing.assert_close(
        expert_weights(USAGE[order], EXAMPLES[order], 0.2),
        expert_weights(USAGE, EXAMPLES, 0.2)[order],
    )


probability = st.one_of(st.just(0.0), st.just(1.0), st.floats(0, 1, width=32))
rows = st.lists(st.lists(probability, min_size=3, max_size=3), min_size=1, max_size=4)


@settings(max_examples=100, deadline=None)
@given(rows, probability, st.sampled_from([0, 1, 10**9]))
def test_nothing_is_ever_nan(values: list[list[float]], tau: float, examples: int) -> None:
    usage = torch.tensor(values)
    assert information_bottleneck(usage, 0.5, 1.0).isfinite().all()
    sums = torch.cat(
        [
            expert_weights(usage, torch.full((len(usage),), examples), tau).sum(dim=0),
            gate_weights(usage, usage, tau).sum(dim=0, keepdim=True),
        ]
    )
    assert ((sums == 0) | ((sums - 1).abs() < 1e-5)).all()
    assert gate_weights(usage, usage, tau, normalise=False).isfinite().all()
