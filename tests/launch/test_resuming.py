"""When a run is gone on with without asking, how often, and how late."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fedmoe_app import RunConfig
from fedmoe_app.launch import resuming
from fedmoe_app.launch.connections import LaunchError
from fedmoe_app.launch.flower import Outcome, Output, SuperLinkLostError
from fedmoe_app.launch.resuming import NO_HEARTBEAT, run_to_the_end
from fedmoe_app.results.events import Event, ResultsAt, RoundDone
from fedmoe_app.results.folder import BEING_WRITTEN
from tests.conftest import make_config

DONE = Outcome("9", "finished:completed", "")
LOST = Outcome("9", "finished:failed", NO_HEARTBEAT)
UNKNOWN = Outcome("9", "finished:failed", "Task failed with unknown error.")
RAISED = Outcome("9", "finished:failed", "no data", raised=True)
HELD = Outcome("9", "finished:failed", f"results: /a: {BEING_WRITTEN} for 60 s", raised=True)
STOPPED = Outcome("9", "finished:stopped", "")

Part = Outcome | LaunchError


class Runs:
    """Parts of a run as told: how each ends, and up to which round it gets before."""

    def __init__(self, folder: Path, *parts: tuple[Part, int]) -> None:
        self.folder, self.parts = folder, list(parts)
        self.resumed: list[str] = []
        self.shown: list[str] = []

    def start(self, config: RunConfig, output: Output) -> Outcome:
        self.resumed.append(config.resume)
        end, done = self.parts.pop(0)
        for number in range(done + 1):
            (self.folder / "checkpoints" / f"round-{number:05d}").mkdir(parents=True, exist_ok=True)
        if isinstance(end, LaunchError):
            raise end
        return end

    def run(self, limit: int, folder: Path | None = None) -> Outcome:
        output = Output(io.StringIO(), self.shown.append)
        return run_to_the_end(self.start, make_config(), folder or self.folder, output, limit)


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that were waited, without waiting them."""
    seconds: list[float] = []
    monkeypatch.setattr(resuming.time, "sleep", seconds.append)
    return seconds


def test_a_lost_run_goes_on_in_its_folder(tmp_path: Path, waited: list[float]) -> None:
    runs = Runs(tmp_path, (LOST, 1), (LOST, 3), (DONE, 4))
    assert runs.run(limit=1) == DONE
    assert runs.resumed == ["", str(tmp_path), str(tmp_path)]
    assert waited == [5.0, 5.0]  # each part got on
    assert runs.shown[0] == (
        "the run was lost (No heartbeat received from the task); going on after round 1 in 5 s "
        "(try 1 of 1)"
    )


def test_what_gets_no_further_is_tried_later_each_time_and_then_given_up(
    tmp_path: Path, waited: list[float]
) -> None:
    runs = Runs(tmp_path, *[(LOST, 1)] * 9)
    assert runs.run(limit=5) == LOST
    assert waited == [5.0, 10.0, 20.0, 40.0, 60.0]
    assert len(runs.resumed) == 6


@pytest.mark.parametrize(
    ("parts", "count"),
    [
        ([(RAISED, 3)], 1),  # the app itself ended it: it would again
        ([(STOPPED, 3)], 1),
        ([(HELD, 3)], 1),  # somebody else's run is there
        ([(LOST, 2), (HELD, 2), (DONE, 4)], 3),  # the part before sleeps
        ([(UNKNOWN, 3), (UNKNOWN, 3)], 2),  # worth another try as long as it gets on
        ([(LOST, -1)], 1),  # nothing to go on from
        ([(SuperLinkLostError("gone"), 2), (LaunchError("refused"), 2), (DONE, 4)], 3),
    ],
)
def test_which_ends_are_no_end(
    tmp_path: Path, waited: list[float], parts: list[tuple[Part, int]], count: int
) -> None:
    runs = Runs(tmp_path, *parts)
    runs.run(limit=5)
    assert len(runs.resumed) == count


def test_a_run_that_cannot_be_started_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="refused"):
        Runs(tmp_path, (LaunchError("refused"), -1)).run(limit=5)


def test_no_resume_where_none_is_wanted(tmp_path: Path) -> None:
    assert Runs(tmp_path, (LOST, 3)).run(limit=0) == LOST


def test_of_a_folder_elsewhere_the_events_tell(tmp_path: Path, waited: list[float]) -> None:
    """The SuperLink's machine has the folder; what it prints says which, and how far it is."""
    events = [ResultsAt("/there/run"), RoundDone(2, 4, True, 1, 0, 9.0, 1.0, 0.5)]
    resumed = []

    def start(config: RunConfig, output: Output) -> Outcome:
        resumed.append(config.resume)
        for event in events if len(resumed) == 1 else []:
            output.hear(event)
        return LOST if len(resumed) == 1 else DONE

    heard: list[Event] = []
    output = Output(io.StringIO(), lambda line: None, hear=heard.append)
    assert run_to_the_end(start, make_config(), None, output, 5) == DONE
    assert resumed == ["", "/there/run"]
    assert heard == events


def test_the_status_of_a_lost_run_tells_its_end(
    tmp_path: Path, waited: list[float], status_of: Callable[[Path, str], None]
) -> None:
    status_of(tmp_path, "9")
    runs = Runs(tmp_path, (LOST, 1))
    assert runs.run(limit=0) == LOST
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["state"], status["error"]) == ("died", NO_HEARTBEAT)
    status_of(tmp_path, "another run of Flower's")
    Runs(tmp_path, (LOST, 1)).run(limit=0)
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "running"


@pytest.fixture
def status_of() -> Callable[[Path, str], None]:
    """Write the status of a process that was killed."""

    def write(folder: Path, flower_run: str) -> None:
        told = {"state": "running", "flower_run": flower_run, "host": "elsewhere", "pid": 1}
        times = {"started": time.time() - 500, "updated": time.time() - 300}
        (folder / "status.json").write_text(json.dumps(told | times))

    return write
