"""`fedmoe status`: how a run stands, read from its folder alone."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner

from fedmoe_app import ResultsError, read_status
from fedmoe_app.cli.commands.status import newest_run, overview
from fedmoe_app.cli.main import app
from fedmoe_app.results import status
from fedmoe_app.results.folder import RunFolder
from fedmoe_app.results.status import StatusFile, how_to_resume, note_interruption
from fedmoe_app.server.resume import set_back


def line(server_round: int, **fields: Any) -> dict[str, Any]:
    return {
        "round": server_round,
        "status": "ok",
        "loss": 2.0 - server_round,
        "accuracy": 0.25 * server_round,
        "metric": "accuracy",
        "num_clients": 2,
        "bytes_up": 1000,
        "bytes_down": 3000,
        "clients": [{"client": 0}, {"client": 4}],
        "failures": [],
        "seconds": {},
        **fields,
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run of four rounds after its first, in which clients 2 and 3 failed."""
    folder = RunFolder(tmp_path / "results" / "mine")
    failures = [
        {"who": "client 2", "reason": "out of memory"},
        {"who": "client 3", "reason": "partition is empty"},
    ]
    folder.append(line(0, clients=[]))
    folder.append(line(1, failures=failures))
    (folder.path / "checkpoints" / "round-00001").mkdir(parents=True)
    return folder.path


def started(folder: Path) -> StatusFile:
    return StatusFile(folder, scheme="fcmoe", round=1, num_rounds=4)


def test_a_running_run(folder: Path) -> None:
    file = started(folder)
    shown = "\n".join(overview(folder))
    file.end(status.COMPLETED)
    assert "scheme    fcmoe\nstate     running\nrounds    1 of 4 done" in shown
    assert "metrics   round 1: loss 1.0000, accuracy 0.2500" in shown
    assert "clients   0, 4 in round 1" in shown
    assert "bytes     2.00 kB up, 6.00 kB down in all" in shown
    assert "failures  client 2: 1, last in round 1: out of memory" in shown
    assert "failures  client 3: 1, last in round 1: partition is empty" in shown
    assert f"process   pid {os.getpid()} on {socket.gethostname()}, last heard of 0 s ago" in shown
    assert "fedmoe resume" not in shown


def test_a_failed_run_says_why_and_how_to_go_on(folder: Path) -> None:
    started(folder).end(status.FAILED, error="2 round(s) in a row failed")
    shown = overview(folder)
    assert "state     failed" in shown
    assert "reason    2 round(s) in a row failed" in shown
    assert shown[-2:] == [
        "saved     checkpoints/round-00001",
        f"go on     fedmoe resume {folder}",
    ]


def test_what_is_printed_can_be_copied(tmp_path: Path) -> None:
    folder = tmp_path / "of a friend's" / "run"
    (folder / "checkpoints" / "round-00001").mkdir(parents=True)
    command = shlex.split(how_to_resume(Path(os.path.relpath(folder))))
    assert command == ["fedmoe", "resume", str(folder)]


def test_failed_rounds_at_the_end_are_to_be_repeated(folder: Path) -> None:
    """Of a run whose last rounds failed nothing is left to do but them."""
    write = RunFolder.reopen(folder).append
    for number in (2, 3, 4):
        write(line(number, status="ok" if number == 2 else "failed"))
    for number in (2, 3, 4):
        (folder / "checkpoints" / f"round-{number:05d}").mkdir()
    started(folder).end(status.FAILED, error="the 2 rounds up to 4 of 4 failed")
    assert how_to_resume(folder) == f"fedmoe resume {folder}/checkpoints/round-00002"


def test_a_finished_run_is_not_to_be_resumed(folder: Path) -> None:
    started(folder).end(status.COMPLETED)
    shown = overview(folder)
    assert "state     finished" in shown
    assert not any("resume" in text for text in shown)


def change(folder: Path, **fields: Any) -> None:
    path = folder / "status.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_killed_process_that_nobody_waited_for_is_gone(folder: Path) -> None:
    started(folder)
    with subprocess.Popen(["sleep", "60"]) as process:
        change(folder, state="running", pid=process.pid)
        assert read_status(folder)["state"] == "running"
        process.kill()
        while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        assert read_status(folder)["state"] == "stale"


def test_a_run_whose_process_is_gone_is_stale(folder: Path) -> None:
    started(folder).end(status.COMPLETED)
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    change(folder, state="running", pid=done.pid)
    assert read_status(folder)["state"] == "stale"
    shown = overview(folder)
    assert "state     died: its process is gone and could not say why" in shown
    assert shown[-1] == f"go on     fedmoe resume {folder}"
    # On another host, and in a container with pids of its own, only the beat tells.
    for elsewhere in ({"host": "elsewhere"}, {"pid_namespace": "pid:[1]"}):
        change(folder, **{"updated": time.time(), "pid": done.pid} | elsewhere)
        assert read_status(folder)["state"] == "running"
        change(folder, updated=time.time() - 2 * status.STALE_SECONDS)
        assert read_status(folder)["state"] == "stale"
        assert any("state     no sign of life since 20" in text for text in overview(folder))


def test_a_process_that_got_the_number_later_is_another_one(folder: Path) -> None:
    started(folder).end(status.COMPLETED)
    long_ago = time.time() - 30 * 86400
    change(folder, state="running", pid=os.getpid(), updated=long_ago)
    assert read_status(folder)["process"] == "gone"


def test_a_process_that_stands_still_is_not_running(folder: Path) -> None:
    started(folder).end(status.COMPLETED)
    change(folder, state="running", pid=1, updated=time.time() - 61)
    found = read_status(folder)
    assert (found["state"], found["process"]) == ("stale", "silent")


def test_whoever_wants_the_folder_waits_for_a_silent_process(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "STALE_SECONDS", 20.0)
    started(folder).end(status.COMPLETED)
    change(folder, state="running", pid=os.getpid(), updated=time.time() - 19.0)
    began = time.monotonic()
    status.wait_until_free(folder)  # it was silent for 19 s, and goes on being so
    assert time.monotonic() - began > 0.5
    change(folder, updated=time.time())
    with pytest.raises(ResultsError, match="still running"):
        status.wait_until_free(folder)
    change(folder, updated=time.time() - 18.0)
    beat = threading.Timer(0.3, lambda: change(folder, updated=time.time()))
    beat.start()
    with pytest.raises(ResultsError, match="still running"):
        status.wait_until_free(folder)
    beat.join()


def test_the_time_of_a_resumed_run_is_that_of_all_its_parts(folder: Path) -> None:
    started(folder).end(status.FAILED, error="no node came")
    now = time.time()
    change(folder, started=now - 500, ended=now - 200, num_partitions=7)
    RunFolder.reopen(folder).append(line(2))
    earlier = status.earlier_parts(folder) | set_back(folder, 1)
    assert earlier["seconds_before"] == pytest.approx(300)
    assert earlier["last_end"]["error"] == "no node came"
    StatusFile(folder, scheme="fcmoe", round=1, num_rounds=4, **earlier).end(status.FAILED)
    change(folder, started=now - 100, ended=now - 40)
    shown = "\n".join(overview(folder))
    assert "time      6 min 0 s, 5 min 0 s of it before the last resume" in shown
    assert "resumed   once; the part before ended as failed: no node came" in shown
    # Round 2 is to be done again: what was sent in it was sent.
    assert "bytes     3.00 kB up, 9.00 kB down in all (1 rounds of it were repeated)" in shown
    again = status.earlier_parts(folder)
    assert (again["resumes"], again["num_partitions"]) == (2, 7)
    assert again["seconds_before"] == pytest.approx(360)


def test_the_status_of_a_killed_process_is_mended_by_whoever_started_it(folder: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as done:
        done.wait()
    started(folder).end(status.COMPLETED)
    beat = time.time() - 100
    change(folder, state="running", pid=done.pid, updated=beat, flower_run="42")
    status.note_death(folder, "43", "another run")
    assert read_status(folder)["state"] == "stale"
    status.note_death(folder, "42", "No heartbeat received from the task")
    found = read_status(folder)
    assert (found["state"], found["ended"]) == ("died", beat)
    assert "reason    No heartbeat received from the task" in overview(folder)


def test_a_run_that_was_ended_from_outside_says_so_afterwards(folder: Path) -> None:
    started(folder).end(status.COMPLETED)
    change(folder, state="running", pid=os.getpid(), updated=time.time())
    note_interruption(folder)  # it goes on: the status is its own
    assert read_status(folder)["state"] == "running"
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    change(folder, pid=done.pid)
    note_interruption(folder)
    assert read_status(folder)["state"] == "interrupted"
    assert any("fedmoe resume" in text for text in overview(folder))
    note_interruption(folder / "unknown")  # says nothing: there may be no results yet


def test_the_beat_renews_the_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "BEAT_SECONDS", 0.01)
    file = started(folder)
    first = read_status(folder)["updated"]
    deadline = time.monotonic() + 30
    while read_status(folder)["updated"] == first:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    file.end(status.INTERRUPTED)
    assert read_status(folder)["state"] == "interrupted"


def test_the_command_takes_the_newest_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started(folder).end(status.COMPLETED)
    older = RunFolder(folder.parent / "older").path
    started(older).end(status.COMPLETED)
    os.utime(older / "status.json", (1, 1))
    monkeypatch.setenv("FEDMOE_HOME", str(tmp_path))
    assert newest_run() == folder
    result = CliRunner().invoke(app, ["status"])
    assert result.exit_code == 0
    assert result.output.splitlines()[0] == f"run       mine  ({folder})"


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="no such file; name the result folder"):
        overview(tmp_path)
    with pytest.raises(ResultsError, match="no run in it"):
        newest_run(tmp_path)
    (tmp_path / "status.json").write_text('{"state": "run')
    with pytest.raises(ResultsError, match=r"status\.json: cannot be read"):
        overview(tmp_path)
