"""What a node tells of the experts that it will hold, and what the server refuses of it."""

from __future__ import annotations

import pytest
import torch
from flwr.app import ArrayRecord, RecordDict

from fedmoe_app.wire.errors import InvalidUpdateError
from fedmoe_app.wire.packing import raw_array
from fedmoe_app.wire.update import RECORD, Placement, decode_placement, encode_placement

EXPERTS = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1]], dtype=torch.bool)


def sent(experts: torch.Tensor, budget: int = 3) -> RecordDict:
    arrays = {
        "held": raw_array(experts.numpy().tobytes()),
        "budget": raw_array(bytes([budget, 0, 0, 0])),
    }
    return RecordDict({RECORD: ArrayRecord(arrays)})


def test_a_choice_comes_back() -> None:
    content = RecordDict({RECORD: encode_placement(Placement(EXPERTS, 3))})
    placement = decode_placement(content, (2, 4), top_k=2)
    assert torch.equal(placement.experts, EXPERTS)
    assert placement.budget == 3
    assert placement.by_layer() == [[0, 1], [1, 2, 3]]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (RecordDict(), "is missing"),
        (sent(EXPERTS[:1].to(torch.uint8)), "4 bytes, expected 8"),
        (sent(EXPERTS.to(torch.int64)), "64 bytes, at most 8"),
        (sent(EXPERTS.to(torch.uint8) * 2), "2 is neither 0 nor 1"),
        (sent(EXPERTS.to(torch.uint8), budget=2), "3 experts of MoE layer 1; a token uses 2"),
        (sent(EXPERTS.to(torch.uint8), budget=1), "choice.budget = 1: must be 2 to 4"),
        (sent(EXPERTS.to(torch.uint8), budget=5), "choice.budget = 5: must be 2 to 4"),
        (sent(torch.zeros(2, 4, dtype=torch.uint8)), "0 experts of MoE layer 0"),
    ],
)
def test_a_choice_that_cannot_be_used_is_refused(content: RecordDict, reason: str) -> None:
    with pytest.raises(InvalidUpdateError, match=reason):
        decode_placement(content, (2, 4), top_k=2)
