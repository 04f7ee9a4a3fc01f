"""Who may write to a result folder: the process that took it last.

A ServerApp that was stopped for minutes (a suspended machine, SIGSTOP) is given up by Flower, and
the run is resumed by another process. When the first one wakes up it does not know that; it must
write no line, no checkpoint and no status any more. So every process that begins or resumes a run
puts its own token into a file of the folder, and looks before it writes whether it still stands
there. Looking and writing happen under a lock of the file, so that nobody can take the folder in
between.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LEASE_FILE = ".owner"
PATIENCE = 60.0  # seconds that the owner may be in the middle of writing
_POLL = 0.05
_LENGTH = 32  # characters of a token


class TakenOverError(RuntimeError):
    """Another process goes on with this run; this one must not write to its folder any more."""


class Lease:
    """The right of this process to write to a result folder.

    Args:
        folder: the result folder; it exists.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / LEASE_FILE
        self._token = uuid.uuid4().hex
        self._thread_lock = threading.RLock()
        self._depth = 0  # of `with held()` blocks in this thread

    def take(self, patience: float = PATIENCE) -> None:
        """Become the only process that may write; whoever was it before is not any more.

        Raises:
            TimeoutError: if the owner is in the middle of writing, and stays there for ``patience``
                seconds.
        """
        with self._thread_lock, _locked(self._path, patience) as file:
            os.pwrite(file, self._token.encode(), 0)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Write within this block only; blocks may lie in one another.

        Raises:
            TakenOverError: if another process has taken the folder.
        """
        with self._thread_lock:
            if self._depth:
                yield
                return
            with _locked(self._path, float("inf")) as file:
                self._check(os.pread(file, _LENGTH, 0).decode(errors="replace"))
                self._depth += 1
                try:
                    yield
                finally:
                    self._depth -= 1

    def is_mine(self) -> bool:
        """Tell whether this process may still write, without waiting for the lock."""
        with suppress(OSError):
            return self._path.read_text(encoding="utf-8", errors="replace") == self._token
        return False

    def _check(self, token: str) -> None:
        if token != self._token:
            raise TakenOverError(
                f"results: {self._path.parent}: another process goes on with this run; this one "
                "ends and writes nothing"
            )


@contextmanager
def _locked(path: Path, patience: float) -> Iterator[int]:
    """Open a file and lock it against other processes; a process that ends gives the lock back."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        deadline = time.monotonic() + patience
        while not _lock(descriptor):
            if time.monotonic() >= deadline:
                raise TimeoutError(f"{path}: held by a process that is writing")
            time.sleep(_POLL)
        yield descriptor
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # a file system without locks: looking before writing has to do
    return True
