"""Peaks of anonymous memory (Linux: RssAnon), and cells in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MIB = 2**20


def anonymous() -> int:
    """Return the bytes of anonymous memory: what is allocated, without files that are mapped."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("this benchmark reads RssAnon of /proc/self/status, which only Linux has")


class Peak:
    """The largest anonymous memory seen, sampled every millisecond."""

    def __init__(self) -> None:
        self.bytes = anonymous()


@contextmanager
def watch_memory() -> Iterator[Peak]:
    """Sample the memory of this process while the block runs."""
    peak, done = Peak(), threading.Event()

    def watch() -> None:
        while not done.wait(0.001):
            peak.bytes = max(peak.bytes, anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()
        peak.bytes = max(peak.bytes, anonymous())


def in_own_process(module: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Run ``python -m module ARGUMENTS`` and return the JSON of its last line."""
    command = [sys.executable, "-W", "ignore", "-m", module, *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))
