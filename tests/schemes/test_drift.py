"""SCAFFOLD, FedDyn, FedNova and q-FedAvg, by hand and by identities."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fedmoe_app import FedAvg, LocalStep, ModelState, Now, make_scheme
from fedmoe_app.schemes.equal import Equal
from fedmoe_app.schemes.feddyn import Dual, Dynamic
from fedmoe_app.schemes.fednova import ByStep, FedNova
from fedmoe_app.schemes.qfedavg import Fair, QFedAvg, ReceivedLoss, SquaredChange
from fedmoe_app.schemes.scaffold import C, Control, ControlVariate
from fedmoe_app.tasks.base import Score
from tests.aggregation.test_store import updates
from tests.conftest import make_config
from tests.schemes.parts_at_work import info, reply, result_of, trained, walked
from tests.toy import assert_same, fold_toy

ONE = {"w": torch.ones(1)}


def step(value: float, **others: object) -> LocalStep:
    parameter = torch.tensor([value], requires_grad=True)
    return replace(LocalStep({"w": parameter}, {"w": torch.zeros(1)}), **others)


def gradient_of(part: ControlVariate | Dynamic, at: LocalStep) -> float:
    loss = part.loss(at)
    assert loss is not None
    loss.backward()
    found = at.parameters["w"].grad
    assert found is not None
    return float(found)


# -- SCAFFOLD ----------------------------------------------------------------------------------


def test_the_gradient_is_corrected_by_c_less_c_i() -> None:
    kept = {"w": torch.tensor([0.25])}
    assert gradient_of(ControlVariate(), step(7.0, told={C: ONE}, kept=kept)) == 0.75
    assert gradient_of(ControlVariate(), step(7.0, told={C: ONE})) == 1.0
    assert ControlVariate().loss(step(7.0)) is None  # a first round


def test_c_i_becomes_the_mean_gradient_and_its_change_is_sent() -> None:
    part, other = ControlVariate(), {"other": torch.ones(2)}
    done = trained(-0.2, gradient=2.0, kept={"w": torch.tensor([0.5])} | other)
    assert part.of_update(done)["w"].tolist() == [1.5]
    assert part.keep(done)["w"].tolist() == [2.0]
    assert part.keep(done)["other"].tolist() == [1.0, 1.0]  # it did not train that


def test_with_sgd_the_mean_gradient_is_option_ii_of_the_paper() -> None:
    """c_i − c + (received − local)/(K·η), for any gradients."""
    c, own, lr = 0.3, -0.4, 0.1
    gradients = torch.randn(5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    local = -lr * sum(float(g) - own + c for g in gradients)
    assert own - c - local / (len(gradients) * lr) == pytest.approx(float(gradients.mean()))


def test_c_moves_by_what_was_sent_over_all_clients() -> None:
    part = Control(population=10)
    now = Now(ONE, ONE, info(2, ControlVariate__w=[1.5, 0.5]))
    change, state = part.step(now, part.init(ONE))
    assert change == ONE
    assert state["w"].tolist() == pytest.approx([0.2])
    assert part.tell(now, state)[C] == state


# -- FedDyn ------------------------------------------------------------------------------------


def test_the_regulariser_and_its_state() -> None:
    part = Dynamic(alpha=0.5)
    # α·(θ − received) − g_i
    assert gradient_of(part, step(3.0, kept=ONE)) == pytest.approx(0.5 * 3 - 1)
    assert gradient_of(part, step(3.0)) == pytest.approx(1.5)
    assert part.keep(trained(4.0, kept=ONE))["w"].tolist() == [-1.0]  # 1 − 0.5·4
    assert part.keep(trained(4.0))["w"].tolist() == [-2.0]


def test_the_server_moves_by_h() -> None:
    # α = 0.5, two of four clients. Δ̄ = 1: h = −0.5·2/4 = −0.25, θ moves by 1 + 0.25/0.5.
    # Then Δ̄ = 0: h stays, θ moves by 0.5.
    assert walked(Dual(0.5, 4), [1.0, 0.0], clients=2) == pytest.approx([1.5, 0.5])


def test_where_clients_stand_still_at_their_optimum_the_model_does_too() -> None:
    """At the fixed point Σ g_i = 0: h = mean of g_i, and Δ_i = 0 leaves all as it is."""
    assert walked(Dual(0.1, 2), [0.0, 0.0], clients=2) == [0.0, 0.0]


# -- FedNova -----------------------------------------------------------------------------------


def test_changes_by_step() -> None:
    # n = 1, 3; τ = 10, 2: (1·10 + 3·2)/4 = 4 steps of (1·10/10 + 3·1/2)/4 = 0.625
    many = reply(0, [10.0], num_steps=10.0)
    few = reply(1, [1.0], num_examples=3.0, num_steps=2.0)
    assert result_of(ByStep(), [many, few]) == pytest.approx([2.5])


def test_equal_steps_are_fedavg() -> None:
    given = updates(seed=6)
    assert_same(fold_toy(FedNova(), given), fold_toy(FedAvg(), given), 1e-6)


# -- q-FedAvg ----------------------------------------------------------------------------------


def told(client: int, change: list[float], loss: float) -> object:
    found = {
        "ReceivedLoss/mean": torch.tensor(loss),
        "SquaredChange/all": torch.tensor(change).square().sum(),
    }
    return reply(client, change, statistics=found)


def test_fair_weights_by_hand() -> None:
    # q = 1, Λ = 2: weights 2·F = 2 and 6; h = 4·‖Δ‖² + 2·F = 4 + 2 and 16 + 6.
    replies = [told(0, [1.0], 1.0), told(1, [2.0], 3.0)]
    found = result_of(Fair(q=1.0, lipschitz=2.0), replies)  # type: ignore[arg-type]
    assert found == pytest.approx([(2 * 1 + 6 * 2) / (6 + 22)])


def test_q_0_is_the_equal_mean() -> None:
    replies = [told(0, [1.0], 9.0), told(1, [2.0], 3.0)]
    found = result_of(Fair(q=0.0, lipschitz=5.0), replies)  # type: ignore[arg-type]
    assert found == pytest.approx(result_of(Equal(), replies))  # type: ignore[arg-type]


def test_who_was_not_admitted_adds_nothing_to_q_fedavg() -> None:
    """Its reply comes without changes and numbers: the mean is the other client's."""
    numbers = {"ReceivedLoss/mean": torch.tensor(2.0), "SquaredChange/all": torch.tensor(0.0)}
    heard = reply(0, [3.0], statistics=numbers)
    left_out = replace(reply(1, [9.0]), num_examples=0.0, changes=ModelState())
    assert result_of(Fair(q=0.0, lipschitz=5.0), [heard, left_out]) == pytest.approx([3.0])


def test_what_is_measured() -> None:
    assert ReceivedLoss().of_received(Score(6.0, 1, 4))["mean"] == 1.5
    changes = ModelState(dense={"a": torch.tensor([3.0])}, gates={0: {"b": torch.tensor([4.0])}})
    assert SquaredChange().of_update(replace(trained(0.0), changes=changes))["all"] == 25.0


def test_lipschitz_is_one_over_the_learning_rate() -> None:
    config = make_config(**{"scheme": "qfedavg", "train.learning-rate": 0.25})
    assert make_scheme(config) == QFedAvg(1.0, 4.0)
