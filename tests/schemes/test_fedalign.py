"""FedAlign-MoE's gates on two clients by hand, and the gradient of the regulariser."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedmoe_app import consistency_weights, gate_regulariser, routing_reference

# mean prob = [0.6, 0.4];  o = [[0.48, 0.08], [0.24, 0.24]];  s = o·m = [[0.288, 0], [0.024, 0.072]]
# ω = [[12/13, 0], [1/13, 1]]
PROB = torch.tensor([[0.8, 0.2], [0.4, 0.6]])  # [N, E]
MARGIN = torch.tensor([[0.6, 0.0], [0.1, 0.3]])  # [N, E]

PROBS = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]])  # [T, E]
REFERENCE = torch.tensor([0.5, 0.3, 0.2])  # [E]
OVERLAP = torch.full((3,), 0.1)  # at η = 0.1 this makes a(e) = sigmoid(0) = 1/2


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def regulariser(probs: Tensor, reference: Tensor = REFERENCE, kl: str = "pointwise") -> Tensor:
    return gate_regulariser(probs, reference, OVERLAP, top_k=1, eta=0.1, kl=kl)


def regulariser_of_one_expert(p: float, kl: str) -> Tensor:
    return gate_regulariser(torch.tensor([[p]]), torch.tensor([0.5]), torch.zeros(1), 1, 0.0, kl)


def test_consistency_weights_by_hand() -> None:
    weights = consistency_weights(PROB, MARGIN)
    torch.testing.assert_close(weights, torch.tensor([[12 / 13, 0.0], [1 / 13, 1.0]]))
    assert consistency_weights(PROB, MARGIN, uniform=True).eq(0.5).all()


def test_reference_by_hand() -> None:
    # [12/13·0.8 + 1/13·0.4, 0.6] = [10/13, 7.8/13], divided by their sum
    torch.testing.assert_close(routing_reference(PROB, MARGIN), torch.tensor([10, 7.8]) / 17.8)
    torch.testing.assert_close(
        routing_reference(PROB, MARGIN, uniform=True), torch.tensor([0.6, 0.4])
    )


def test_without_any_margin_the_overlap_weighs() -> None:
    # o_i/Σ_j o_j = prob_i/Σ_j prob_j
    weights = consistency_weights(PROB, torch.zeros(2, 2))
    torch.testing.assert_close(weights, torch.tensor([[2 / 3, 1 / 4], [1 / 3, 3 / 4]]))
    equal = consistency_weights(PROB, torch.full((2, 2), 0.1))
    torch.testing.assert_close(weights, equal)


def test_an_expert_that_nobody_uses_and_a_client_without_tokens() -> None:
    prob = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    weights = consistency_weights(prob, torch.zeros(2, 2))
    assert weights.tolist() == [[1.0, 0.0], [0.0, 0.0]]
    assert routing_reference(prob, torch.zeros(2, 2)).tolist() == [1.0, 0.0]
    assert routing_reference(torch.zeros(2, 2), torch.zeros(2, 2)).tolist() == [0.0, 0.0]


def test_regulariser_by_hand() -> None:
    # Expert 0 is the reference's best; token 0 adds none, token 1 adds expert 2.
    # 0.7·ln(1.4) = 0.235531;  0.1·ln(0.2) = −0.160944;  0.6·ln(3) = 0.659167;  a = 1/2, T = 2
    assert regulariser(PROBS).item() == pytest.approx(0.733754 / 4, abs=1e-6)
    # plus 0.3·ln(0.6) = −0.153248;  0.9·ln(1.8) = 0.529008;  0.4·ln(0.5) = −0.277259
    assert regulariser(PROBS, kl="bernoulli").item() == pytest.approx(0.832255 / 4, abs=1e-6)


def test_temperature_and_ablation_of_the_adaptive_weight() -> None:
    arguments = (PROBS, REFERENCE, torch.zeros(3), 1, 0.1, "pointwise")
    plain = gate_regulariser(*arguments, adaptive=False).item()
    assert plain == pytest.approx(0.733754 / 2, abs=1e-6)
    assert gate_regulariser(*arguments).item() == pytest.approx(plain * sigmoid(-0.1))
    sharp = gate_regulariser(*arguments, temperature=0.05).item()
    assert sharp == pytest.approx(plain * sigmoid(-2))


def test_bernoulli_is_least_at_the_reference_and_pointwise_below_it() -> None:
    grid = torch.linspace(0.01, 0.99, 99)
    for kl, least in (("bernoulli", 0.50), ("pointwise", 0.18)):  # 0.5 and 0.5/2.718… = 0.184
        losses = torch.stack([regulariser_of_one_expert(float(p), kl) for p in grid])
        assert float(grid[int(losses.argmin())]) == pytest.approx(least)


@pytest.mark.parametrize("kl", ["pointwise", "bernoulli"])
@pytest.mark.parametrize("top_k", [1, 2, 9])
def test_gradient_against_finite_differences(kl: str, top_k: int) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([0.4, 0.3, 0.3, 0.0], dtype=torch.float64)
    overlap = torch.tensor([0.9, 0.1, 0.0, 0.4], dtype=torch.float64)

    def loss(logits: Tensor) -> Tensor:
        return gate_regulariser(logits.softmax(dim=1), reference, overlap, top_k, 0.1, kl)

    assert torch.autograd.gradcheck(loss, (logits,))


@pytest.mark.parametrize("kl", ["pointwise", "bernoulli"])
def test_zeros_and_ones_have_finite_values_and_gradients(kl: str) -> None:
    probs = torch.eye(3).requires_grad_()
    for reference in (torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 0.5, 0.5])):
        loss = gate_regulariser(probs, reference, OVERLAP, 3, 0.1, kl)
        (gradient,) = torch.autograd.grad(loss, probs)
        assert loss.isfinite() and loss > 0 and gradient.isfinite().all()


def test_no_reference_or_no_tokens_give_zero_with_a_graph() -> None:
    for probs, reference in ((PROBS, torch.zeros(3)), (PROBS[:0], REFERENCE)):
        leaf = probs.clone().requires_grad_()
        loss = regulariser(leaf, reference)
        loss.backward()
        assert loss.item() == 0 and leaf.grad is not None and not leaf.grad.any()


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match='kl = "full": unknown; choose one of pointwise, bern'):
        regulariser(PROBS, kl="full")
    with pytest.raises(ValueError, match="temperature = 0: must be above 0"):
        gate_regulariser(PROBS, REFERENCE, OVERLAP, 1, 0.1, "bernoulli", temperature=0)


def test_permuted_clients_permute_the_weights() -> None:
    order, generator = [2, 0, 3, 1], torch.Generator().manual_seed(3)
    prob = torch.randn(4, 6, generator=generator).softmax(dim=1)
    margin = torch.rand(4, 6, generator=generator)
    torch.testing.assert_close(
        consistency_weights(prob[order], margin[order]), consistency_weights(prob, margin)[order]
    )
    torch.testing.assert_close(
        routing_reference(prob[order], margin[order]), routing_reference(prob, margin)
    )


share = st.one_of(st.just(0.0), st.just(1.0), st.floats(0, 1, width=32))
tables = st.lists(st.lists(share, min_size=3, max_size=3), min_size=4, max_size=4)


@settings(max_examples=100, deadline=None)
@given(tables, tables, st.integers(1, 4))
def test_gates_never_give_nan(prob: list, margin: list, clients: int) -> None:
    shares, margins = torch.tensor(prob)[:clients], torch.tensor(margin)[:clients]
    reference = routing_reference(shares, margins)
    sums = torch.cat([consistency_weights(shares, margins).sum(dim=0), reference.sum()[None]])
    assert ((sums == 0) | ((sums - 1).abs() < 1e-5)).all()
    leaf = shares.clone().requires_grad_()
    for kl in ("pointwise", "bernoulli"):
        loss = gate_regulariser(leaf, reference, shares[0], 2, 0.1, kl)
        assert loss.isfinite() and torch.autograd.grad(loss, leaf)[0].isfinite().all()
