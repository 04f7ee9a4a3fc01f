"""What runs have spent of a node's examples, all runs and all servers together.

One file on the node, ``$FEDMOE_HOME/node/privacy.json``, mode 0600, that no run takes with it and
``forget`` does not touch. Rényi divergences add up whatever noise and rate a run had, so that they
are kept by order, a list a data set, and ε is worked out of the sum. A round is written down, and
on the disk, before it trains: one that breaks off has been spent.

**A data set** is the node's own file (``data-path``), wherever links lead to; else all that runs
name and this client reads, since two names may hold the same rows. So a changed file goes on
counting, and a copy under another name begins anew: names are the owner's business.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedmoe_app.config.errors import ConfigError
from fedmoe_app.config.files import private_folder, write_atomic
from fedmoe_app.config.node import Node
from fedmoe_app.config.paths import home
from fedmoe_app.config.policy import REFUSED, RefusedError
from fedmoe_app.privacy.accountant import ORDERS, epsilon_of
from fedmoe_app.privacy.example_level import added

FILE = "privacy.json"
_DELTA = 1e-5  # where an entry has none


def data_set(node: Node) -> str:
    """Return the name under which a node's examples are counted."""
    if node.data_path is not None:
        return str(Path(node.data_path).resolve())
    return f"what runs name, client {node.client}"


@dataclass(frozen=True)
class Spent:
    """What is spent of a data set so far.

    Attributes:
        data_set: its name, as :func:`data_set` gives it.
        rounds: that were written down.
        runs: that these were of; None where an older release wrote some of them.
        epsilon: ε of all of them together.
        delta: δ at which it is told.
    """

    data_set: str
    rounds: int
    runs: int | None
    epsilon: float
    delta: float


class NodeLedger:
    """The file of a node.

    Args:
        folder: where it lies; None is the node's.

    Attributes:
        folder: the same.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or home() / "node"

    def spent(self, name: str) -> list[float]:
        """Return the Rényi divergence that is spent of a data set so far, one number an order.

        Raises:
            ConfigError: the file cannot be read; without it nobody knows.
        """
        return self._of(self._read(), name)

    def epsilon(self, name: str, delta: float) -> float:
        """Return ε that is spent of a data set so far."""
        return epsilon_of(self.spent(name), delta)

    def entries(self, delta: float | None = None) -> list[Spent]:
        """Return what is spent of each data set, in the order of their names; empty without a file.

        Args:
            delta: δ at which ε is told; None is that of each data set's last round.

        Raises:
            ConfigError: the file cannot be read.
        """
        return [
            _told(name, entry, float(entry.get("delta", _DELTA)) if delta is None else delta)
            for name, entry in sorted(self._read().items())
        ]

    def spend(
        self,
        name: str,
        round_cost: Sequence[float],
        rest_cost: Sequence[float] = (),
        limit: float | None = None,
        delta: float = 1e-5,
        run: str = "",
    ) -> float:
        """Write down what a round is about to spend; call it before it trains.

        Args:
            name: of the data set.
            round_cost: of the round, by order.
            rest_cost: of the rounds that the run will ask for after it, which are not written down.
            limit: ε that all runs may spend together; None is without.
            delta: δ at which ε is told and held to the limit.
            run: the run's key, by which runs are counted.

        Returns:
            ε of the data set with this round.

        Raises:
            RefusedError: with this round and the rest it would pass the limit; nothing is spent.
                The node's own figures are not told.
            ConfigError: the file cannot be read.
            OSError: it cannot be written.
        """
        with self._locked():
            table = self._read()
            after = added(self._of(table, name), round_cost)
            whole = added(after, rest_cost) if rest_cost else after
            if limit is not None and epsilon_of(whole, delta) > limit * (1 + 1e-9):
                raise RefusedError(
                    f"{REFUSED} does not allow to spend as much epsilon as the run would: give "
                    "more noise (privacy.example-noise), or fewer rounds or steps"
                )
            found = epsilon_of(after, delta)
            before = table.get(name, {"runs": []})
            rounds = int(before.get("rounds", 0)) + 1
            runs = before.get("runs")  # none in the file of an older release: nobody counted
            table[name] = {
                "epsilon": found,
                "delta": delta,
                "rounds": rounds,
                "runs": None if runs is None else sorted({*runs, run}),
                "rdp": after,
            }
            text = json.dumps({"orders": ORDERS, "data_sets": table}, indent=1)
            write_atomic(self._path, text, private=True)
        return found

    @property
    def _path(self) -> Path:
        return self.folder / FILE

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Let one process at a time read and write; a simulation's clients share the file."""
        private_folder(self.folder)
        descriptor = os.open(self.folder / f"{FILE}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _of(self, table: Mapping[str, Any], name: str) -> list[float]:
        return list(table[name]["rdp"]) if name in table else [0.0] * len(ORDERS)

    def _read(self) -> dict[str, Any]:
        if not self._path.exists():
            return {}
        try:
            found = json.loads(self._path.read_bytes())
            if tuple(found["orders"]) != ORDERS:
                raise ValueError("other orders")
            table: dict[str, Any] = found["data_sets"]
            for entry in table.values():
                numbers = [float(number) for number in entry["rdp"]]
                if len(numbers) != len(ORDERS) or not all(number >= 0 for number in numbers):
                    raise ValueError("rdp is no list of numbers of 0 or more, one an order")
                delta = float(entry.get("delta", _DELTA))
                if not 0 < delta < 1:
                    raise ValueError(f"delta = {delta:g}: must be above 0 and below 1")
                _told("", entry, delta)  # refuses what else is no number or no list
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"{self._path}: cannot be read ({error}); without it nobody knows what runs have "
                "spent; put a saved copy there"
            ) from None
        return table


def _told(name: str, entry: Mapping[str, Any], delta: float) -> Spent:
    runs = entry.get("runs")
    count = None if runs is None else len(list(runs))
    rounds = int(entry.get("rounds", 0))
    return Spent(name, rounds, count, epsilon_of(list(entry["rdp"]), delta), delta)
