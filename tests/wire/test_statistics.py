"""Statistics of a scheme's own on their way up: whole, or refused before anything is believed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from flwr.app import RecordDict

from fedmoe_app.wire.errors import InvalidUpdateError
from fedmoe_app.wire.packing import raw_array
from fedmoe_app.wire.records import UpdateSpec, decode_update, encode_update
from fedmoe_app.wire.replies import seal
from fedmoe_app.wire.spec import NumberSpec
from tests.toy import toy_state, toy_update

NUMBERS = {"A/matrix": torch.tensor([[1.0, -2.0]]), "A/one": torch.tensor(0.5)}
SPEC = replace(
    UpdateSpec.of(toy_state()),
    statistics={
        "A/matrix": NumberSpec((1, 2), -2, 2, optional=True),
        "A/one": NumberSpec((), 0, 1),
    },
)


def reply(**numbers: torch.Tensor) -> RecordDict:
    update = replace(toy_update(0, 1, 0.5, [(0, 0)]), statistics=NUMBERS | numbers)
    return encode_update(update)


def test_they_come_back_as_they_were() -> None:
    found = decode_update(reply(), SPEC).statistics
    assert found.keys() == NUMBERS.keys()
    assert all(torch.equal(found[name], NUMBERS[name]) for name in NUMBERS)


def test_what_is_optional_may_be_missing() -> None:
    content = reply()
    del content.array_records["statistics"]["A/matrix"]
    assert set(decode_update(seal(content), SPEC).statistics) == {"A/one"}


def test_a_reply_of_a_scheme_without_any_is_as_it_was() -> None:
    assert "statistics" not in encode_update(toy_update(0, 1, 0.5, [(0, 0)]))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"A/one": raw_array(torch.tensor([2.0]).numpy().tobytes())}, "outside 0 to 1"),
        ({"A/one": raw_array(torch.tensor([torch.nan]).numpy().tobytes())}, "outside 0 to 1"),
        ({"A/one": raw_array(b"\0" * 3)}, "3 bytes, expected 4"),
        ({"A/one": raw_array(b"\0" * 800)}, "800 bytes, at most 4"),
        ({"B/strange": raw_array(b"\0" * 4)}, "B/strange.*nobody asked for it"),
        ({"A/one": None}, "A/one: missing"),
    ],
    ids=["range", "nan", "short", "long", "name", "missing"],
)
def test_anything_else_is_refused(change: dict, reason: str) -> None:
    content = reply()
    record = content.array_records["statistics"]
    for name, array in change.items():
        if array is None:
            del record[name]
        else:
            record[name] = array
    with pytest.raises(InvalidUpdateError, match=reason):
        decode_update(seal(content), SPEC)


def test_nobody_sends_what_the_server_does_not_want() -> None:
    with pytest.raises(InvalidUpdateError, match="nobody asked for it"):
        decode_update(reply(), UpdateSpec.of(toy_state()))


def test_damage_is_found() -> None:
    content = reply()
    content.array_records["statistics"]["A/one"] = raw_array(b"\0" * 4)
    with pytest.raises(InvalidUpdateError, match="checksum"):
        decode_update(content, SPEC)
