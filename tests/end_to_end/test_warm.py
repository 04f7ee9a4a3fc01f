"""The SuperExec of `fedmoe supernode`: what it has in memory, its health, its end."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fedmoe_app.cli.commands.health import is_serving
from fedmoe_app.config.names import LOOPBACK
from fedmoe_app.launch.environment import run_environment
from fedmoe_app.launch.processes import ProcessGroup, free_port, program

pytestmark = pytest.mark.slow

PRELOAD = """
import threading
from fedmoe_app.launch.warm import preload
preload()
import torch
print(threading.active_count(), torch.cuda.is_initialized(), "fedmoe_app.client" in sys.modules)
"""


def test_what_is_forked_has_one_thread_and_no_gpu() -> None:
    command = [sys.executable, "-c", f"import sys{PRELOAD}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.split() == ["1", "False", "False"]


@pytest.mark.parametrize("how", ["terminate", "kill"])
def test_nothing_is_left_when_the_supernode_ends(how: str, tmp_path: Path) -> None:
    ports = free_port(), free_port()
    command = [program("fedmoe"), "supernode", "--insecure", "--port", str(ports[0])]
    command += ["--superlink", f"{LOOPBACK}:{ports[1]}"]  # where nobody listens: it keeps trying
    group = ProcessGroup(run_environment(tmp_path))
    with group, (tmp_path / "log").open("w") as log:
        node = group.start(command, log)
        _wait(lambda: len(group.alive()) == 2, "SuperNode and SuperExec")
        getattr(node, how)()
        node.wait(timeout=60)
        _wait(lambda: not group.alive(), "the end of both")


def _wait(is_so: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline, f"{what}: not within a minute"
        time.sleep(0.2)


@pytest.mark.parametrize("how", ["terminate", "kill"])
def test_health_is_answered_when_messages_are_taken_and_as_long(how: str, tmp_path: Path) -> None:
    ports = free_port(), free_port()
    health = f"{LOOPBACK}:{ports[1]}"
    command = [program("fedmoe"), "superexec", "--runtime-api-address", f"{LOOPBACK}:{ports[0]}"]
    group = ProcessGroup(run_environment(tmp_path))
    with group, (tmp_path / "log").open("w") as log:
        superexec = group.start([*command, "--health-server-address", health], log)
        assert not is_serving(health)  # it has torch to import
        _wait(lambda: is_serving(health), "the answer")
        getattr(superexec, how)()
        superexec.wait(timeout=60)
        _wait(lambda: not is_serving(health) and not group.alive(), "the end of both")
