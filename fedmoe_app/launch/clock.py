"""Whether this machine's clock agrees with the SuperLink's.

A SuperNode signs the time of each of its calls, and the SuperLink turns it away where that is more
than 5 s ahead of its own clock or more than 305 s behind it: without a word, and with exit
code 0. The SuperLink does not tell its time either. But it can be asked: a call of an unknown node
that is signed with any time at all is refused for its time, or for something else, which tells
whether the time would do. Where this machine's own would not, other times are tried until one does.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fedmoe_app.flower.fleet import (
    ClockProbe,
    UnreachableError,
    certificates_of,
    fleet,
    node_time,
)

AHEAD, BEHIND = 5.0, 305.0  # seconds that a node's clock may be, at most
_MIDDLE = (AHEAD - BEHIND) / 2  # of what is accepted, from the SuperLink's time on
_STEP = 2 * min(AHEAD - _MIDDLE, _MIDDLE + BEHIND) - 10.0
_MINUTES, _HOURS = 30, 14  # how far off is looked for: every second, and clocks of other time zones


@dataclass(frozen=True)
class ClockFault:
    """A clock that a SuperLink does not accept.

    Attributes:
        seconds: how far ahead of the SuperLink's; negative if behind; None if it is farther off
            than was looked for.
        in_time: False if there was no time to find out how far, and ``seconds`` is None.
    """

    seconds: float | None
    in_time: bool = True

    def __str__(self) -> str:
        limits = f"a node may be {AHEAD:.0f} s ahead or {BEHIND:.0f} s behind"
        if not self.in_time:
            how = "is off the SuperLink's, by how much could not be found out in time"
        elif self.seconds is None:
            how = f"is more than {_MINUTES} minutes off the SuperLink's"
        else:
            way = "ahead of" if self.seconds > 0 else "behind"
            how = f"is {_readable(abs(self.seconds))} {way} the SuperLink's"
        return (
            f"this machine's clock {how}; {limits}, and is turned away else. Set the clocks of "
            "both machines by NTP (timedatectl set-ntp true)"
        )


def check_clock(
    superlink: str, root_certificates: Path | None, insecure: bool = False, seconds: float = 4.0
) -> ClockFault | None:
    """Return what is wrong with this machine's clock in the eyes of a SuperLink; None if nothing.

    Args:
        superlink: ``HOST:PORT`` of its Fleet API.
        root_certificates: its CA; None for those of the system.
        insecure: it has no TLS.
        seconds: to wait for its first answer; if that is no, twice as long to find out how far off.

    Raises:
        UnreachableError: it does not answer.
    """
    certificates = certificates_of(root_certificates)
    with fleet().clock_probe(superlink, certificates, insecure) as asked:
        probe = _Probe(asked, time.monotonic() + seconds)
        if probe.accepts(0.0):
            return None
        probe.deadline = time.monotonic() + 2 * seconds
        try:
            return ClockFault(_offset(probe))
        except UnreachableError:  # out of time: that it is off is known
            return ClockFault(None, in_time=False)


def _offset(probe: _Probe) -> float | None:
    """Return the seconds that this machine's clock is ahead, to the second; None if not found."""
    for offset in _candidates():
        if probe.accepts(_MIDDLE - offset):
            return _refined(probe, offset)
    return None


def _candidates() -> Iterator[float]:
    """Yield offsets to try: the near ones, each close enough to the next, then whole half hours."""
    for count in range(int(_MINUTES * 60 / _STEP) + 2):
        yield from (count * _STEP, -count * _STEP)
    for count in range(1, 2 * _HOURS + 1):
        yield from (count * 1800.0, -count * 1800.0)


def _refined(probe: _Probe, offset: float) -> float:
    """Find the latest time that is accepted: it is ``AHEAD`` seconds after the SuperLink's."""
    accepted, refused = _MIDDLE - offset, _MIDDLE - offset + AHEAD + BEHIND
    while refused - accepted > 0.5:
        middle = (accepted + refused) / 2
        accepted, refused = (middle, refused) if probe.accepts(middle) else (accepted, middle)
    return AHEAD - accepted


class _Probe:
    """A SuperLink that is asked until a moment.

    Args:
        probe: of the installed release of Flower.
        deadline: monotonic time after which nothing is asked any more.
    """

    def __init__(self, probe: ClockProbe, deadline: float) -> None:
        self._probe, self.deadline = probe, deadline

    def accepts(self, shift: float) -> bool:
        """Tell whether the SuperLink accepts this machine's time plus ``shift`` seconds.

        Raises:
            UnreachableError: it does not answer in time.
        """
        left = self.deadline - time.monotonic()
        moment = node_time() + datetime.timedelta(seconds=shift)
        return self._probe.accepts(moment.isoformat(), max(0.01, left))


def is_synchronised() -> bool | None:
    """Tell whether the kernel knows this machine's clock to be set by NTP; None if it cannot say.

    See ``man 2 adjtimex``: the state 5 (TIME_ERROR) is that of a clock that nobody sets.
    """
    import ctypes

    try:
        state = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(512))
    except (OSError, AttributeError):
        return None
    return None if state < 0 else state != 5


def _readable(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
