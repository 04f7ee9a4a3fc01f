"""Balancing over all clients, averaging by use, adapters frozen by halves."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fedmoe_app import ConfigError, FedAvg, LocalStep, ModelShape, Now, Run, make_scheme
from fedmoe_app.aggregation.streaming import replies_of, round_info
from fedmoe_app.schemes.flame import ByActivation, Flame
from fedmoe_app.schemes.globalbalance import (
    SHARES,
    GlobalBalance,
    GlobalBalancing,
    MoveBiases,
    global_shares,
)
from fedmoe_app.schemes.lorafreeze import FrozenA, InTurns
from fedmoe_app.schemes.parts import Client, Server
from fedmoe_app.schemes.views import Block
from tests.aggregation.test_store import updates
from tests.conftest import make_config
from tests.toy import assert_same, both_layers, fold_toy, numbers, own_update, told_by

SHAPE = ModelShape(2, 3, 2, 4)


def used(client: int, tokens: list[int], n: int = 10, change: float = 0.0) -> Any:
    """A client whose tokens went to the experts of either layer so often; K = 1."""
    count = both_layers(tokens)
    experts = {(0, 0): [change] * 3}
    return own_update(client, n, experts, count=count, tokens=count.sum(1))


# -- balancing ---------------------------------------------------------------------------------


def test_shares_are_those_of_all_tokens() -> None:
    """6 and 2 tokens of 8 are not the mean of the clients' shares."""
    given = [used(0, [6, 0, 0]), used(1, [0, 2, 0])]
    shares = global_shares(round_info(1, given))
    assert shares.tolist() == [[0.75, 0.25, 0.0]] * 2
    assert told_by(GlobalBalancing(), given)["global-shares"].tolist() == shares.tolist()
    nothing = global_shares(round_info(1, [used(0, [0, 0, 0])]))
    assert nothing[0].tolist() == pytest.approx([1 / 3] * 3)


def test_the_term_by_hand() -> None:
    # P = (0.5, 0.5) of the two tokens: E·ΣF·P = 2·(0.75·0.5 + 0.25·0.5) = 1; of the other layer
    # 2·(0.5·0.9 + 0.5·0.1) = 1; with λ = 0.1 the mean is 0.1. F = (1, 0): 2·0.5 = 1 and 2·0.9.
    probs = [torch.tensor([[0.2, 0.8], [0.8, 0.2]]), torch.tensor([[0.9, 0.1]])]

    def term(*shares: list[float]) -> Any:
        return GlobalBalance(0.1).loss(
            LocalStep({}, {}, probs, told={SHARES: torch.tensor(list(shares))})
        )

    assert float(term([0.75, 0.25], [0.5, 0.5])) == pytest.approx(0.1)
    assert float(term([1.0, 0.0], [1.0, 0.0])) == pytest.approx(0.1 * (1 + 1.8) / 2)
    assert GlobalBalance().loss(LocalStep({}, {}, probs)) is None  # the first round


def test_the_router_is_pushed_away_from_what_all_clients_use_too_much() -> None:
    logits = torch.zeros(1, 3, requires_grad=True)
    step = LocalStep({}, {}, [logits.softmax(1)], told={SHARES: torch.tensor([[0.6, 0.3, 0.1]])})
    loss = GlobalBalance(1.0).loss(step)
    assert loss is not None
    loss.backward()
    assert logits.grad is not None
    # 3·P·(F − ΣF·P) = (0.6, 0.3, 0.1) − 1/3
    assert logits.grad[0].tolist() == pytest.approx([0.6 - 1 / 3, 0.3 - 1 / 3, 0.1 - 1 / 3])


def test_balanced_experts_leave_no_gradient() -> None:
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(3), requires_grad=True)
    step = LocalStep({}, {}, [logits.softmax(1)], told={SHARES: torch.full((1, 4), 0.25)})
    loss = GlobalBalance(1.0).loss(step)
    assert loss is not None
    loss.backward()
    assert logits.grad is not None
    assert logits.grad.abs().max() < 1e-6


def test_biases_move_towards_what_is_used_too_little() -> None:
    weight, bias = torch.ones(3, 2), torch.tensor([0.5, 0.0, 0.0])
    change = {"layers.1.gate.bias": bias, "layers.1.gate.weight": weight}
    info = round_info(1, [used(0, [8, 1, 3])])
    moved, state = MoveBiases(0.1).step(Now({}, change, info), {})
    assert moved["layers.1.gate.bias"].tolist() == pytest.approx([0.4, 0.1, 0.1])
    assert moved["layers.1.gate.weight"] is weight
    assert state == {}
    even = round_info(1, [used(0, [3, 3, 3])])
    kept, _ = MoveBiases(0.1).step(Now({}, change, even), {})
    assert kept["layers.1.gate.bias"].tolist() == [0.5, 0.0, 0.0]


def test_switched_off_it_is_fedavg() -> None:
    off = GlobalBalancing(lam=0.0)
    assert (off.client(SHAPE), off.server(SHAPE)) == (Client(), Server())


def test_the_term_leaves_the_averaging_as_it_is() -> None:
    given = updates(seed=8)
    assert_same(fold_toy(GlobalBalancing(), given), fold_toy(FedAvg(), given))


def test_routers_that_cannot_be_moved_are_refused() -> None:
    with pytest.raises(ConfigError, match="bias_speed = 0.01: the routers of this model have no"):
        GlobalBalancing(bias_speed=0.01).check(Run(SHAPE))
    frozen = ModelShape(2, 3, 2, 4, gates_trained=False)
    with pytest.raises(ConfigError, match=r"set model\.gates = true"):
        GlobalBalancing().check(Run(frozen))
    assert GlobalBalancing(bias_speed=0.01).check(Run(ModelShape(2, 3, 2, gate_bias=True))) == ()


# -- averaging by use --------------------------------------------------------------------------


def test_an_expert_follows_its_users() -> None:
    # Shares ½ of 10 examples and ¼ of 30: weights 5 and 7.5 of changes 1 and 6; t = 2: 2.5, 1.875.
    given = [used(0, [4, 4, 0], 10, 1.0), used(1, [2, 6, 0], 30, 6.0), used(2, [0, 9, 0], 99)]
    del given[2].changes.experts[0, 0]  # it did not train the expert
    weights = [ByActivation().weight(r, Block("expert", (0, 0))) for r in replies_of(given)]
    assert weights == [5.0, 7.5, 0.0]
    assert numbers(fold_toy(Flame(), given), (0, 0)) == pytest.approx([1 + 50 / 12.5] * 3)
    twice = fold_toy(Flame(temperature=2.0), given)
    assert numbers(twice, (0, 0)) == pytest.approx([1 + (2.5 + 6 * 1.875) / 4.375] * 3)


def test_equal_use_is_the_mean_over_the_members() -> None:
    given = [used(0, [4, 4, 0], 10, 1.0), used(1, [2, 2, 0], 30, 5.0)]
    for temperature in (0.0, 1.0, 3.0):
        found = fold_toy(Flame(temperature), given)
        assert numbers(found, (0, 0)) == pytest.approx([1 + 160 / 40] * 3)


def test_an_expert_without_tokens_stays() -> None:
    given = [used(0, [0, 4, 0], 10, 1.0)]
    assert numbers(fold_toy(Flame(), given), (0, 0)) == [1.0] * 3


# -- adapters ----------------------------------------------------------------------------------


def test_which_half_is_frozen() -> None:
    a, b = "layers.0.experts.1.down_proj.lora_A", "model.q_proj.lora_B.default.weight"
    assert [FrozenA().frozen(key, 2) for key in (a, b, "score.weight")] == [True, False, False]
    assert [InTurns().frozen(key, 1) for key in (a, b, "score.weight")] == [True, False, False]
    assert [InTurns().frozen(key, 2) for key in (a, b, "score.weight")] == [False, True, False]


@pytest.mark.parametrize("name", ["ffalora", "rolora"])
def test_adapters_are_needed(name: str) -> None:
    with pytest.raises(ConfigError, match='model.train = "all" has no adapters'):
        make_scheme(make_config(scheme=name))
    make_scheme(make_config(**{"scheme": name, "model.train": "expert-lora"}))
    attention = {"model.train": "experts", "model.attention-lora": True}
    make_scheme(make_config(scheme=name, **attention))
