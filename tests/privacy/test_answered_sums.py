"""The node's record of sums: the same one over others is refused, before a share leaves."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from fedmoe_app.config.policy import RefusedError
from fedmoe_app.privacy.answered_sums import FILE, AnsweredSums, start_of
from fedmoe_app.privacy.member import SumError
from tests.toy import toy_state


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


def test_lists_of_clients_are_counted_by_data_set(tmp_path: Path) -> None:
    record = AnsweredSums(tmp_path)
    record.note(["run 1"], [7, 8, 9], "wards.csv", most=1)
    record.note(["run 2"], [9, 8, 7], "wards.csv", most=1)  # the same list
    record.note(["run 3"], [7, 8], "labs.csv", most=1)
    with pytest.raises(RefusedError, match="one more list of clients"):
        record.note(["run 4"], [7, 8], "wards.csv", most=1)
    record.note(["run 4"], [7, 8], "wards.csv", most=2)  # what was refused was not written down
    record.note(["run 5"], [7, 8, 10], "wards.csv")  # without a limit it is, too
    with pytest.raises(RefusedError):
        record.note(["run 6"], [7, 10], "wards.csv", most=3)


def test_a_start_is_known_by_its_values_and_by_the_frozen_rest() -> None:
    start = start_of(toy_state(), "base")
    assert start == start_of(toy_state(), "base")
    other = toy_state()
    other.gates[1]["weight"][0, 0] += 1e-6
    assert len({start, start_of(other, "base"), start_of(toy_state(), "another")}) == 3


def test_a_file_of_an_earlier_release_is_gone_on_with(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / FILE)) as file:
        file.execute("CREATE TABLE sums (name TEXT PRIMARY KEY, clients TEXT)")
        file.commit()
    AnsweredSums(tmp_path).note(["round 4"], [7, 8, 9], "wards.csv", most=1)
