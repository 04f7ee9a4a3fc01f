"""`fedmoe status`: how a run stands, read from its folder alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner

from fedmoe_app.cli import app
from fedmoe_app.report import status
from fedmoe_app.report.log import ResultsError, RunFolder
from fedmoe_app.report.overview import newest_run, overview
from fedmoe_app.report.status import StatusFile, note_interruption, read_status


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
    assert "--resume" not in shown


def test_a_failed_run_says_why_and_how_to_go_on(folder: Path) -> None:
    started(folder).end(status.FAILED, error="2 round(s) in a row failed")
    shown = overview(folder)
    assert "state     failed" in shown
    assert "reason    2 round(s) in a row failed" in shown
    assert shown[-2:] == [
        "saved     checkpoints/round-00001",
        f"go on     fedmoe run APP [CONNECTION] --resume {folder}",
    ]


def test_a_finished_run_is_not_to_be_resumed(folder: Path) -> None:
    started(folder).end(status.COMPLETED)
    shown = overview(folder)
    assert "state     finished" in shown
    assert not any("--resume" in text for text in shown)


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
    assert any("--resume" in text for text in overview(folder))
    # On another host only the beat tells.
    change(folder, host="elsewhere")
    assert read_status(folder)["state"] == "running"
    change(folder, updated=time.time() - 2 * status.STALE_SECONDS)
    assert read_status(folder)["state"] == "stale"


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
    assert any("--resume" in text for text in overview(folder))
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
