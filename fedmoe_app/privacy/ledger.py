"""What a run has spent, in a file of its own that no resume sets back.

A fold that is begun counts, whether or not its round is ever completed: a server that dies after it
has drawn noise and is resumed draws other noise on the same clients' changes, and that is a second
release. So the file is written, and on the disk, before noise is drawn.
"""

from __future__ import annotations

import json
from pathlib import Path

from fedmoe_app.config.errors import ConfigError
from fedmoe_app.config.files import write_atomic
from fedmoe_app.privacy.accountant import epsilon
from fedmoe_app.privacy.client_level import ClientLevel

LEDGER_FILE = "privacy.json"


class BudgetSpentError(RuntimeError):
    """The next release would spend more than ``privacy.dp-epsilon``; nothing was drawn."""


class Ledger:
    """Counts the releases of one run.

    Args:
        level: the mechanism, the same for the whole run.
        folder: the result folder; None keeps the count in memory.
        at_least: releases that are known of otherwise, such as by a checkpoint.

    Raises:
        ConfigError: the file that is there cannot be read.

    Attributes:
        releases: folds that were begun.
    """

    def __init__(self, level: ClientLevel, folder: Path | None = None, at_least: int = 0) -> None:
        self._level = level
        self._path = None if folder is None else folder / LEDGER_FILE
        self.releases = max(at_least, 0 if self._path is None else _read(self._path))

    @property
    def epsilon(self) -> float:
        """What is spent so far."""
        return self._spent(self.releases)

    def spend(self) -> None:
        """Count a release that is about to be made; call it before noise is drawn.

        Raises:
            BudgetSpentError: it would be one too many.
            OSError: it cannot be written down.
        """
        self.check()
        self.releases += 1
        if self._path is not None:
            write_atomic(self._path, json.dumps(self.figures(), indent=1))

    def check(self) -> None:
        """Refuse a round whose release would be one too many.

        Raises:
            BudgetSpentError: so it is.
        """
        limit, after = self._level.limit, self._spent(self.releases + 1)
        if limit and after > limit * (1 + 1e-9):
            raise BudgetSpentError(
                f"privacy.dp-epsilon = {limit:g}: {self.releases} releases have spent "
                f"{self.epsilon:.3g}, one more would make it {after:.3g}; a round that is repeated "
                "after a crash counts twice"
            )

    def figures(self) -> dict[str, float | int]:
        """Return what is told of it: ε, δ and the number of releases."""
        return {
            "epsilon": round(self.epsilon, 4),
            "delta": self._level.delta,
            "releases": self.releases,
            "noise_multiplier": round(self._level.noise, 6),
        }

    def _spent(self, releases: int) -> float:
        level = self._level
        return epsilon(level.rate, level.noise, releases, level.delta)


def _read(path: Path) -> int:
    """Return the releases so far; 0 where there is no file yet."""
    if not path.exists():
        return 0
    try:
        releases = json.loads(path.read_bytes())["releases"]
        if type(releases) is not int or releases < 0:
            raise ValueError(f"releases = {releases!r}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path}: cannot be read ({error}); without it nobody knows what the run has spent"
        ) from None
    return releases
