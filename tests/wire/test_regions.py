"""Regions on the wire: of the trained experts alone, and only where the scheme reads them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from flwr.app import RecordDict

from fedmoe_app import ClientUpdate
from fedmoe_app.wire.errors import InvalidUpdateError
from fedmoe_app.wire.packing import raw_array
from fedmoe_app.wire.records import UpdateSpec, decode_update, encode_update, record_bytes
from fedmoe_app.wire.replies import seal
from tests.toy import toy_state, toy_update

D = 4
SPEC = UpdateSpec.of(toy_state(), region_size=D)
TRAINED = [(0, 1), (1, 0), (1, 2)]
REGION = torch.arange(2.0 * 3 * D).reshape(2, 3, D) + 1  # [L, E, D], no zeros


def sent(trained: list[tuple[int, int]] = TRAINED) -> ClientUpdate:
    update = toy_update(3, 17, 0.5, trained)
    return replace(update, routing=replace(update.routing, region=REGION))


def test_only_the_trained_experts_travel_in_order() -> None:
    data = encode_update(sent()).array_records["arrays"]["routing"].data
    rows = torch.stack([REGION[0, 1], REGION[1, 0], REGION[1, 2]])  # [M, D]
    assert np.frombuffer(data[-3 * D * 4 :], np.float32).tolist() == rows.flatten().tolist()


def test_they_come_back_at_their_place_with_zeros_elsewhere() -> None:
    region = decode_update(encode_update(sent()), SPEC).routing.region
    assert region is not None
    wanted = torch.zeros(2, 3, D)
    for key in TRAINED:
        wanted[key] = REGION[key]
    assert torch.equal(region, wanted)


def test_a_client_that_trained_no_expert_has_none() -> None:
    region = decode_update(encode_update(sent([])), SPEC).routing.region
    assert region is not None and region.eq(0).all() and region.shape == (2, 3, D)


def test_they_count_as_bytes() -> None:
    more = record_bytes(encode_update(sent())) - record_bytes(encode_update(sent([(0, 1)])))
    without = toy_update(3, 17, 0.5, TRAINED), toy_update(3, 17, 0.5, [(0, 1)])
    other = record_bytes(encode_update(without[0])) - record_bytes(encode_update(without[1]))
    assert more - other == 2 * D * 4  # two experts more, in float32


def behind(cut: int, more: bytes) -> Callable[[RecordDict], None]:
    """Take bytes off the end of the statistics, where the regions are, and add others."""

    def put(records: RecordDict) -> None:
        data = records.array_records["arrays"]["routing"].data
        records.array_records["arrays"]["routing"] = raw_array(data[: len(data) - cut] + more)
        seal(records)

    return put


ROW, NAN = 4 * D, np.full(3 * D, np.nan, np.float32).tobytes()
FAULTS: dict[str, tuple[Callable[[RecordDict], None], str]] = {
    "missing": (behind(3 * ROW, b""), r"routing\.region: 0 bytes of data left, expected 48"),
    "one expert too many": (behind(0, bytes(ROW)), r"routing: 16 bytes too many"),
    "one expert too few": (behind(ROW, b""), r"routing\.region: 32 bytes of data left, expected"),
    "nan": (behind(3 * ROW, NAN), r"routing\.region: 12 of 12 values are NaN or infinite"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_region_is_rejected_with_the_reason(fault: str) -> None:
    corrupt, reason = FAULTS[fault]
    records = encode_update(sent())
    corrupt(records)
    with pytest.raises(InvalidUpdateError, match=reason):
        decode_update(records, SPEC)


def test_regions_that_nobody_asked_for_are_rejected() -> None:
    with pytest.raises(InvalidUpdateError, match=r"routing: .* bytes, at most|too many"):
        decode_update(encode_update(sent()), UpdateSpec.of(toy_state()))
    plain = decode_update(
        encode_update(toy_update(3, 17, 0.5, TRAINED)), UpdateSpec.of(toy_state())
    )
    assert plain.routing.region is None
