"""The book of which experts each node holds, and what of the state it is sent."""

from __future__ import annotations

from dataclasses import replace

import torch
from flwr.app import RecordDict

from fedmoe_app import ModelShape
from fedmoe_app.server.clients import ClientRegistry
from fedmoe_app.server.placement import Holding, held_arrays
from fedmoe_app.wire.records import decode_state, encode_state
from fedmoe_app.wire.update import Choice
from tests.toy import toy_state, toy_update

HELD = torch.tensor([[True, False, True], [False, True, True]])


def test_a_node_is_sent_dense_tensors_gates_and_its_experts() -> None:
    arrays = encode_state(toy_state())
    state = decode_state(held_arrays(arrays, HELD))
    assert set(state.experts) == {(0, 0), (0, 2), (1, 1), (1, 2)}
    assert (state.dense.keys(), state.gates.keys()) == ({"head.weight"}, {0, 1})
    assert decode_state(held_arrays(arrays, None)).experts == {}
    assert len(arrays) == len(encode_state(toy_state()))  # the whole state stays whole


def test_replies_bring_the_choice_of_the_next_round() -> None:
    holding, registry = Holding(ModelShape(2, 3, 2), timeout=1.0), ClientRegistry(0)
    assert holding.choice(registry, 77) is None
    registry.claim(77, 5)
    assert registry.settle() == {}
    assert holding.choice(registry, 77) is None
    holding.choices[5] = Choice(~HELD, 2)
    update = toy_update(5, 10, 0.5, [(0, 1)])
    new = replace(update, choice=Choice(HELD, 2))
    assert holding.accept([new]) == ([new], {})
    choice = holding.choice(registry, 77)
    assert choice is not None
    assert torch.equal(choice.held, HELD)
    assert holding.choice(registry, 78) is None
    # It was sent experts 0 and 2 of layer 0 now, and says that it trained expert 1.
    good, rejected = holding.accept([replace(update, choice=Choice(~HELD, 2))])
    assert good == []
    assert "it trained expert 1 of MoE layer 0, which it does not hold" in rejected["client 5"]
    assert holding.choice(registry, 77) is choice
    _, rejected = holding.accept([toy_update(6, 10, 0.5, [])])
    assert "another client's number" in rejected["client 6"]
    again = Holding(ModelShape(2, 3, 2), timeout=1.0)
    again.restore(holding.book())
    assert again.choices.keys() == {5}
    assert torch.equal(again.choices[5].held, HELD)
    assert again.choices[5].budget == 2
    content = RecordDict({"arrays": encode_state(toy_state())})
    own = holding.content_for(registry, 77, content)
    assert len(decode_state(own.array_records["arrays"]).experts) == 4
    assert len(decode_state(content.array_records["arrays"]).experts) == 6
