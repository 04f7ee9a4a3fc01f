"""``status.json``: how a run stands, for others to read while it runs and after it.

A thread renews it, so that a run whose process was killed can be told from one in a long round.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from fedmoe_app.report.log import ResultsError, write_atomic

STATUS_FILE = "status.json"
BEAT_SECONDS = 10.0
STALE_SECONDS = 6 * BEAT_SECONDS

RUNNING, COMPLETED, FAILED, INTERRUPTED = "running", "completed", "failed", "interrupted"
STALE = "stale"  # never written: it says it is running, but nobody renews it


class StatusFile:
    """The status of one run, written on every change and every few seconds.

    Args:
        folder: the result folder.
        fields: what does not change, such as the scheme and the number of rounds.
    """

    def __init__(self, folder: Path, **fields: Any) -> None:
        self._path = folder / STATUS_FILE
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._fields: dict[str, Any] = {
            "state": RUNNING,
            **fields,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": time.time(),
        }
        self.update()
        self._thread = threading.Thread(target=self._beat, name="fedmoe-status", daemon=True)
        self._thread.start()

    def update(self, **fields: Any) -> None:
        """Change some fields and write the file."""
        with self._lock:
            self._fields |= fields
            content = self._fields | {"updated": time.time()}
            with suppress(OSError):  # a full disk fails where results are written, with a message
                write_atomic(self._path, json.dumps(content, indent=1))

    def end(self, state: str, **fields: Any) -> None:
        """Write how the run ended; no beat comes after it."""
        self._ended.set()
        self._thread.join()
        self.update(state=state, ended=time.time(), **fields)

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            self.update()


def read_status(folder: Path) -> dict[str, Any]:
    """Return a run's status; ``state`` is ``stale`` where its process is gone.

    Raises:
        ResultsError: when the folder has no status that can be read.
    """
    path = folder / STATUS_FILE
    try:
        status = dict(json.loads(path.read_text(encoding="utf-8")))
        if status["state"] == RUNNING and not _is_alive(status):
            status["state"] = STALE
    except FileNotFoundError:
        raise ResultsError(f"{path}: no such file; name the result folder of a run") from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ResultsError(f"{path}: cannot be read ({error})") from None
    return status


def note_interruption(folder: Path) -> None:
    """Let the status of a run whose process was ended from outside say so; else it stays."""
    with suppress(ResultsError, OSError):
        status = read_status(folder)
        if status["state"] == STALE:
            ended = status | {"state": INTERRUPTED, "ended": time.time()}
            write_atomic(folder / STATUS_FILE, json.dumps(ended, indent=1))


def is_running(folder: Path) -> bool:
    """Whether a process is writing to this result folder."""
    with suppress(ResultsError):
        return bool(read_status(folder)["state"] == RUNNING)
    return False


def _is_alive(status: dict[str, Any]) -> bool:
    """Ask for the process where it can be asked, that is on its own host; else go by the beat."""
    if status["host"] == socket.gethostname() and not _is_process(status["pid"]):
        return False
    return bool(time.time() - status["updated"] < STALE_SECONDS)


def _is_process(pid: int) -> bool:
    """Whether there is such a process; one that was killed and not yet waited for is none."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
