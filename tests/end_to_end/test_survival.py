"""A run that Flower gives up is resumed by `fedmoe run`: real processes, stopped and killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from fedmoe_app import read_metrics, read_status
from fedmoe_app.launch.processes import ProcessGroup
from tests.conftest import REPOSITORY
from tests.end_to_end.faults import Lab, kill_tree, wait_for
from tests.end_to_end.processes import CONNECTION, WARM_SUPERNODE, deployment

pytestmark = pytest.mark.slow

CHANGES = {
    "num-server-rounds": 4,
    "min-clients": 2,
    "data.max-train-examples": 160,
    "data.max-test-examples": 80,
    "wire.downloads": '"full"',  # else the first round after a checkpoint sends more
}


class Command:
    """A running `fedmoe` whose output is read as it comes."""

    def __init__(self, group: ProcessGroup, *arguments: str) -> None:
        command = [sys.executable, "-m", "fedmoe_app.cli.main", *arguments]
        self.process = group.start(command, subprocess.PIPE)
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.lines.extend(line.rstrip("\n") for line in self.process.stdout)

    def finish(self, timeout: float = 400) -> int:
        code = self.process.wait(timeout=timeout)
        self._reader.join()
        return code


def run(group: ProcessGroup, app: Path, connection: str, folder: Path, *options: str) -> Command:
    where = [connection] if connection else ["--clients", "2"]
    name = ["--output", str(folder.parent), "--name", folder.name]
    return Command(group, "run", str(app), *where, *name, *options)


def pairs(changes: dict[str, Any]) -> list[str]:
    return ["-c", " ".join(f"{key}={value}" for key, value in changes.items())]


def process_named(group: ProcessGroup, name: str) -> psutil.Process:
    """Return the process of the group whose command names a program."""
    found = [p for p in group.alive() if any(Path(part).name == name for part in p.cmdline()[:4])]
    assert len(found) == 1, found
    return found[0]


def rounds_done(folder: Path) -> int:
    file = folder / "metrics.jsonl"
    return read_metrics(folder)[-1]["round"] if file.is_file() else -1


def without_seconds(folder: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k != "seconds"} for line in read_metrics(folder)]


def events(folder: Path, name: str) -> list[str]:
    return [line for line in (folder / "log.jsonl").read_text().splitlines() if name in line]


def assert_same(folder: Path, other: Path) -> None:
    """The same rounds to the last digit, and the same model bit for bit."""
    assert without_seconds(folder) == without_seconds(other)
    weights = [(f / "model" / "model.safetensors").read_bytes() for f in (folder, other)]
    assert weights[0] == weights[1]


def test_a_serverapp_that_stood_still_for_75_seconds(tmp_path: Path) -> None:
    """Flower gives the run up after 60 s; it is resumed while the first ServerApp still sleeps.

    When that wakes up it writes nothing any more. The run is the one that would have been.
    """
    calm, disturbed = tmp_path / "calm", tmp_path / "disturbed"
    with deployment(tmp_path, 2, supernode=WARM_SUPERNODE) as flower:
        first = run(flower.group, REPOSITORY, CONNECTION, calm, *pairs(CHANGES))
        assert first.finish() == 0, first.lines[-20:]
        second = run(flower.group, REPOSITORY, CONNECTION, disturbed, *pairs(CHANGES))
        wait_for(lambda: rounds_done(disturbed) >= 1, "round 1")
        server = process_named(flower.group, "flwr-serverapp")
        server.suspend()
        time.sleep(75)
        server.resume()
        assert second.finish() == 0, second.lines[-20:]
    assert_same(disturbed, calm)
    status = read_status(disturbed)
    assert (status["state"], status["resumes"]) == ("completed", 1)
    assert status["last_end"]["error"] == "No heartbeat received from the task"
    assert any("the run was lost (No heartbeat received" in line for line in second.lines)
    assert len(events(disturbed, '"event": "resumed"')) == 1
    assert second.lines[-1] == f"results: {disturbed}"
    flower.assert_nothing_left()


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with Lab(tmp_path) as lab:
        lab.start_superlink()
        for client in (0, 1):
            lab.start_node(client)
        yield lab


def in_lab(lab: Lab, *options: str) -> Command:
    return run(lab.group, lab.app, "lab", lab.results, *pairs({"num-server-rounds": 4}), *options)


def test_a_killed_serverapp_is_resumed_without_asking(lab: Lab) -> None:
    lab.tell(0, "wait-in-2")
    command = in_lab(lab)
    wait_for(lambda: lab.has_trained(0, 2), "round 2")
    kill_tree(lab.serverapp())
    assert read_status(lab.results)["state"] == "stale"
    status = Command(lab.group, "status", str(lab.results))
    assert status.finish() == 0
    assert "state     died: its process is gone and could not say why" in status.lines
    lab.release(0)
    assert command.finish() == 0, command.lines[-20:]
    assert [line["loss"] for line in lab.metrics()] == [0, 1, 3, 6, 10]
    assert read_status(lab.results)["state"] == "completed"


def test_what_fedmoe_run_does_not_resume_the_command_does(lab: Lab) -> None:
    lab.tell(0, "wait-in-2")
    command = in_lab(lab, "--max-resumes", "0")
    wait_for(lambda: lab.has_trained(0, 2), "round 2")
    kill_tree(lab.serverapp())
    assert command.finish() == 1
    status = read_status(lab.results)
    assert (status["state"], status["error"]) == ("died", "No heartbeat received from the task")
    hint = command.lines[-1]
    assert hint == f"to go on: fedmoe resume {lab.results}"
    lab.release(0)
    again = Command(lab.group, *hint.partition("fedmoe ")[2].split())
    assert again.finish() == 0, again.lines[-20:]
    assert [line["loss"] for line in lab.metrics()] == [0, 1, 3, 6, 10]
    assert read_status(lab.results)["resumes"] == 1


def test_a_superlink_that_is_started_again_costs_no_run(lab: Lab) -> None:
    lab.tell(0, "wait-in-2")
    command = in_lab(lab)
    wait_for(lambda: lab.has_trained(0, 2), "round 2")
    assert lab.superlink is not None
    kill_tree(lab.superlink)
    lab.start_superlink()
    lab.release(0)
    assert command.finish() == 0, command.lines[-20:]
    assert [line["loss"] for line in lab.metrics()] == [0, 1, 3, 6, 10]


def test_a_stopped_run_is_not_resumed(lab: Lab) -> None:
    lab.tell(0, "wait-in-2")
    command = in_lab(lab)
    wait_for(lambda: lab.has_trained(0, 2), "round 2")
    command.process.send_signal(signal.SIGINT)
    assert command.finish() == 130
    assert read_status(lab.results)["state"] == "interrupted"
    assert not any("going on after" in line for line in command.lines)


def test_a_simulation_that_was_killed_is_resumed(tmp_path: Path) -> None:
    changes: Sequence[str] = pairs(CHANGES)
    with ProcessGroup(os.environ) as group:
        calm = run(group, REPOSITORY, "", tmp_path / "calm", *changes)
        assert calm.finish() == 0, calm.lines[-20:]
        command = run(group, REPOSITORY, "", tmp_path / "killed", *changes)
        wait_for(lambda: rounds_done(tmp_path / "killed") >= 1, "round 1")
        process_named(group, "fedmoe_app.launch.simulation").kill()
        assert command.finish() == 0, command.lines[-20:]
        assert group.alive() == []
    assert_same(tmp_path / "killed", tmp_path / "calm")
