"""``status.json``: how a run stands, for others to read while it runs and after it.

A thread renews it (``heartbeat``, and ``updated``, the same moment in seconds), so that whoever
reads it can tell a run whose process died from one in a long round: a process that is killed
cannot write that it was.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from fedmoe_app.config.files import write_atomic
from fedmoe_app.results.callbacks import Callback
from fedmoe_app.results.events import Ended, logger, tell
from fedmoe_app.results.folder import (
    STILL_RUNNING,
    ResultsError,
    list_checkpoints,
    read_metrics,
    round_of,
)
from fedmoe_app.results.lease import Lease, TakenOverError
from fedmoe_app.shown.terminal import shell_word

if TYPE_CHECKING:
    from fedmoe_app.results.metrics import RoundRecord

STATUS_FILE = "status.json"
BEAT_SECONDS = 10.0
STALE_SECONDS = 6 * BEAT_SECONDS
MAX_SHARE = 0.02  # of the time that goes into writing beats, while the disk is not too slow
MAX_PAUSE = STALE_SECONDS / 2
MAX_ERROR = 1500  # characters, so that the file fits into one block of the disk: see _overwrite

RUNNING, COMPLETED, FAILED, INTERRUPTED = "running", "completed", "failed", "interrupted"
DIED = "died"  # written by whoever started the run and saw that it is over
STALE = "stale"  # never written: it says it is running, but nobody renews it
GONE, SILENT = "gone", "silent"  # what is known of the process of a stale run

_POLL = 0.25


class StatusFile(Callback):
    """The status of one run, written on every change and every few seconds.

    Args:
        folder: the result folder.
        lease: the right to write to it; a process that lost it writes nothing.
        fields: ``round``, the last one that is done, ``num_rounds``, and what does not change, such
            as the scheme; of a resumed run also what :func:`earlier_parts` returns.
    """

    def __init__(self, folder: Path, lease: Lease | None = None, **fields: Any) -> None:
        self._path = folder / STATUS_FILE
        self._lease = lease
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._fields: dict[str, Any] = {
            "state": RUNNING,
            **fields,
            **_this_process(),
            "started": time.time(),
        }
        self.update()
        self._thread = threading.Thread(target=self._beat, name="fedmoe-status", daemon=True)
        self._thread.start()

    def update(self, **fields: Any) -> None:
        """Change some fields and write the file."""
        self._write(fields, sync=True)

    def end(self, state: str, **fields: Any) -> None:
        """Write how the run ended; no beat comes after it."""
        self._ended.set()
        self._thread.join()
        self.update(state=state, ended=time.time(), **fields)

    def on_round(self, record: RoundRecord) -> None:
        """Note a round, and into how many partitions the clients split the data."""
        split = max((update.num_partitions for update in record.updates), default=0)
        known = {"num_partitions": split} if split else {}
        self.update(round=record.server_round, **known)

    def on_end(self, error: BaseException | None) -> None:
        """Write how the run ended, and say how to go on with one that did not complete."""
        if error is None:
            self.end(COMPLETED)
        elif isinstance(error, TakenOverError):  # nothing may be written any more
            self._ended.set()
            self._thread.join()
        else:
            self._say_how_to_go_on(error)

    def _say_how_to_go_on(self, error: BaseException) -> None:
        is_fault = isinstance(error, Exception)  # not Ctrl-C or the end of the process
        state = FAILED if is_fault else INTERRUPTED
        self.end(state, error=str(error) or type(error).__name__)
        done, rounds = self._fields["round"], self._fields["num_rounds"]
        tell(Ended(state, max(done, 0), rounds, str(error) if is_fault else ""))
        if done >= 0:
            logger.info("to go on: %s", how_to_resume(self._path.parent))

    def _beat(self) -> None:
        pause = BEAT_SECONDS
        while not self._ended.wait(pause):
            started = time.monotonic()
            self._write({}, sync=False)  # a beat that a power cut takes away is no loss
            taken = time.monotonic() - started
            pause = min(MAX_PAUSE, max(BEAT_SECONDS, taken / MAX_SHARE))

    def _write(self, fields: dict[str, Any], sync: bool) -> None:
        if self._lease is not None and not self._lease.is_mine():
            return
        with self._lock:
            self._fields |= fields
            write_status(self._path, self._fields | _now(), sync)


def write_status(path: Path, fields: dict[str, Any], sync: bool = True) -> None:
    """Write a status file, also on a full disk; where that fails, too, the old one stays."""
    error = str(fields.get("error", ""))
    cut = {"error": error if len(error) <= MAX_ERROR else f"{error[: MAX_ERROR - 3]}..."}
    text = json.dumps(fields | (cut if error else {}), indent=1)
    try:
        write_atomic(path, text, sync=sync)
    except OSError:
        with suppress(OSError):
            _overwrite(path, text)


def _overwrite(path: Path, text: str) -> None:
    """Write over a file that is there: it fits into the block of the disk that it has already.

    A new file, which :func:`write_atomic` would rename, has no room on a full disk.
    """
    descriptor = os.open(path, os.O_RDWR)
    try:
        before = os.pread(descriptor, 2**16, 0)
        data = text.encode().ljust(len(before))  # JSON may end in spaces
        if os.pwrite(descriptor, data, 0) < len(data):
            os.pwrite(descriptor, before, 0)
            os.ftruncate(descriptor, len(before))
    finally:
        os.close(descriptor)


def read_status(folder: Path) -> dict[str, Any]:
    """Return a run's status.

    ``state`` is ``stale`` where its process is gone or silent for too long; ``process`` then tells
    which of the two.

    Raises:
        ResultsError: when the folder has no status that can be read.
    """
    path = folder / STATUS_FILE
    try:
        status = dict(json.loads(path.read_text(encoding="utf-8")))
        if status["state"] == RUNNING and (fault := _fault_of(status)):
            status |= {"state": STALE, "process": fault}
    except FileNotFoundError:
        raise ResultsError(f"{path}: no such file; name the result folder of a run") from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ResultsError(f"{path}: cannot be read ({error})") from None
    return status


def earlier_parts(folder: Path) -> dict[str, Any]:
    """Return what the status of a resumed run says of the parts before this one.

    That is ``resumes``, ``seconds_before``, how the last part ended (``last_end``), and what else
    stays true: into how many partitions the data is split, what was done in vain (``repeated``).
    """
    try:
        status = read_status(folder)
        ended = float(status.get("ended") or status["updated"])
        spent = max(0.0, ended - float(status["started"]))
        before = float(status.get("seconds_before", 0.0))
        resumes = int(status.get("resumes", 0))
    except (ResultsError, KeyError, TypeError, ValueError):
        return {"resumes": 1}
    last = {"state": status["state"], "error": status.get("error", ""), "time": ended}
    parts = {"resumes": resumes + 1, "seconds_before": round(before + spent, 3), "last_end": last}
    kept = ("num_partitions", "repeated")
    return parts | {name: status[name] for name in kept if name in status}


def wait_until_free(folder: Path) -> None:
    """Return once no process is writing to this result folder.

    One that is alive is seen at its next beat; one that was stopped, or is on another machine and
    gone, is waited for until it has been silent for too long.

    Raises:
        ResultsError: if the run there is still running.
    """
    first = _beat_of(folder)
    while is_running(folder):
        if _beat_of(folder) != first or time.time() - (first or 0.0) < 1.5 * BEAT_SECONDS:
            raise ResultsError(f"results: {folder}: {STILL_RUNNING}; stop it")
        time.sleep(_POLL)


def note_interruption(folder: Path, patience: float = 0.0) -> None:
    """Let the status of a run whose process was ended from outside say so; else it stays.

    Args:
        folder: the result folder.
        patience: seconds to wait for the end of its process.
    """
    deadline = time.monotonic() + patience
    while is_running(folder) and time.monotonic() < deadline:
        time.sleep(_POLL)
    with suppress(ResultsError, OSError):
        status = read_status(folder)
        if status["state"] == STALE:
            _end(folder, status, INTERRUPTED, {})


def note_death(folder: Path, flower_run: str, error: str) -> None:
    """Note that Flower has ended a run that could not write so itself.

    Args:
        folder: the result folder.
        flower_run: Flower's id of the run; a status of any other run stays as it is, and so does
            one that names no run as long as its process is heard of.
        error: what Flower says.
    """
    with suppress(ResultsError, OSError):
        status = read_status(folder)
        states = (RUNNING, STALE) if "flower_run" in status else (STALE,)
        if status["state"] in states and status.get("flower_run", flower_run) == flower_run:
            with suppress(TimeoutError):  # should its process wake up, it writes nothing any more
                Lease(folder).take(patience=1.0)
            _end(folder, status, DIED, {"error": error})


def note_failure(folder: Path, error: str) -> None:
    """Note that a run could not be gone on with; a folder without a status gets none."""
    with suppress(ResultsError, OSError):
        status = read_status(folder)
        if status["state"] != RUNNING:
            _end(folder, status, FAILED, {"error": error})


def is_running(folder: Path) -> bool:
    """Whether a process is writing to this result folder."""
    with suppress(ResultsError):
        return bool(read_status(folder)["state"] == RUNNING)
    return False


def _end(folder: Path, status: dict[str, Any], state: str, fields: dict[str, Any]) -> None:
    known = {name: value for name, value in status.items() if name != "process"}
    # It lived until its last beat, as far as anybody knows.
    ended = {"state": state, "ended": status.get("updated", time.time())}
    write_status(folder / STATUS_FILE, known | ended | fields)


def _beat_of(folder: Path) -> float | None:
    with suppress(ResultsError, KeyError, TypeError, ValueError):
        return float(read_status(folder)["updated"])
    return None


def _now() -> dict[str, Any]:
    now = time.time()
    text = datetime.fromtimestamp(now, UTC).isoformat(timespec="seconds")
    return {"heartbeat": text, "updated": now}


def _this_process() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "pid_namespace": _pid_namespace(),
    }


def _fault_of(status: dict[str, Any]) -> str:
    """Ask for the process where it can be asked, that is beside it; else go by the beat."""
    if _is_beside(status) and not _is_process(status["pid"], status["updated"]):
        return GONE
    return "" if time.time() - status["updated"] < STALE_SECONDS else SILENT


def _is_beside(status: dict[str, Any]) -> bool:
    """Whether the process ran on this machine, and not in a container with pids of its own."""
    here = status["host"] == socket.gethostname()
    return here and status.get("pid_namespace", "") in ("", _pid_namespace())


def _is_process(pid: int, last_beat: float) -> bool:
    """Whether there is such a process; one that was killed and not yet waited for is none."""
    try:
        process = psutil.Process(pid)
        # One that is younger than the beat was given the same number later.
        is_younger = process.create_time() > last_beat + 2 * BEAT_SECONDS
        return not is_younger and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _pid_namespace() -> str:
    """Name the set of pids that this process sees; a container has one of its own."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def how_to_resume(folder: Path) -> str:
    """Return the command, to be copied, that goes on with the run of a result folder.

    Where the last rounds failed and no round is left, it repeats them.
    """
    folder = Path(os.path.abspath(folder))
    return f"fedmoe resume {shell_word(_where_to_begin(folder))}"


def _where_to_begin(folder: Path) -> Path:
    """Return the folder, or the checkpoint before the failed rounds at the end of a whole run."""
    try:
        rounds = int(read_status(folder)["num_rounds"])
        lines = read_metrics(folder)
    except (ResultsError, KeyError, TypeError, ValueError):
        return folder
    checkpoints = list_checkpoints(folder)
    if not checkpoints or round_of(checkpoints[0]) < rounds:
        return folder
    good = [line["round"] for line in lines if line.get("status", "ok") == "ok"]
    before = [path for path in checkpoints if round_of(path) <= max(good, default=-1)]
    return before[0] if before and before[0] != checkpoints[0] else folder
