"""The mathematics of a split: groups, routers, load, and least squares, on numbers by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedmoe_app.moe.carve.plan import Plan, Sizes
from fedmoe_app.moe.carve.split import (
    SHARED,
    Layout,
    co_activated,
    lay_out,
    levelled,
    refitted,
    regressed_router,
    relative_error,
    routed,
    seen_by_down,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_neurons_that_are_strong_on_the_same_tokens_go_together() -> None:
    # 16 neurons: a token's strongest eighth (2 of them) are always two of the same four.
    label = [0, 1, 2, 3] * 4
    weight = torch.zeros(240, 16)
    pairs = [[n for n in range(16) if label[n] == g] for g in range(4)]
    for t in range(240):
        group = pairs[t % 4]
        weight[t, group[t // 4 % 4]] = weight[t, group[(t // 4 + 1 + t // 16 % 3) % 4]] = 1.0
    best = 0.0
    for seed in range(5):  # k-means finds a local optimum: of some starts one is this one
        found = co_activated(weight, 4, generator(seed)).tolist()
        together = [found[a] == found[b] for a in range(16) for b in range(a) if a % 4 == b % 4]
        best = max(best, sum(together) / len(together))
    assert best == 1.0


@given(groups=st.integers(2, 5), size=st.integers(1, 6), seed=st.integers(0, 100))
def test_groups_are_of_equal_size(groups: int, size: int, seed: int) -> None:
    weight = torch.rand(30, groups * size, generator=generator(seed))
    label = co_activated(weight, groups, generator(seed))
    assert torch.bincount(label, minlength=groups).tolist() == [size] * groups


def test_the_shared_expert_takes_the_neurons_with_the_largest_mean_share() -> None:
    # Token 0 is a hundred times the others and uses neuron 3; shares count, not sizes.
    act = torch.ones(50, 6)
    act[:, 1] = 4.0
    act[:, 4] = -3.0
    act[0] *= 100
    act[0, 3] = 1000.0
    x = torch.randn(50, 4, generator=generator())
    down = torch.eye(4, 6)
    down[0] = 1.0  # neurons 4 and 5, too, have a column
    plan, sizes = Plan(experts=2, top_k=1, shared=2), Sizes(0, 2, 2, 2)
    layout = lay_out(x, act, down, plan, sizes)
    assert layout.neurons(SHARED).tolist() == [1, 4]
    assert sorted((*layout.neurons(0).tolist(), *layout.neurons(1).tolist())) == [0, 2, 3, 5]
    logits = x @ layout.router.T
    assert float(logits.std()) == pytest.approx(plan.router_scale, rel=1e-4)


def test_the_router_is_the_ridge_regression_of_what_experts_would_add() -> None:
    x = torch.randn(400, 5, generator=generator())
    wanted = torch.tensor([[1.0, 0, 0, 0, 0], [0, -2.0, 0, 0.5, 0]])
    added = x @ wanted.T
    top = added.flatten().sort().values[int(0.99 * added.numel())]
    kept = added.clamp_max(top).double()
    kept = kept - kept.mean(0)
    xd = x.double()
    ridge = 0.01 * (xd.T @ xd).diagonal().mean()
    # The same minimum as ordinary least squares on the data with sqrt(ridge) I below it.
    longer = torch.cat([xd, ridge.sqrt() * torch.eye(5, dtype=torch.double)])
    target = torch.cat([kept, torch.zeros(5, 2, dtype=torch.double)])
    expected = torch.linalg.lstsq(longer, target).solution.T
    assert torch.allclose(regressed_router(x, added).double(), expected, atol=1e-5)


def test_the_shift_evens_the_load() -> None:
    # All inputs share a large mean, and expert 0 wins everywhere.
    x = torch.randn(2000, 6, generator=generator()) * 0.3 + torch.tensor([3.0, 0, 0, 0, 0, 0])
    router = torch.randn(4, 6, generator=generator(1)) * 0.2
    router[0, 0] += 1.0

    def load(router: torch.Tensor) -> torch.Tensor:
        return (routed(x, router, 2) > 0).float().mean(0) * 4 / 2

    assert float(load(router)[0]) == 2.0  # on every token
    after = load(levelled(x, router, 2))
    assert float((after - 1).abs().max()) < 0.05


def test_weights_of_the_chosen_sum_to_one() -> None:
    x = torch.tensor([[1.0, 0.0]])
    router = torch.tensor([[0.0, 0.0], [torch.log(torch.tensor(3.0)), 0.0], [-5.0, 0.0]])
    assert torch.allclose(routed(x, router, 2), torch.tensor([[0.25, 0.75, 0.0]]))


def test_equal_weights_of_all_experts_are_the_dense_layer() -> None:
    act = torch.randn(7, 6, generator=generator())
    layout = Layout(torch.tensor([SHARED, 0, 1, SHARED, 1, 0]), torch.zeros(2, 4))
    weights = routed(torch.randn(7, 4), layout.router, 2)
    assert torch.equal(seen_by_down(act, layout, weights, 2), act)


def test_left_out_experts_are_not_seen() -> None:
    act = torch.ones(1, 4)
    layout = Layout(torch.tensor([SHARED, 0, 1, 0]), torch.zeros(2, 4))
    weights = torch.tensor([[0.0, 1.0]])
    assert seen_by_down(act, layout, weights, 1).tolist() == [[1.0, 0.0, 1.0, 0.0]]


def test_the_refit_without_a_pull_is_least_squares() -> None:
    seen = torch.randn(60, 5, generator=generator())
    target = torch.randn(60, 3, generator=generator(1))
    trust = 1 / target.norm(dim=1, keepdim=True)
    expected = torch.linalg.lstsq(seen * trust, target * trust).solution.T
    found = refitted(seen, target, torch.zeros(3, 5), ridge=0.0)
    assert torch.allclose(found, expected, atol=1e-4)


def test_the_refit_keeps_weights_that_are_right_and_goes_to_them_with_the_ridge() -> None:
    seen = torch.randn(60, 5, generator=generator())
    down = torch.randn(3, 5, generator=generator(1))
    assert torch.allclose(refitted(seen, seen @ down.T, down, 0.01), down, atol=1e-4)
    other = torch.randn(60, 3, generator=generator(2))
    assert torch.allclose(refitted(seen, other, down, 1e6), down, atol=1e-3)


def test_the_error_is_a_mean_of_ratios() -> None:
    target = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    output = torch.tensor([[3.0, 3.0], [1.0, 1.0]])
    assert relative_error(output, target) == pytest.approx((1 / 5 + 1) / 2)
