"""Regions on the wire: of the trained experts alone, and only where the scheme reads them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from flwr.app import Array, RecordDict

from fedmoe_app.wire.records import UpdateSpec, decode_update, encode_update, record_bytes
from fedmoe_app.wire.update import ClientUpdate, InvalidUpdateError
from tests.toy import toy_state, toy_update

D = 4
SPEC = UpdateSpec.of(toy_state(), region_size=D)
TRAINED = [(0, 1), (1, 0), (1, 2)]
REGION = torch.arange(2.0 * 3 * D).reshape(2, 3, D) + 1  # [L, E, D], no zeros


def sent(trained: list[tuple[int, int]] = TRAINED) -> ClientUpdate:
    update = toy_update(3, 17, 0.5, trained)
    return replace(update, routing=replace(update.routing, region=REGION))


def test_only_the_trained_experts_travel_in_order() -> None:
    array = encode_update(sent()).array_records["routing"]["region"].numpy()
    assert array.dtype == np.float32
    rows = torch.stack([REGION[0, 1], REGION[1, 0], REGION[1, 2]])
    assert array.tolist() == rows.tolist()  # [M, D]


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


def region_of(values: np.ndarray) -> Callable[[RecordDict], None]:
    def put(records: RecordDict) -> None:
        records.array_records["routing"]["region"] = Array(values)

    return put


ONES = np.ones((3, D), np.float32)
FAULTS: dict[str, tuple[Callable[[RecordDict], None], str]] = {
    "missing": (
        lambda r: r.array_records["routing"].pop("region"),
        r"routing holds 7 tensors .* expected .*'region'",
    ),
    "one expert too many": (
        region_of(np.ones((4, D), np.float32)),
        r"routing\.region: not a \.npy array of float32 \[3, 4\]; it says float32 \[4, 4\]",
    ),
    "another hidden size": (region_of(np.ones((3, D + 1), np.float32)), r"it says .*\[3, 5\]"),
    "all experts": (region_of(np.ones((2, 3, D), np.float32)), r"it says .*\[2, 3, 4\]"),
    "float64": (region_of(ONES.astype(np.float64)), r"it says float64"),
    "nan": (
        region_of(ONES * np.float32(np.nan)),
        r"routing\.region: 12 of 12 values are NaN or infinite",
    ),
    "inf": (region_of(ONES * np.float32(np.inf)), r"routing\.region: 12 of 12 values are NaN"),
    "fewer trained than sent": (
        lambda r: r.array_records["routing"].update(
            {"trained": Array(np.array([[0, 1, 0], [0, 0, 0]], np.int64))}
        ),
        r"routing\.region: not a \.npy array of float32 \[1, 4\]",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_region_is_rejected_with_the_reason(fault: str) -> None:
    corrupt, reason = FAULTS[fault]
    records = encode_update(sent())
    corrupt(records)
    with pytest.raises(InvalidUpdateError, match=reason):
        decode_update(records, SPEC)


def test_regions_that_nobody_asked_for_are_rejected() -> None:
    with pytest.raises(InvalidUpdateError, match=r"routing holds 8 tensors"):
        decode_update(encode_update(sent()), UpdateSpec.of(toy_state()))
    plain = decode_update(
        encode_update(toy_update(3, 17, 0.5, TRAINED)), UpdateSpec.of(toy_state())
    )
    assert plain.routing.region is None
