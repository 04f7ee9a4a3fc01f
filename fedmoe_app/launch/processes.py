"""Processes that are started together and ended together, grandchildren included.

Some programs (Ray, Flower's SuperExec) put their children into sessions of their own, so that
ending a process group misses them. Every process of a group therefore carries a variable in its
environment that its descendants inherit, and by which they are found.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import IO, Self

import psutil


class ProcessGroup:
    """Start processes with :meth:`start`; leaving the ``with`` block ends all of them.

    Args:
        environment: the environment of every process.
        grace: seconds that a process gets to end by itself before it is killed.
    """

    def __init__(self, environment: Mapping[str, str], grace: float = 8.0) -> None:
        """Start nothing yet."""
        self._mark = f"FEDMOE_GROUP_{uuid.uuid4().hex}"
        self._environment = {**environment, self._mark: "1"}
        self._grace = grace
        self._started: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Self:
        """Return the group."""
        return self

    def __exit__(self, *error: object) -> None:
        """End every process of the group."""
        self.stop()

    def start(
        self, command: Sequence[str], output: IO[str] | int, cwd: Path | None = None
    ) -> subprocess.Popen[str]:
        """Start ``command`` with both its outputs going to ``output`` (a file or ``PIPE``).

        It runs in a session of its own: Ctrl-C in the terminal reaches only the caller, who
        then ends the group in order.
        """
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        self._started.append(process)
        return process

    def alive(self) -> list[psutil.Process]:
        """Return the living processes of the group: those marked and all their descendants."""
        found = {process.pid: process for process in psutil.process_iter() if self._owns(process)}
        for process in list(found.values()):
            with suppress(psutil.Error):
                # A program that rewrites its title destroys the environment that can be read.
                found |= {child.pid: child for child in process.children(recursive=True)}
        return [process for process in found.values() if _is_alive(process)]

    def stop(self) -> None:
        """End every process of the group: SIGTERM first, SIGKILL for what stays."""
        known = self.alive()
        for process in known:
            with suppress(psutil.Error):
                process.terminate()
        # Asked a second time: no more patience.
        with suppress(KeyboardInterrupt):
            psutil.wait_procs(known, timeout=self._grace)
        self._kill(known)

    def kill(self) -> None:
        """End every process of the group at once: none has anything left to do."""
        self._kill(self.alive())

    def _kill(self, known: list[psutil.Process]) -> None:
        late = {process.pid: process for process in [*known, *self.alive()]}
        for process in late.values():
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(list(late.values()), timeout=5.0)
        for started in self._started:
            started.wait()

    def _owns(self, process: psutil.Process) -> bool:
        try:
            return self._mark in process.environ()
        except (psutil.Error, OSError):
            return False


@contextmanager
def signals_raise(*numbers: signal.Signals) -> Iterator[None]:
    """Turn these signals into ``KeyboardInterrupt``, so that ``with`` blocks clean up."""

    def handler(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    earlier = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, action in earlier.items():
            signal.signal(number, action)


def free_port(taken: Sequence[int] = ()) -> int:
    """Return a TCP port that is free on the loopback address now and is not in ``taken``."""
    while True:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = int(listener.getsockname()[1])
        if port not in taken:
            return port


def program(name: str) -> str:
    """Return the path of a console script of the running environment, activated or not."""
    beside = Path(sys.executable).parent / name
    return str(beside) if os.access(beside, os.X_OK) else name


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
