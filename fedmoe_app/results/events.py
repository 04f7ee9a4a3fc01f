"""``log.jsonl``: what the console shows, as one JSON object a line for programs to read.

Every line has ``time`` (UTC), ``level``, ``run`` (the result folder's name), ``scheme``, ``event``
and ``message``; ``round``, ``client`` and ``node`` where the event has one, and figures of its own.
Nothing of a data row is ever in it: messages of clients name file, line, row and column only.
"""

from __future__ import annotations

import logging
import re
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedmoe_app.results.folder import append_text
from fedmoe_app.shown.logs import json_line, log_line

LOG_FILE = "log.jsonl"
MAX_WAITING = 10_000  # lines that wait while the disk is full
MESSAGE = "message"  # the event of a line that has no name of its own

_WHO = re.compile(r"(client|node) (\d+)")


def described(event: str, **fields: Any) -> dict[str, Any]:
    """Return the ``extra`` of a logging call that gives the line an event and figures."""
    return {"event": event, "fields": fields}


class EventLog(logging.Handler):
    """Writes the records of the app's logger to a file, a line a record, at once.

    Args:
        path: the file; lines are added to what it holds.
        constant: what every line has, such as the run and the scheme.
        may_write: asked before each line; a process whose run was taken over must be silent.
    """

    def __init__(
        self,
        path: Path,
        constant: Mapping[str, Any],
        may_write: Callable[[], bool] = lambda: True,
    ) -> None:
        super().__init__()
        self._may_write = may_write
        self._constant = dict(constant)
        self._round: int | None = None
        self._path = path
        self._waiting: deque[str] = deque(maxlen=MAX_WAITING)

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line; a full disk must not stop the run."""
        try:
            line = json_line(self._line(record), allow_nan=True, default=str)
        except ValueError:
            self.handleError(record)
            return
        self._waiting.append(line + "\n")
        self._write()

    def close(self) -> None:
        """Try once more to write what did not fit on the disk."""
        self._write()
        super().close()

    def _write(self) -> None:
        """Write the lines that wait; where there is no room they wait for the next one."""
        with suppress(OSError):
            if self._waiting and self._may_write():
                append_text(self._path, "".join(self._waiting), sync=False)
                self._waiting.clear()

    def _line(self, record: logging.LogRecord) -> dict[str, Any]:
        fields = dict(getattr(record, "fields", {}))
        # Lines of clients and libraries do not know the round: it is that of the last one that did.
        self._round = fields.pop("round", self._round)
        who = _WHO.match(str(fields.get("who", "")))
        return {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            **self._constant,
            "round": self._round,
            "event": getattr(record, "event", MESSAGE),
            **({who[1]: int(who[2])} if who else {}),
            **fields,
            "message": log_line(record.getMessage().strip()),
        }
