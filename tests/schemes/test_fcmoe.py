"""FC-MoE on two clients by hand, and its identity against the steps as the paper prints them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedmoe_app import consensus_update, importance, retention

# ‖Δ‖ = 5 and 1, so that counts of 2 and 10 make both equally important: w = 1/2, 1/2.
# Δ̄ = ([3, 4] + [−1, 0])/2 = [1, 2], ‖Δ̄‖² = 5;  ⟨Δ_1, Δ̄⟩ = 11, ⟨Δ_2, Δ̄⟩ = −1: conflict
# Δ_2^proj = [−1, 0] + (1/5)·[1, 2] = [−0.8, 0.4]
# ([3, 4] + [−0.8, 0.4])/2 = [1.1, 2.2] = (1 + κ)·Δ̄ with κ = (1/2)·(1/5) = 0.1
DELTAS = torch.tensor([[3.0, 4.0], [-1.0, 0.0]])  # [N, P]
COUNTS = torch.tensor([2, 10])


def as_printed(deltas: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, float]:
    """Steps 1 to 4 word by word in float64: the update ``[P]``, the mean ``[P]``, and κ."""
    deltas, counts = deltas.double(), counts.double()
    scores = [float(c * d.norm()) for c, d in zip(counts, deltas, strict=True)]
    weights = [score / sum(scores) for score in scores]
    mean = sum((w * d for w, d in zip(weights, deltas, strict=True)), torch.zeros_like(deltas[0]))
    update, kappa = torch.zeros_like(mean), 0.0
    for weight, delta in zip(weights, deltas, strict=True):
        dot = float(delta @ mean)
        if dot < 0:
            delta = delta - dot / float(mean @ mean) * mean
            kappa -= weight * dot / float(mean @ mean)
        update += weight * delta
    return update, mean, kappa


def random_round(seed: int, clients: int = 5, size: int = 40) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(1, 100, (clients,), generator=generator)
    return torch.randn(clients, size, generator=generator) * 1e-3, counts


def test_by_hand() -> None:
    assert importance(COUNTS, DELTAS).tolist() == [0.5, 0.5]
    assert consensus_update(DELTAS, COUNTS).tolist() == pytest.approx([1.1, 2.2])


def test_ablations() -> None:
    assert consensus_update(DELTAS, COUNTS, project=False).tolist() == pytest.approx([1.0, 2.0])
    # Weights 1/4, 3/4: Δ̄ = [0, 1], nobody conflicts (⟨Δ_2, Δ̄⟩ = 0).
    by_examples = consensus_update(DELTAS, COUNTS, weights=torch.tensor([0.25, 0.75]))
    assert by_examples.tolist() == pytest.approx([0.0, 1.0])


@pytest.mark.parametrize("seed", range(20))
def test_the_update_is_one_plus_kappa_times_the_mean(seed: int) -> None:
    deltas, counts = random_round(seed)
    printed, mean, kappa = as_printed(deltas, counts)
    update = consensus_update(deltas, counts).double()
    scale = float(printed.norm())
    assert float((update - (1 + kappa) * mean).norm()) <= 1e-6 * scale
    assert float((update - printed).norm()) <= 1e-6 * scale


def test_the_random_rounds_hold_conflicts() -> None:
    assert sum(as_printed(*random_round(seed))[2] > 0 for seed in range(20)) >= 5


def test_one_client_gives_its_own_update() -> None:
    deltas, _ = random_round(0, clients=1)
    assert torch.equal(consensus_update(deltas, torch.tensor([7])), deltas[0])


def test_identical_updates_give_that_update() -> None:
    deltas = random_round(1, clients=1)[0].expand(4, -1)
    update = consensus_update(deltas, torch.tensor([1, 5, 2, 9]))
    torch.testing.assert_close(update, deltas[0], rtol=1e-6, atol=0)


def test_permuted_clients_change_nothing() -> None:
    deltas, counts = random_round(2)
    order = [3, 0, 4, 1, 2]
    torch.testing.assert_close(
        importance(counts[order], deltas[order]), importance(counts, deltas)[order]
    )
    update = consensus_update(deltas, counts)
    assert (consensus_update(deltas[order], counts[order]) - update).norm() <= 1e-6 * update.norm()


def test_nobody_to_listen_to() -> None:
    assert importance(COUNTS, torch.zeros(2, 3)).tolist() == [0.0, 0.0]
    assert consensus_update(torch.zeros(2, 3), COUNTS).tolist() == [0.0, 0.0, 0.0]
    assert consensus_update(DELTAS, torch.zeros(2)).tolist() == [0.0, 0.0]
    assert consensus_update(torch.empty(0, 3), torch.empty(0)).tolist() == [0.0, 0.0, 0.0]


def test_a_client_that_changed_nothing_has_no_weight() -> None:
    deltas = torch.stack([DELTAS[0], torch.zeros(2)])
    assert importance(COUNTS, deltas).tolist() == [1.0, 0.0]
    assert torch.equal(consensus_update(deltas, COUNTS), DELTAS[0])


def test_rounding_error_is_no_consensus() -> None:
    # 0.3·0.7·v − 0.7·0.3·v is 0 but for float32; step 3 would blow what is left up to about 0.2·v.
    vector = torch.linspace(0.1, 1.0, 50)
    deltas = torch.stack([0.7 * vector, -0.3 * vector])
    update = consensus_update(deltas, COUNTS, weights=torch.tensor([0.3, 0.7]))
    assert 0 < update.norm() <= 1e-6


def test_filtered_retention_is_what_the_projection_removed() -> None:
    old = torch.tensor([1.0, 1.0])
    new = old + consensus_update(DELTAS, COUNTS)
    # Δ_2 − Δ_2^proj = [−1, 0] − [−0.8, 0.4] = [−0.2, −0.4]
    assert retention(DELTAS[1], old, new, "filtered").tolist() == pytest.approx([-0.2, -0.4])
    assert retention(DELTAS[0], old, new, "filtered").tolist() == [0.0, 0.0]  # no conflict


def test_paper_retention_projects_on_the_new_expert() -> None:
    # (⟨[−1, 0], [3, 4]⟩/25)·[3, 4] = −0.12·[3, 4]
    new = torch.tensor([3.0, 4.0])
    assert retention(DELTAS[1], new, new, "paper").tolist() == pytest.approx([-0.36, -0.48])


@pytest.mark.parametrize("mode", ["paper", "filtered"])
def test_retention_of_zero_vectors_is_zero(mode: str) -> None:
    zero, one = torch.zeros(2), torch.ones(2)
    assert retention(zero, zero, one, mode).tolist() == [0.0, 0.0]
    assert retention(one, zero, zero, mode).tolist() == [0.0, 0.0]


def test_an_unknown_mode_prints_the_choices() -> None:
    with pytest.raises(ValueError, match='"filter": unknown; choose one of paper, filtered'):
        retention(DELTAS[0], DELTAS[0], DELTAS[0], "filter")


numbers = st.one_of(st.just(0.0), st.floats(-(2.0**90), 2.0**90, width=32))
updates = st.lists(st.lists(numbers, min_size=3, max_size=3), min_size=1, max_size=4)


@settings(max_examples=100, deadline=None)
@given(updates, st.lists(st.integers(0, 10**12), min_size=4, max_size=4))
def test_nothing_is_ever_nan_or_longer_than_the_updates(values: list, counts: list[int]) -> None:
    deltas = torch.tensor(values)
    weights = importance(torch.tensor(counts[: len(deltas)]), deltas)
    update = consensus_update(deltas, torch.tensor(counts[: len(deltas)]))
    bound = float(weights.double() @ deltas.double().norm(dim=1))
    assert float(weights.sum()) == pytest.approx(1.0) or weights.eq(0).all()
    assert float(update.double().norm()) <= bound * (1 + 1e-5) + 1e-40  # float32 has no less
    for mode in ("paper", "filtered"):
        kept = retention(deltas[0], torch.zeros(3), deltas[-1], mode).double()
        assert float(kept.norm()) <= float(deltas[0].double().norm()) * (1 + 1e-5) + 1e-40
