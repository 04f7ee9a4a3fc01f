"""Folding with hand-computed numbers: global values are 1, clients change them by 1, 2 or 6."""

import torch

from fedmoe_app import (
    BlockUpdates,
    ClientUpdate,
    FedAvg,
    FedMoE,
    ModelShape,
    ModelState,
    Scheme,
    Server,
    Weighted,
)
from fedmoe_app.schemes.sums import weighted_sum
from tests.toy import fold, toy_state, toy_update

ALL = [(layer, expert) for layer in range(2) for expert in range(3)]


class FirstRow(Weighted):
    def weights(self, updates: BlockUpdates) -> torch.Tensor:
        return torch.tensor([[1.0, 0.0, 0.0]])


class FirstRowOnly(Scheme):
    def server(self, model: ModelShape) -> Server:
        return Server(gates=FirstRow())


def run(scheme: Scheme, updates: list[ClientUpdate]) -> ModelState:
    return fold(toy_state(), updates, scheme)


def assert_same(left: ModelState, right: ModelState) -> None:
    pairs = zip(left.named(), right.named(), strict=True)
    assert all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def test_fedavg_weighs_by_examples() -> None:
    state = run(FedAvg(), [toy_update(0, 1, 2.0, ALL), toy_update(1, 3, 6.0, ALL)])
    # 1 + (1/4)·2 + (3/4)·6 = 6
    assert all(torch.equal(t, torch.full_like(t, 6.0)) for _, t in state.named())


def test_fedavg_counts_a_missing_expert_as_unchanged() -> None:
    updates = [toy_update(0, 1, 2.0, [(0, 0)]), toy_update(1, 3, 6.0, [(1, 2)])]
    experts = run(FedAvg(), updates).experts
    assert experts[0, 0]["up"].tolist() == [1.5, 1.5]  # 1 + (1/4)·2
    assert experts[1, 2]["down"].tolist() == [5.5]  # 1 + (3/4)·6


def test_fedmoe_averages_over_those_who_trained() -> None:
    updates = [
        toy_update(0, 1, 2.0, [(0, 0)]),
        toy_update(1, 3, 6.0, [(0, 0), (1, 2)]),
        toy_update(2, 4, 1.0, []),
    ]
    state = run(FedMoE(), updates)
    assert state.experts[0, 0]["up"].tolist() == [6.0, 6.0]  # 1 + (1/4)·2 + (3/4)·6
    assert state.experts[1, 2]["down"].tolist() == [7.0]  # 1 + 6
    # Gates and dense tensors go by n_i over all: 1 + (2 + 18 + 4)/8 = 4
    assert state.dense["head.weight"].tolist() == [4.0, 4.0]
    assert state.gates[1]["weight"].eq(4.0).all()


def test_an_expert_that_nobody_trained_stays() -> None:
    for scheme in (FedAvg(), FedMoE()):
        state = run(scheme, [toy_update(0, 5, 3.0, [(0, 1)])])
        assert state.experts[1, 1]["up"].tolist() == [1.0, 1.0]


def test_one_client_gives_its_own_update() -> None:
    for scheme in (FedAvg(), FedMoE()):
        state = run(scheme, [toy_update(0, 7, 3.0, ALL)])
        assert all(torch.equal(t, torch.full_like(t, 4.0)) for _, t in state.named())


def test_fedmoe_is_fedavg_when_everybody_trains_everything() -> None:
    updates = [toy_update(0, 2, 0.3, ALL), toy_update(1, 5, -0.7, ALL)]
    for (_, a), (_, b) in zip(
        run(FedAvg(), updates).named(), run(FedMoE(), updates).named(), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_the_old_state_is_not_changed() -> None:
    state = toy_state()
    updates = [toy_update(0, 1, 2.0, ALL)]
    fold(state, updates, FedAvg())
    assert_same(state, toy_state())


def test_weighted_sum_of_rows() -> None:
    weights = torch.tensor([[1.0, 0.0], [0.0, 0.5]])  # [N, E]
    deltas = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [8.0, 10.0]]])  # [N, E, H]
    assert weighted_sum(weights, deltas).tolist() == [[1.0, 2.0], [4.0, 5.0]]


def test_a_scheme_may_weigh_the_rows_of_a_gate() -> None:
    gate = run(FirstRowOnly(), [toy_update(0, 1, 2.0, ALL)]).gates[0]["weight"]
    assert gate.tolist() == [[3.0, 3.0], [1.0, 1.0], [1.0, 1.0]]
