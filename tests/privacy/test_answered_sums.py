"""The node's record of sums: the same one over others is refused, before a share leaves."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedmoe_app.privacy.answered_sums import FILE, AnsweredSums
from fedmoe_app.privacy.member import SumError


def test_the_same_clients_may_be_asked_again_and_no_others(tmp_path: Path) -> None:
    AnsweredSums(tmp_path).note(["training, state 3", "training, round 4"], [7, 8, 9])
    record = AnsweredSums(tmp_path)  # of another process
    record.note(["training, state 3", "training, round 4"], {9, 8, 7})
    for others in ([7, 8], [7, 8, 9, 10], [7, 8, 10]):
        with pytest.raises(SumError, match="other clients into the same sum"):
            record.note(["training, state 3"], others)
    record.note(["training, state 4", "training, round 5"], [7, 8])


def test_one_name_that_is_taken_refuses_all_and_notes_none(tmp_path: Path) -> None:
    record = AnsweredSums(tmp_path)
    record.note(["round 4"], [7, 8, 9])
    with pytest.raises(SumError):
        record.note(["a new state", "round 4"], [7, 8])
    record.note(["a new state"], [7, 8, 9])


def test_a_record_that_cannot_be_read_lets_nothing_out(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("no database" * 100)
    with pytest.raises(SumError, match="without it nobody knows over whom"):
        AnsweredSums(tmp_path).note(["round 4"], [7, 8, 9])


def test_only_its_owner_may_read_it(tmp_path: Path) -> None:
    AnsweredSums(tmp_path / "node").note(["round 4"], [7, 8, 9])
    assert (tmp_path / "node" / FILE).stat().st_mode & 0o777 == 0o600
