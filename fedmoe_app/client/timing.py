"""Where a client's time goes: wall seconds of the phases of one message, and its CPU seconds.

=========== ======================================================================
download    from the making of the message to the start of the work on it: transfer, the node's
            polling. It compares the server's clock with the node's
start       of the process, where there is one for each message, and of the imports
load        tokenizer, model and task
data        the node's rows
apply       decoding the message and writing the received values into the model
evaluate    both scores of the client's own test examples
train
encode      the changes, and what is kept for the next round
cpu         no phase: user and system time of all of them but download, which other
            programs on the node do not stretch
=========== ======================================================================
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from flwr.app import Message

from fedmoe_app.wire.metrics import CPU, PREFIX

_PROCESS_FOR_EACH_MESSAGE = "flwr-clientapp"  # Flower's program


class Stopwatch:
    """Adds up the wall seconds of phases; one object a message."""

    def __init__(self) -> None:
        """Know of no phase yet."""
        self.seconds: dict[str, float] = {}
        self._cpu_before = time.process_time()

    @classmethod
    def for_message(cls, message: Message) -> Stopwatch:
        """Start with what happened before the app was called: ``download`` and ``start``."""
        watch = cls()
        start = _process_age()
        watch.add("start", start)
        if start:
            watch._cpu_before = 0.0  # all of the process's time is this message's
        # Two clocks: one that is ahead must not give a negative time.
        watch.add("download", max(0.0, time.time() - start - message.metadata.created_at))
        return watch

    def add(self, name: str, seconds: float) -> None:
        """Add to a phase."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time of the ``with`` block to a phase."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - started)

    def metrics(self) -> dict[str, float]:
        """Return all phases until now under the names that they have in a reply."""
        seconds = self.seconds | {CPU: time.process_time() - self._cpu_before}
        return {f"{PREFIX}{name}": value for name, value in seconds.items()}


def _process_age() -> float:
    """Return the seconds that this process has lived if it was started for one message, else 0."""
    if Path(sys.argv[0]).name != _PROCESS_FOR_EACH_MESSAGE:
        return 0.0
    try:
        # psutil knows the boot time to the second only.
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        ticks = int(fields[19])  # since boot: field 22 of proc(5)
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError):
        return max(0.0, time.time() - psutil.Process().create_time())
