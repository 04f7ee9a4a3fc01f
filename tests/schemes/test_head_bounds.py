"""What one client can do to the sums of a head: factors by hand, and honest sums left alone."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import one_hot

from fedmoe_app.schemes.closedhead import FeatureSums, Sums, lda_head
from fedmoe_app.schemes.views import Kept, Limits

SUMS = FeatureSums("score")
Numbers = Mapping[str, Tensor]


def limits(
    clients: int, share: float = 2, length: float = 2, spread: float = math.inf, **said: float
) -> Limits:
    return Limits(share, length, spread, tuple(said.get(f"c{i}", math.inf) for i in range(clients)))


def sent(features: Tensor, labels: Tensor, classes: int) -> dict[str, Tensor]:
    """What a client sends of its examples."""
    right = one_hot(labels, classes).double()
    row, column = torch.triu_indices(features.shape[1], features.shape[1])
    f = features.double()
    found = {
        "counts": right.sum(0),
        "features": right.T @ f,
        "moment": (f.T @ f)[row, column],
    }
    return {name: tensor.float() for name, tensor in found.items()}


def total(parts: Sequence[Numbers]) -> Sums:
    counts, features, upper = (
        torch.stack([part[name].double() for part in parts]).sum(dim=0)
        for name in ("counts", "features", "moment")
    )
    dims = features.shape[1]
    row, column = torch.triu_indices(dims, dims)
    moment = torch.zeros(dims, dims, dtype=torch.float64)
    moment[row, column] = moment[column, row] = upper
    return Sums(counts, features, moment)


# Two classes and two features: n of (1, 0) in class 0 alone are n, [n, 0] and [n, 0, 0].
def alone(n: float, length: float = 1.0) -> dict[str, Tensor]:
    return {
        "counts": torch.tensor([n, 0.0]),
        "features": torch.tensor([[n * length, 0.0], [0.0, 0.0]]),
        "moment": torch.tensor([n * length**2, 0.0, 0.0]),
    }


# -- by hand -----------------------------------------------------------------------------------


def test_a_client_counts_for_two_medians_and_its_means_stay() -> None:
    found = SUMS.bounded([alone(10), alone(10), alone(10), alone(80)], limits(4))
    assert [kept.factor for kept in found] == [1, 1, 1, 0.25]
    assert found[3].numbers["counts"].tolist() == [20, 0]
    assert found[3].numbers["features"].tolist() == [[20, 0], [0, 0]]
    assert found[3].numbers["moment"].tolist() == [20, 0, 0]


def test_a_client_counts_for_no_more_than_it_trained_on() -> None:
    found = SUMS.bounded([alone(10), alone(10), alone(10)], limits(3, c1=5, c2=10))
    assert [float(kept.numbers["counts"].sum()) for kept in found] == [10, 5, 10]


def test_features_are_no_longer_than_two_medians() -> None:
    found = SUMS.bounded([alone(10), alone(10), alone(10), alone(10, length=8)], limits(4))
    assert [kept.factor for kept in found] == [1, 1, 1, 0.25]
    assert found[3].numbers["counts"].tolist() == [10, 0]
    assert found[3].numbers["features"].tolist() == [[20, 0], [0, 0]]
    assert found[3].numbers["moment"].tolist() == [40, 0, 0]


def test_the_mean_of_a_class_of_one_example_is_no_longer_either() -> None:
    """99 examples (0, 1) of class 0 and one (4, 0) of class 1: r² = (99 + 16)/100, within 2."""
    liar = {
        "counts": torch.tensor([99.0, 1.0]),
        "features": torch.tensor([[0.0, 99.0], [4.0, 0.0]]),
        "moment": torch.tensor([16.0, 0.0, 99.0]),
    }
    assert SUMS.impossible(liar) == ""
    found = SUMS.bounded([alone(100), alone(100), liar], limits(3))[2]
    # The median of 1, 1 and √1.15 is 1.
    assert found.factor == 0.5
    assert found.numbers["features"].tolist() == [[0, 99], [2, 0]]
    assert torch.equal(found.numbers["counts"], liar["counts"])
    assert found.numbers["moment"].tolist() == [4, 0, 99]


def test_all_three_at_once() -> None:
    """80 examples of length 8: a quarter of the examples, at a quarter of their length."""
    found = SUMS.bounded([alone(10), alone(10), alone(10), alone(80, length=8)], limits(4))
    assert found[3].factor == 0.25
    assert found[3].numbers["counts"].tolist() == [20, 0]
    assert found[3].numbers["features"].tolist() == [[40, 0], [0, 0]]
    assert found[3].numbers["moment"].tolist() == [80, 0, 0]


# -- who is left alone -------------------------------------------------------------------------


@pytest.mark.parametrize("clients", [1, 2])
def test_fewer_than_three_clients_have_no_majority(clients: int) -> None:
    parts = [alone(10), alone(1e6, length=1e3)][-clients:]
    assert SUMS.bounded(parts, limits(clients)) == [Kept(part) for part in parts]


def test_a_client_without_examples_is_no_median() -> None:
    """Else two of three without any would make the bound of the third 0."""
    parts = [alone(0), alone(0), alone(10), alone(10), alone(15)]
    found = SUMS.bounded(parts, limits(5))
    assert all(kept.numbers is part for kept, part in zip(found, parts, strict=True))


def test_one_class_a_client_is_left_alone() -> None:
    generator = torch.Generator().manual_seed(3)
    parts = [
        sent(5 + torch.randn(20, 6, generator=generator), torch.full((20,), label), 4)
        for label in range(4)
    ]
    found = SUMS.bounded(parts, limits(4))
    assert all(kept.numbers is part for kept, part in zip(found, parts, strict=True))


@given(
    sizes=st.lists(st.integers(10, 20), min_size=1, max_size=6),
    classes=st.integers(2, 4),
    offset=st.floats(-3, 3),
    seed=st.integers(0, 2**16),
)
def test_honest_sums_are_the_same_objects(
    sizes: list[int], classes: int, offset: float, seed: int
) -> None:
    """Of features of one length, as a norm before the head makes them, in any split."""
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for size in sizes:
        f = offset + torch.randn(size, 5, generator=generator)
        f = 3 * f / torch.linalg.vector_norm(f, dim=1, keepdim=True)
        parts.append(sent(f, torch.randint(0, classes, (size,), generator=generator), classes))
    assert all(SUMS.impossible(part) == "" for part in parts)
    found = SUMS.bounded(parts, limits(len(parts)))
    assert all(kept.numbers is part for kept, part in zip(found, parts, strict=True))


@given(
    sizes=st.lists(st.integers(1, 1000), min_size=3, max_size=6),
    lengths=st.lists(st.floats(0.01, 100), min_size=6, max_size=6),
    seed=st.integers(0, 2**16),
)
def test_nobody_is_beyond_the_bounds_afterwards(
    sizes: list[int], lengths: list[float], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for size, length in zip(sizes, lengths, strict=False):
        f = length * torch.randn(size, 3, generator=generator)
        parts.append(sent(f, torch.randint(0, 3, (size,), generator=generator), 3))
    lengths_of = [float((p["moment"][[0, 3, 5]].sum() / p["counts"].sum()).sqrt()) for p in parts]
    most, longest = (2 * statistics.median(each) for each in (sizes, lengths_of))
    for kept in SUMS.bounded(parts, limits(len(parts))):
        own = {name: tensor.double() for name, tensor in kept.numbers.items()}
        n = float(own["counts"].sum())
        assert n <= most * 1.0001
        assert float((own["moment"][[0, 3, 5]].sum() / n).sqrt()) <= longest * 1.0001
        means = own["features"].norm(dim=1) / own["counts"].where(own["counts"] > 0, 1.0)
        assert float(means.max()) <= longest * 1.0001
        # What is left are still sums that examples give, each with a weight.
        squares = own["features"].square().sum(dim=1) / own["counts"].where(own["counts"] > 0, 1.0)
        assert float(squares.sum()) <= 1.0001 * float(own["moment"][[0, 3, 5]].sum())


# -- what an attack comes to -------------------------------------------------------------------


def test_sums_of_ten_thousand_times_the_size_under_other_labels() -> None:
    """One of ten: alone it decides on the head, bounded it has two of eleven parts of a say."""
    generator = torch.Generator().manual_seed(0)
    means = 3 * torch.randn(4, 16, generator=generator)

    def client() -> tuple[Tensor, Tensor]:
        labels = torch.randint(0, 4, (100,), generator=generator)
        return means[labels] + torch.randn(100, 16, generator=generator), labels

    clients = [client() for _ in range(10)]
    parts = [sent(f, labels, 4) for f, labels in clients]
    f, labels = clients[0]
    parts[0] = {name: 1e4 * tensor for name, tensor in sent(f, (labels + 1) % 4, 4).items()}
    assert SUMS.impossible(parts[0]) == ""

    def accuracy(numbers: Sequence[Numbers]) -> float:
        head = lda_head(total(numbers), 0.1, True)
        assert head.bias is not None
        right = [
            (f.double() @ head.weight.T + head.bias).argmax(1) == labels
            for f, labels in clients[1:]
        ]
        return float(torch.cat(right).double().mean())

    assert accuracy(parts) < 0.1
    assert accuracy([kept.numbers for kept in SUMS.bounded(parts, limits(10))]) > 0.95


def test_a_scatter_within_classes_is_not_negative_in_any_direction() -> None:
    """‖s‖² = 0.98 is below tr(S) = 1, and the minors of S fit: yet along (1, 1) S has 0.5 only."""
    lie = {
        "counts": torch.tensor([1.0]),
        "features": torch.tensor([[0.7, 0.7]]),
        "moment": torch.tensor([0.5, 0.0, 0.5]),
    }
    assert SUMS.impossible(lie) == "a scatter within classes that is negative in some direction"
    true = lie | {"moment": torch.tensor([0.5, 0.49, 0.5])}
    assert SUMS.impossible(true) == ""


# -- wrong labels ------------------------------------------------------------------------------


def around(mean: Sequence[float], n: int, label: int = 0, width: float = 1.0) -> dict[str, Tensor]:
    """Sums of n examples of one class around a mean, with a scatter of (n − 1)·width² an axis."""
    centre = torch.tensor(mean)
    counts, features = torch.zeros(2), torch.zeros(2, 2)
    counts[label], features[label] = n, n * centre
    moment = n * torch.outer(centre, centre) + (n - 1) * width**2 * torch.eye(2)
    return {"counts": counts, "features": features, "moment": moment[[0, 0, 1], [0, 1, 1]]}


def test_a_mean_far_from_those_of_others_is_drawn_to_them() -> None:
    """Four means at (1, 0) and one at (1, 9), of 32 each: W = I and D̂ = 2, by any shrinkage.

    The geometric median is where four of five are. Bound 2·√(2·(1/32 + 1/128)) = √(5/16), and the
    scatter within the class stays what it was.
    """
    parts = [*(around([1, 0], 32) for _ in range(4)), around([1, 9], 32)]
    found = SUMS.bounded(parts, limits(5, length=100, spread=2))
    far = math.sqrt(5 / 16)
    assert [kept.factor for kept in found] == [1, 1, 1, 1, pytest.approx(far / 9, rel=1e-3)]
    wanted = around([1, far], 32)
    for name, tensor in found[4].numbers.items():
        torch.testing.assert_close(tensor, wanted[name], rtol=1e-3, atol=1e-2)
    assert SUMS.impossible(found[4].numbers) == ""


def test_where_texts_differ_between_clients_the_bound_is_wider() -> None:
    """Means at −4, −2, 0, 2 and 4 are all far beyond the sampling error, and none is alone."""
    parts = [around([10, place], 32) for place in (-4.0, -2.0, 0.0, 2.0, 4.0)]
    found = SUMS.bounded(parts, limits(5, spread=2))
    assert all(kept.numbers is part for kept, part in zip(found, parts, strict=True))


def test_two_clients_with_a_class_are_no_majority() -> None:
    parts = [around([5, 0], 32), around([5, 5], 32), around([5, 1], 32, label=1)]
    found = SUMS.bounded(parts, limits(3, spread=1))
    assert all(kept.numbers is part for kept, part in zip(found, parts, strict=True))


def test_examples_that_are_all_alike_have_no_sampling_error() -> None:
    """W = 0: nothing can be said of distances, and nothing is done."""
    parts = [alone(10, length) for length in (1.0, 1.1, 1.2, 1.9)]
    found = SUMS.bounded(parts, limits(4, spread=1))
    assert all(kept.numbers is part for kept, part in zip(found, parts, strict=True))


def test_a_scatter_beyond_four_medians_shrinks_and_the_means_stay() -> None:
    parts = [*(around([9, 0], 33) for _ in range(3)), around([9, 0], 33, width=4)]
    found = SUMS.bounded(parts, limits(4, spread=2))
    assert [kept.factor for kept in found] == [1, 1, 1, pytest.approx(4 / 16)]
    for name, tensor in around([9, 0], 33, width=2).items():
        torch.testing.assert_close(found[3].numbers[name], tensor)


@pytest.mark.parametrize("alpha", [0.1, 1.0, 10.0])
def test_honest_sums_of_any_label_skew_are_left_alone(alpha: float) -> None:
    """Five classes, features of four widths, six clients with as many examples; 200 draws.

    The bound is one of chance: among enough honest clients one is beyond it, by little. In 1,500
    draws of each skew that was one client, and 0.97 of the way to its mean was left.
    """
    factors = []
    for seed in range(200):
        parts = skewed(seed, alpha)
        found = SUMS.bounded(parts, limits(6, spread=4))
        factors += [kept.factor for kept in found]
        assert all(
            kept.numbers is part
            for kept, part in zip(found, parts, strict=True)
            if kept.factor == 1
        )
    assert statistics.mean(factor == 1 for factor in factors) > 0.999
    assert min(factors) > 0.9


def skewed(seed: int, alpha: float) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    means = 3 + torch.randn(5, 4, generator=generator)
    parts = []
    for _ in range(6):
        shares = torch.rand(5, generator=generator) ** (1 / alpha) + 1e-9
        labels = torch.multinomial(shares, 60, True, generator=generator)
        noise = torch.randn(60, 4, generator=generator) * torch.tensor([2.0, 1.0, 0.5, 0.1])
        parts.append(sent(means[labels] + noise, labels, 5))
    return parts


def test_names_of_classes_that_are_turned_do_not_matter() -> None:
    """One of six, within all sizes: with the bound the head is that of the others, nearly."""
    generator = torch.Generator().manual_seed(1)
    means = 5 + torch.randn(3, 8, generator=generator)
    clients = []
    for _ in range(6):
        labels = torch.randint(0, 3, (100,), generator=generator)
        clients.append((means[labels] + 0.5 * torch.randn(100, 8, generator=generator), labels))
    honest = [sent(f, labels, 3) for f, labels in clients]
    f, labels = clients[0]
    parts = [sent(f, (labels + 1) % 3, 3), *honest[1:]]
    wanted = total(honest[1:]).features / total(honest[1:]).counts[:, None]

    def error(numbers: Sequence[Numbers]) -> float:
        pooled = total(numbers)
        return float((pooled.features / pooled.counts[:, None] - wanted).norm())

    assert error(parts) > 1
    kept = SUMS.bounded(parts, limits(6, spread=4))
    assert [each.factor < 1 for each in kept] == [True, False, False, False, False, False]
    assert error([each.numbers for each in kept]) < 0.35
