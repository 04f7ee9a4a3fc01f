"""How the server's process takes memory from the system."""

from __future__ import annotations

import ctypes
import sys

_M_MMAP_THRESHOLD = -3  # of glibc's mallopt(3)
_LARGE = 2**20  # bytes


def keep_memory_steady() -> None:
    """Let every large buffer be a mapping of its own that goes back to the system when it is freed.

    By itself glibc stops doing that once it has seen some, and puts replies of megabytes between
    the small objects that outlive them: the process then grows, by chance up to twice its size over
    a thousand replies. The price: the sums of a round take fresh pages each time, about two seconds
    a gigabyte (docs/scale.md). Does nothing without glibc.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE)
