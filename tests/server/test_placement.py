"""The book of which experts each node holds, and what of the state it is sent."""

from __future__ import annotations

from dataclasses import replace

import torch
from flwr.app import RecordDict

from fedmoe_app import ModelShape
from fedmoe_app.server.clients import ClientRegistry
from fedmoe_app.server.placement import Placements, placed_arrays
from fedmoe_app.wire.records import decode_state, encode_state
from fedmoe_app.wire.update import Placement
from tests.toy import toy_state, toy_update

EXPERTS = torch.tensor([[True, False, True], [False, True, True]])


def test_a_node_is_sent_dense_tensors_gates_and_its_experts() -> None:
    arrays = encode_state(toy_state())
    state = decode_state(placed_arrays(arrays, EXPERTS))
    assert set(state.experts) == {(0, 0), (0, 2), (1, 1), (1, 2)}
    assert (state.dense.keys(), state.gates.keys()) == ({"head.weight"}, {0, 1})
    assert decode_state(placed_arrays(arrays, None)).experts == {}
    assert len(arrays) == len(encode_state(toy_state()))  # the whole state stays whole


def test_replies_bring_the_choice_of_the_next_round() -> None:
    placements, registry = Placements(ModelShape(2, 3, 2), timeout=1.0), ClientRegistry(0)
    assert placements.of(registry, 77) is None
    registry.claim(77, 5)
    assert registry.settle() == {}
    assert placements.of(registry, 77) is None
    placements.by_client[5] = Placement(~EXPERTS, 2)
    update = toy_update(5, 10, 0.5, [(0, 1)])
    new = replace(update, placement=Placement(EXPERTS, 2))
    assert placements.accept([new]) == ([new], {})
    placement = placements.of(registry, 77)
    assert placement is not None
    assert torch.equal(placement.experts, EXPERTS)
    assert placements.of(registry, 78) is None
    # It was sent experts 0 and 2 of layer 0 now, and says that it trained expert 1.
    good, rejected = placements.accept([replace(update, placement=Placement(~EXPERTS, 2))])
    assert good == []
    assert "it trained expert 1 of MoE layer 0, which it does not hold" in rejected["client 5"]
    assert placements.of(registry, 77) is placement
    _, rejected = placements.accept([toy_update(6, 10, 0.5, [])])
    assert "another client's number" in rejected["client 6"]
    again = Placements(ModelShape(2, 3, 2), timeout=1.0)
    again.restore(placements.book())
    assert again.by_client.keys() == {5}
    assert torch.equal(again.by_client[5].experts, EXPERTS)
    assert again.by_client[5].budget == 2
    content = RecordDict({"arrays": encode_state(toy_state())})
    own = placements.content_for(registry, 77, content)
    assert len(decode_state(own.array_records["arrays"]).experts) == 4
    assert len(decode_state(content.array_records["arrays"]).experts) == 6
