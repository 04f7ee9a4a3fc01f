import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from fedmoe_app.launch.processes import ProcessGroup, free_port, program, signals_raise

# A child that leaves the group's session and outlives its parent, as Ray's do.
ORPHAN = """
import subprocess, sys
code = {code!r}
nothing = subprocess.DEVNULL
child = subprocess.Popen(
    [sys.executable, "-c", code], start_new_session=True, stdout=nothing, stderr=nothing
)
print(child.pid, flush=True)
"""
SLEEP = "import time; time.sleep(60)"
STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(60)
"""


def python(group: ProcessGroup, code: str) -> subprocess.Popen[str]:
    return group.start([sys.executable, "-c", code], subprocess.PIPE)


def is_alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_an_orphan_is_found_and_ended() -> None:
    with ProcessGroup(os.environ) as group:
        parent = python(group, ORPHAN.format(code=SLEEP))
        output, _ = parent.communicate(timeout=10)
        orphan = int(output)
        assert [process.pid for process in group.alive()] == [orphan]
    assert not is_alive(orphan)
    assert group.alive() == []


def test_what_ignores_sigterm_is_killed() -> None:
    with ProcessGroup(os.environ, grace=0.3) as group:
        stubborn = python(group, STUBBORN)
        assert stubborn.stdout is not None
        assert stubborn.stdout.readline() == "ready\n"
    assert not is_alive(stubborn.pid)


def test_killed_are_all_at_once_orphans_included() -> None:
    """Not one gets the time to do anything more."""
    with ProcessGroup(os.environ, grace=60) as group:
        output, _ = python(group, ORPHAN.format(code=STUBBORN)).communicate(timeout=10)
        group.kill()
        assert not is_alive(int(output))
        assert group.alive() == []


def test_other_processes_stay() -> None:
    with subprocess.Popen([sys.executable, "-c", SLEEP]) as other:
        with ProcessGroup(os.environ) as group:
            python(group, SLEEP)
        assert other.poll() is None
        other.kill()


def test_an_error_ends_the_group_too() -> None:
    with pytest.raises(RuntimeError, match="boom"), ProcessGroup(os.environ) as group:
        process = python(group, SLEEP)
        raise RuntimeError("boom")
    assert process.poll() is not None


def test_signals_become_keyboard_interrupts() -> None:
    earlier = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), signals_raise(signal.SIGTERM):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert signal.getsignal(signal.SIGTERM) is earlier


def test_free_port_can_be_bound_and_is_not_taken() -> None:
    port = free_port()
    assert free_port([port]) != port
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", port))


def test_programs_stand_beside_python() -> None:
    assert Path(program("pytest")).parent == Path(sys.executable).parent
    assert program("no-such-program") == "no-such-program"
