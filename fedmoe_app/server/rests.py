"""Rests: a client that keeps failing is left out for some rounds, longer each time.

A first failure costs nothing: it may be a lost message. After f > 1 failures in a row a client
rests for 2^(f-2) rounds: 1, 2, 4, ..., at most ``max_rest``. One usable reply ends the row. The
rule knows rounds and names only, so that a run is repeated by its seed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass
class _Record:
    failures: int  # in a row
    until: int  # the last round of the rest


class Rests:
    """Who rests, by name (``client 3``, or ``node 812`` where the number is not known).

    Args:
        max_rest: rounds that a rest lasts at most; 0 lets nobody rest.
    """

    def __init__(self, max_rest: int = 0) -> None:
        self._max_rest = max_rest
        self._records: dict[str, _Record] = {}

    def note(self, server_round: int, failed: Iterable[str], good: Iterable[str]) -> None:
        """Take what a round brought: the names of those that failed, and of those that did not."""
        for name in failed:
            failures = self._records[name].failures + 1 if name in self._records else 1
            rest = min(2 ** (failures - 2), self._max_rest) if failures > 1 else 0
            self._records[name] = _Record(failures, server_round + rest)
        for name in good:
            self._records.pop(name, None)

    def rename(self, old: str, new: str) -> None:
        """Note that a name, of a node, is that of a client, as has just become known."""
        if old in self._records:
            self._records[new] = self._records.pop(old)

    def order(self, server_round: int) -> list[str]:
        """Return the names that rest in a round, those whose rest ends first, first."""
        resting = [name for name, record in self._records.items() if record.until >= server_round]
        return sorted(resting, key=lambda name: (self._records[name].until, name))

    def dump(self) -> dict[str, list[int]]:
        """Return what a checkpoint keeps, for :meth:`load`."""
        return {name: [record.failures, record.until] for name, record in self._records.items()}

    def load(self, dumped: dict[str, list[int]]) -> None:
        """Go on from what :meth:`dump` returned."""
        self._records = {name: _Record(*numbers) for name, numbers in dumped.items()}
