"""Local training that starts from other values than the received ones: changes and reference."""

from __future__ import annotations

import torch

from fedmoe_app import FCMoE, FedAlignMoE, ModelState
from fedmoe_app.client.round import _from_received, _replaced
from tests.toy import assert_same, fold, keep, numbers, own_update, start, toy_state

TRAINED = {(0, 0): [-1.0, 0.0, 0.0]}


def test_changes_are_told_from_the_received_values() -> None:
    """A private gate of 3 where the server's is 1, moved by 0.5: the change to tell is 2.5."""
    received = toy_state()
    scheme = FedAlignMoE()
    started = start(
        scheme, received, {f"layers.{i}.gate.weight": torch.full((3, 2), 3.0) for i in (0, 1)}
    )
    moved = own_update(0, 1, TRAINED, gate=0.5).changes  # local − started
    told = _from_received(moved, started, received)
    assert all(gate["weight"].eq(2.5).all() for gate in told.gates.values())
    assert told.dense["head.weight"] is moved.dense["head.weight"]  # bit for bit: not replaced
    assert told.experts[0, 0]["up"] is moved.experts[0, 0]["up"]
    # The local values are the same seen from either: 3 + 0.5 = 1 + 2.5.
    assert keep(scheme, received, told)["layers.1.gate.weight"].eq(3.5).all()


def test_what_was_retained_is_part_of_the_change() -> None:
    """FC-MoE adds λ·R = [−0.1, −0.2, 0] at the start: the client tells it with its own change."""
    scheme = FCMoE(retention="filtered")
    old = toy_state()
    first = [
        own_update(0, 1, {(0, 0): [3.0, 4.0, 0.0]}, count=torch.full((2, 3), 2)),
        own_update(1, 1, TRAINED, count=torch.full((2, 3), 10)),
    ]
    new = fold(old, first, scheme)
    started = start(scheme, new, keep(scheme, old, first[1].changes))
    told = _from_received(own_update(1, 1, TRAINED).changes, started, new)
    zeros = {"up": torch.zeros(2), "down": torch.zeros(1)}
    change = numbers(ModelState(experts={(0, 0): zeros | told.experts[0, 0]}), (0, 0))
    torch.testing.assert_close(torch.tensor(change), torch.tensor([-1.1, -0.2, 0.0]))


def test_the_reference_of_a_proximal_term_is_the_received_value() -> None:
    received = toy_state()
    kept = {"layers.0.gate.weight": torch.zeros(3, 2)}
    started = start(FedAlignMoE(), received, kept)
    replaced = _replaced(received, started)
    assert list(replaced) == ["layers.0.gate.weight"]
    assert replaced["layers.0.gate.weight"].eq(1.0).all()


def test_without_another_start_nothing_is_touched() -> None:
    received, moved = toy_state(), own_update(0, 1, TRAINED, gate=0.5).changes
    told = _from_received(moved, received, received)
    assert_same(told, moved)
    assert all(tensor is dict(moved.named())[name] for name, tensor in told.named())
