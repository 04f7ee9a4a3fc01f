"""Forked client processes: one a message, nothing of this package in them, none left behind."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import flwr.supernode.cli as program
import pytest

from fedmoe_app.launch.warm import ForkExecutor

PACKAGE = "fedmoe_app"


@pytest.fixture
def executor() -> ForkExecutor:
    return ForkExecutor()


def replace_program(monkeypatch: pytest.MonkeyPatch, function: Callable[[], None]) -> None:
    monkeypatch.setattr(program, "flwr_clientapp", function)


def wait_for_all(executor: ForkExecutor) -> None:
    deadline = time.monotonic() + 20
    while executor.running:
        executor.reconcile()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_each_message_gets_a_process_of_its_own(
    executor: ForkExecutor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def note() -> None:
        loaded = [name for name in sys.modules if name.partition(".")[0] == PACKAGE]
        facts = {"argv": sys.argv, "pid": os.getpid(), "loaded": loaded}
        (tmp_path / f"{sys.argv[-1]}.json").write_text(json.dumps(facts))
        sys.exit(0)

    replace_program(monkeypatch, note)
    executor.launch(["--token", "a"])
    executor.launch(["--token", "b"])
    wait_for_all(executor)
    first, second = (json.loads((tmp_path / f"{name}.json").read_text()) for name in "ab")
    assert first["argv"] == ["flwr-clientapp", "--token", "a"]
    assert len({first["pid"], second["pid"], os.getpid()}) == 3
    assert first["loaded"] == []  # the run's bundle brings its own copy
    assert PACKAGE in sys.modules


def test_an_error_ends_the_fork_and_nothing_else(
    executor: ForkExecutor,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    def fail() -> None:
        raise OSError("no such node")

    replace_program(monkeypatch, fail)
    try:
        executor.launch([])
    finally:
        (tmp_path / str(os.getpid())).touch()  # a fork that came back would leave a second file
    wait_for_all(executor)
    assert len(list(tmp_path.iterdir())) == 1
    assert "OSError: no such node" in capfd.readouterr().err


def test_closing_ends_what_still_runs(
    executor: ForkExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_program(monkeypatch, lambda: time.sleep(60))
    executor.launch([])
    (child,) = executor.running
    executor.close()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
