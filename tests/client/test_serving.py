"""A node works for one run at a time, and tells another one that it is busy."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, RecordDict

from fedmoe_app.client import serving as module
from fedmoe_app.client.serving import BusyError, end_of_run, serving

FIRST, SECOND = "ab" * 16, "cd" * 16
NODE = 812


def message(key: str) -> RecordDict:
    return RecordDict({"task": ConfigRecord({"run-key": key})})


def serve(key: str, shares: bool = False) -> None:
    with serving(message(key), NODE, shares):
        pass


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of a node, whose process is that of Flower's client program."""
    clock = Clock()
    monkeypatch.setenv("FEDMOE_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["/bin/flwr-clientapp"])
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_a_second_run_is_told_and_the_first_goes_on(clock: Clock) -> None:
    serve(FIRST)
    clock.now += 12
    with pytest.raises(BusyError, match=r"^busy with another run \(ababab\), last heard of 12 s "):
        serve(SECOND)
    serve(FIRST)
    with pytest.raises(BusyError):
        serve(SECOND)


def test_the_first_one_is_over_when_it_says_so(clock: Clock) -> None:
    serve(FIRST)
    end_of_run(message(SECOND), NODE)  # not its own to end
    with pytest.raises(BusyError):
        serve(SECOND)
    end_of_run(message(FIRST), NODE)
    serve(SECOND)
    with pytest.raises(BusyError):
        serve(FIRST)


def test_or_when_it_has_been_silent_for_long(clock: Clock) -> None:
    """After one message 5 minutes; later 3 times its longest silence, a minute at least."""
    serve(FIRST)
    clock.now += 299
    with pytest.raises(BusyError, match="if it is silent for 1 s more"):
        serve(SECOND)
    clock.now += 2
    serve(SECOND)
    clock.now += 100
    serve(SECOND)
    clock.now += 299
    with pytest.raises(BusyError):
        serve(FIRST)
    clock.now += 2
    serve(FIRST)
    clock.now += 10
    serve(FIRST)
    clock.now += 59
    with pytest.raises(BusyError):
        serve(SECOND)
    clock.now += 2
    serve(SECOND)


def test_a_message_that_takes_hours_is_no_silence(clock: Clock) -> None:
    serve(FIRST)
    clock.now += 10
    with serving(message(FIRST), NODE, shares=False):
        clock.now += 7200
    clock.now += 50
    with pytest.raises(BusyError, match="last heard of 50 s ago"):
        serve(SECOND)


def test_runs_that_share_take_turns(clock: Clock) -> None:
    serve(FIRST)
    serve(SECOND, shares=True)
    serve(FIRST)


def test_an_error_in_the_round_is_the_rounds(clock: Clock) -> None:
    with pytest.raises(RuntimeError, match="too little memory"):  # noqa: SIM117
        with serving(message(FIRST), NODE, shares=False):
            raise RuntimeError("too little memory")
    with pytest.raises(BusyError):
        serve(SECOND)


def test_the_note_is_for_the_node_alone_and_harmless_when_broken(
    clock: Clock, tmp_path: Path
) -> None:
    serve(FIRST)
    path = tmp_path / "nodes" / f"{NODE}.json"
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    for broken in ("", "[]", '{"run": 1}', json.dumps({"run": FIRST, "heard": 9e99})):
        path.write_text(broken)
        serve(SECOND)
        path.unlink()


@pytest.mark.parametrize("key", ["", "../../x", "not hex"])
def test_a_message_without_a_good_key_leaves_no_note(
    clock: Clock, tmp_path: Path, key: str
) -> None:
    serve(key)
    assert not (tmp_path / "nodes").exists()


def test_simulated_nodes_and_those_in_process_note_nothing(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["default_worker.py"])
    serve(FIRST)
    serve(SECOND)
    content: Any = RecordDict()
    with serving(content, NODE, shares=False):
        pass
    assert not (tmp_path / "nodes").exists()
