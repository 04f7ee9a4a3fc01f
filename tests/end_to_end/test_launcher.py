"""The launcher and the deployment harness over real Flower, with an app that trains nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedmoe_app import read_metrics
from fedmoe_app.launch.processes import ProcessGroup
from tests.end_to_end.processes import deployment


@pytest.fixture
def group(fedmoe_home: Path) -> Iterator[ProcessGroup]:
    """Finds whatever the commands that it starts leave behind, and ends it."""
    assert os.environ["FEDMOE_HOME"] == str(fedmoe_home)
    with ProcessGroup(os.environ) as group:
        yield group


def fedmoe(group: ProcessGroup, *arguments: str) -> subprocess.Popen[str]:
    return group.start([sys.executable, "-m", "fedmoe_app.cli.main", *arguments], subprocess.PIPE)


@pytest.mark.slow  # test_runs.py starts one of the real app
def test_simulation_ends_with_table_and_folder(
    group: ProcessGroup, echo_app: Path, fedmoe_home: Path
) -> None:
    run = fedmoe(group, "run", str(echo_app), "--clients", "3", "--rounds", "1", "--name", "one")
    output, _ = run.communicate(timeout=120)
    lines = output.splitlines()
    folder = fedmoe_home / "results" / "one"
    assert run.returncode == 0, output
    assert "3 nodes, HF_HUB_OFFLINE=1" in lines
    assert "round 1: partitions [0, 1, 2]" in lines
    assert lines[-1] == f"results: {folder}"
    assert any("bytes down" in line for line in lines)
    assert not [line for line in lines if "Flower" in line or "flwr" in line or "Ray" in line]
    assert [line["num_clients"] for line in read_metrics(folder)] == [0, 3]
    assert (folder / "flower.log").is_file()
    assert group.alive() == []


@pytest.mark.deployment
def test_grpc_deployment_completes_and_leaves_nothing(echo_app: Path, tmp_path: Path) -> None:
    with deployment(tmp_path, num_nodes=3) as flower:
        overrides = {"num-server-rounds": 1, "min-clients": 3}
        outcome = flower.run(echo_app, overrides | {"output-dir": str(tmp_path), "run-name": "one"})
    assert outcome.completed, outcome
    assert "round 1: partitions [0, 1, 2]" in flower.lines
    assert [line["num_clients"] for line in read_metrics(tmp_path / "one")] == [0, 3]
    flower.assert_nothing_left()


@pytest.mark.slow
def test_failed_run_exits_with_one(group: ProcessGroup, echo_app: Path, fedmoe_home: Path) -> None:
    run = fedmoe(group, "run", str(echo_app), "--clients", "2", "--rounds", "1", "-c", "seed=13")
    output, _ = run.communicate(timeout=120)
    assert run.returncode == 1
    assert "Traceback" not in output
    assert "error: the run ended as finished:failed: seed 13 brings bad luck" in output
    assert "results:" not in output


@pytest.mark.slow
def test_a_ray_that_cannot_start_is_told_with_its_cause(
    echo_app: Path, fedmoe_home: Path, tmp_path: Path
) -> None:
    """The names of its sockets are too long for the system."""
    folder = tmp_path / ("long" * 25)
    folder.mkdir()
    with ProcessGroup({**os.environ, "RAY_TMPDIR": str(folder)}) as group:
        run = fedmoe(group, "run", str(echo_app), "--clients", "2", "--rounds", "1")
        output, _ = run.communicate(timeout=120)
    assert run.returncode == 1
    last = output.splitlines()[-1]
    assert "Ray, which runs the clients, failed: " in last
    assert "AF_UNIX path length cannot exceed 107 bytes" in last


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interruption_leaves_no_process(
    group: ProcessGroup, echo_app: Path, fedmoe_home: Path, number: signal.Signals
) -> None:
    run = fedmoe(group, "run", str(echo_app), "--clients", "2", "--rounds", "10000")
    assert run.stdout is not None
    for line in run.stdout:
        if line.startswith("round 2"):
            break
    started = time.monotonic()
    run.send_signal(number)
    output, _ = run.communicate(timeout=60)
    assert run.returncode == 130
    assert "interrupted" in output
    assert time.monotonic() - started < 20
    assert group.alive() == []
