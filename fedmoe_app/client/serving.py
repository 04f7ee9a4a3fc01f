"""Which run this node serves: one at a time, and another is told so.

A SuperNode carries out one message after the other, whatever run it is of. Two runs on the same
nodes would each wait for the other's training, miss their time limits, and fold what is left. So a
node notes the run that it works for; while that goes on, it answers another one at once that it is
busy, and the other server waits (:mod:`fedmoe_app.server.busy`).

Nobody tells a node that a run was stopped. It takes a run for ended when it has been silent for
three times as long as it ever was between two messages, which slow nodes of the same run decide.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from flwr.app import RecordDict

from fedmoe_app.config.files import private_folder, write_atomic
from fedmoe_app.config.names import BUSY_WITH_ANOTHER_RUN
from fedmoe_app.config.paths import home
from fedmoe_app.shown.duration import duration

FIRST_SILENCE = 300.0  # seconds for which a run may be silent after its first message
LEAST_SILENCE, MOST_SILENCE = 60.0, 3600.0
_PATIENCE = 3.0  # times the longest silence so far
_MAX_AGE = 86400.0  # seconds after which a note of a node that is no more is dropped
_KEY = re.compile(r"[0-9a-f]{8,64}")


class BusyError(ValueError):
    """This node works for another run; the message says for how long at most."""


@dataclass(frozen=True)
class _Served:
    """The run that a node works for.

    Attributes:
        run: its key.
        heard: when its last message came or was answered, in seconds since 1970.
        silence: longest time between two messages so far; 0 before the second one.
    """

    run: str
    heard: float
    silence: float = 0.0

    @property
    def until(self) -> float:
        """When it counts as ended unless it is heard of before."""
        limit = _PATIENCE * self.silence if self.silence else FIRST_SILENCE
        return self.heard + min(MOST_SILENCE, max(LEAST_SILENCE, limit))


@contextmanager
def serving(content: RecordDict, node_id: int, shares: bool) -> Iterator[None]:
    """Work for the run of a message within the block.

    Args:
        content: of the message.
        node_id: Flower's, of this node.
        shares: whether that run takes turns with others instead of waiting for them.

    Raises:
        BusyError: if the node works for another run, and this one does not share.
    """
    key = run_key_of(content)
    if key is None or not _is_supernode():
        yield
        return
    path, now = _path(node_id), time.time()
    served = _read(path)
    if served is not None and served.run != key and 0 <= served.until - now <= MOST_SILENCE:
        if not shares:
            raise BusyError(_explained(served, now))
        yield  # the note of the other run stays
        return
    _write(path, _begun(served, key, now))
    try:
        yield
    finally:
        if (begun := _read(path)) is not None and begun.run == key:
            _write(path, replace(begun, heard=time.time()))


def end_of_run(content: RecordDict, node_id: int) -> None:
    """Take note that the run of a message has ended: the node is free."""
    path = _path(node_id)
    if (served := _read(path)) is not None and served.run == run_key_of(content):
        with suppress(OSError):
            path.unlink(missing_ok=True)


def run_key_of(content: RecordDict) -> str | None:
    """Return the key of the run that a message belongs to; None if it has none that is valid."""
    task = content.config_records.get("task")
    key = str(task.get("run-key", "")) if task is not None else ""
    return key if _KEY.fullmatch(key) else None


def _begun(served: _Served | None, key: str, now: float) -> _Served:
    """Return the note at the beginning of a message."""
    if served is None or served.run != key or now > served.until:
        return _Served(key, now)
    return _Served(key, now, max(served.silence, now - served.heard))


def _explained(served: _Served, now: float) -> str:
    return (
        f"{BUSY_WITH_ANOTHER_RUN} ({served.run[:6]}), last heard of "
        f"{duration(now - served.heard)} ago; free when that ends, or if it is silent for "
        f"{duration(served.until - now)} more"
    )


def _is_supernode() -> bool:
    """Whether a SuperNode of Flower 1.39 started this process, not a simulation or this program.

    Simulated nodes belong to one run anyway, and their ids mean nothing on the next day.
    """
    return Path(sys.argv[0]).name == "flwr-clientapp"


def _path(node_id: int) -> Path:
    return home() / "nodes" / f"{node_id}.json"


def _read(path: Path) -> _Served | None:
    try:
        return _Served(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def _write(path: Path, served: _Served) -> None:
    """Write the note; a full disk costs the note, not the round."""
    with suppress(OSError):
        if not path.exists():
            _drop_old(private_folder(path.parent))
        write_atomic(path, json.dumps(asdict(served)), private=True)


def _drop_old(folder: Path) -> None:
    for path in folder.iterdir():
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _MAX_AGE:
                path.unlink()
