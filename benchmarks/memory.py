"""Anonymous memory of this process: what it holds itself, without files that are mapped."""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType

MIB = 2**20


def anonymous() -> int:
    """Return this process's anonymous memory in bytes (Linux: RssAnon)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


class PeakMemory:
    """Context manager that samples the anonymous memory every millisecond.

    Attributes:
        start: bytes at the beginning.
        peak: most bytes inside.
    """

    def __enter__(self) -> PeakMemory:
        self.start = self.peak = anonymous()
        self._done = threading.Event()
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        self._watcher.join()
        self.peak = max(self.peak, anonymous())

    @property
    def added(self) -> int:
        """Bytes by which the peak is above the beginning."""
        return self.peak - self.start

    def _watch(self) -> None:
        while not self._done.wait(0.001):
            self.peak = max(self.peak, anonymous())
