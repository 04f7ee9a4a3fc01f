"""docker/demo.sh with a ``docker`` that fails: the user sees why, and everything is taken down."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.deploy.environments import DOCKER

# Notes its arguments, and fails with a line of text where they hold $FAIL_AT.
ENGINE = """#!/bin/sh
echo "$*" >>"$CALLS"
case "$*" in
  *"$FAIL_AT"*) echo "it did not work: $FAIL_AT" >&2; exit 3 ;;
  *certificates*) mkdir "$DEMO/keys" ;;
  *logs*) echo "superlink_1 | what the SuperLink said" ;;
esac
"""
STEPS = {
    "compose build": "building the images",
    "fedmoe certificates": "making certificates and keys",
    "demo-data": "making data",
    "compose up": "starting the SuperLink, registering and starting three nodes",
    "fedmoe run": "running",
}


def run_demo(folder: Path, fail_at: str) -> subprocess.CompletedProcess[str]:
    (folder / "bin").mkdir()
    (folder / "bin" / "docker").write_text(ENGINE)
    (folder / "bin" / "docker").chmod(0o755)
    variables = {"DEMO": folder / "demo", "CALLS": folder / "calls", "FAIL_AT": fail_at}
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    return subprocess.run(
        [str(DOCKER / "demo.sh")],
        env={**{name: str(value) for name, value in variables.items()}, "PATH": path},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("fail_at", STEPS)
def test_a_step_that_fails_shows_the_end_of_its_log(fail_at: str, tmp_path: Path) -> None:
    done = run_demo(tmp_path, fail_at)
    assert done.returncode == 3
    assert f"it did not work: {fail_at}\n" in done.stderr
    assert f"error: the demo failed at: {STEPS[fail_at]} (exit code 3)" in done.stderr
    started = fail_at in ("compose up", "fedmoe run")
    assert ("what the SuperLink said" in done.stderr) == started
    calls = (tmp_path / "calls").read_text().splitlines()
    assert "down --volumes --remove-orphans" in calls[-1]


def test_without_an_error_nothing_is_said_of_logs(tmp_path: Path) -> None:
    done = run_demo(tmp_path, "no step has this in it")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-2] == f"results on this machine: {tmp_path}/demo/results/demo"
    assert "down --volumes --remove-orphans" in (tmp_path / "calls").read_text().splitlines()[-1]
