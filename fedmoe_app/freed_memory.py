"""How the server's process treats memory that is freed."""

from __future__ import annotations

import ctypes
import sys

# Of glibc's mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGE = 32 * 2**20  # bytes; allocations from here on come from the system and go back to it
_NEVER = 2**31 - 1


def keep_freed_memory() -> None:
    """Use freed tensors again, instead of giving them back and taking them anew in every round.

    A round frees as many arrays as it makes, of the same sizes. The system hands out pages of
    zeros one by one, which takes longer than summing into them. Does nothing without glibc.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE)
        mallopt(_M_TRIM_THRESHOLD, _NEVER)
