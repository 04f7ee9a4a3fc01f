"""Who may write to a result folder: the process that took it last, and no other."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedmoe_app import ResultsError, read_metrics, read_status
from fedmoe_app.launch.launched import Launch, write_launch
from fedmoe_app.results.events import EventLog
from fedmoe_app.results.folder import RunFolder, holds_files
from fedmoe_app.results.lease import Lease, TakenOverError
from fedmoe_app.results.status import StatusFile

HOLDS = """
import pathlib, sys, time
from fedmoe_app.results.lease import Lease
folder = pathlib.Path(sys.argv[1])
lease = Lease(folder)
lease.take()
with lease.held():
    (folder / "inside").touch()
    while not (folder / "go").exists():
        time.sleep(0.01)
"""


def test_the_last_one_to_take_it_owns_it(tmp_path: Path) -> None:
    first, second = Lease(tmp_path), Lease(tmp_path)
    first.take()
    with first.held(), first.held():
        assert first.is_mine()
    second.take()
    assert (first.is_mine(), second.is_mine()) == (False, True)
    with pytest.raises(TakenOverError, match="another process goes on with this run"), first.held():
        pytest.fail("it may not write")
    with second.held():
        pass


def test_a_process_that_sleeps_while_it_writes_is_waited_for(tmp_path: Path) -> None:
    """It could not be told apart from one that writes on: nobody takes the folder meanwhile."""
    with subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path)]) as process:
        try:
            deadline = time.monotonic() + 60
            while not (tmp_path / "inside").exists():
                assert time.monotonic() < deadline
                time.sleep(0.01)
            os.kill(process.pid, signal.SIGSTOP)
            with pytest.raises(ResultsError, match="is it stopped"):
                RunFolder.reopen(tmp_path).own(patience=0.2)
            (tmp_path / "go").touch()
            os.kill(process.pid, signal.SIGCONT)
            assert RunFolder.reopen(tmp_path).own(patience=60).is_mine()
        finally:
            process.kill()


def test_whoever_lost_the_folder_leaves_it_as_it_is(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    lease = folder.own()
    status = StatusFile(folder.path, lease, round=0)
    log = EventLog(folder.path / "log.jsonl", {}, lease.is_mine)
    folder.append({"round": 0})
    RunFolder.reopen(folder.path).own()
    before = {path.name: path.read_bytes() for path in folder.path.iterdir()}
    for write in (
        lambda: folder.append({"round": 1}),
        lambda: folder.append_samples(1, [{"prompt": "a"}]),
        lambda: folder.write_config({"seed": 1}),
    ):
        with pytest.raises(TakenOverError):
            write()
    status.end("interrupted")
    log.emit(logging.LogRecord("fedmoe", logging.INFO, "", 0, "I am back", (), None))
    log.close()
    assert {path.name: path.read_bytes() for path in folder.path.iterdir()} == before
    assert read_metrics(folder.path) == [{"round": 0}]
    assert read_status(folder.path)["state"] == "running"


def test_who_owns_and_starts_a_run_is_nothing_of_it(tmp_path: Path) -> None:
    RunFolder(tmp_path / "run").own()
    write_launch(tmp_path / "run", Launch("/app"))
    assert not holds_files(tmp_path / "run")
    RunFolder(tmp_path / "run").append({"round": 0})
    assert holds_files(tmp_path / "run")
