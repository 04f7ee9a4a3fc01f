"""Rows that stand or fall by themselves.

With privacy of single examples nobody may learn from a node's answer that it has some row. So a row
that cannot be used must not stop the others, and what is made of a row must not depend on others.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import TypeVar

from fedmoe_app.config.errors import ConfigError
from fedmoe_app.config.policy import RefusedError
from fedmoe_app.data.reading.columns import ROWS
from fedmoe_app.shown.logs import log_line

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


def each_alone(
    num_rows: int, attempt: Callable[[int, int], _T], origin: str, num_at_once: int = ROWS
) -> Iterator[tuple[int, _T]]:
    """Give what is made of runs of rows, with their starts; single rows that fail are left out.

    Rows are taken together while that goes well, and parted where it does not: so what is made of
    several must be what is made of each.

    Args:
        num_rows: how many there are.
        attempt: makes something of the rows from the first number up to the second.
        origin: of the rows, for the warning in this node's log.
        num_at_once: rows that are taken together at most.

    Raises:
        ConfigError, RefusedError: by ``attempt``; these tell of the run and not of a row.
    """
    left_out: list[int] = []
    for start in range(0, num_rows, num_at_once):
        yield from _good(start, min(num_rows, start + num_at_once), attempt, left_out)
    if left_out:
        _log.warning(
            "%s: left out %d of %d rows that cannot be used (the first is row %d)",
            *(log_line(origin), len(left_out), num_rows, left_out[0] + 1),
        )


def _good(
    start: int, stop: int, attempt: Callable[[int, int], _T], left_out: list[int]
) -> Iterator[tuple[int, _T]]:
    try:
        found = attempt(start, stop)
    except (ConfigError, RefusedError):
        raise
    except Exception:  # whatever a row makes a library raise: its owner must not be told apart
        if stop - start == 1:
            left_out.append(start)
            return
        middle = (start + stop) // 2
        yield from _good(start, middle, attempt, left_out)
        yield from _good(middle, stop, attempt, left_out)
    else:
        yield start, found
