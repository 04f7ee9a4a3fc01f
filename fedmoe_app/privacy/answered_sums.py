"""Which clients a node has let into a sum, so that no other sum of the same numbers follows.

Training is deterministic: two sums over the same state, one with a client and one without it, have
that client's changes as their difference. So before a node gives out the shares that take the masks
off, it writes down over whom; asked for the same sum over others, it refuses. Over the same ones it
answers again, since that sum is known already. One file on the node, ``$FEDMOE_HOME/node/sums.db``
(SQLite), mode 0600, that no run takes with it.

A node that was asked cannot know whether so many others answered that the sum could be read; it
counts as read. One that was never asked to take masks off may be asked again over fewer clients: no
one has learnt anything of that sum.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Collection, Iterable
from contextlib import closing
from pathlib import Path

from fedmoe_app.config.files import private_folder
from fedmoe_app.config.paths import home
from fedmoe_app.privacy.member import SumError

FILE = "sums.db"
_SECONDS = 60.0  # to wait for another process of this node


class AnsweredSums:
    """The file of a node.

    Args:
        folder: where it lies; None is the node's.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or home() / "node"

    def note(self, names: Iterable[str], clients: Collection[int]) -> None:
        """Write down over whom a sum is; call it before the shares of it are given out.

        Args:
            names: of the sum: what was asked for, of which run and state. It may have several, and
                is another one where any of them was of other clients.
            clients: Flower ids of the nodes that are in it.

        Raises:
            SumError: the same sum was asked for over others before, or the file cannot be read or
                written, without which nobody knows.
        """
        of = hashlib.sha256(",".join(map(str, sorted(clients))).encode()).hexdigest()
        path = self._folder / FILE
        try:
            private_folder(self._folder)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            with closing(sqlite3.connect(path, timeout=_SECONDS, isolation_level=None)) as file:
                self._note(file, sorted(set(names)), of)
        except (sqlite3.Error, OSError) as error:
            raise SumError(
                f"the node's record of the sums that it answered cannot be used "
                f"({type(error).__name__}); without it nobody knows over whom they were"
            ) from error

    @staticmethod
    def _note(file: sqlite3.Connection, names: list[str], of: str) -> None:
        file.execute("BEGIN IMMEDIATE")  # ends with the connection where it is not committed
        file.execute("CREATE TABLE IF NOT EXISTS sums (name TEXT PRIMARY KEY, clients TEXT)")
        for name in names:
            found = file.execute("SELECT clients FROM sums WHERE name = ?", (name,)).fetchone()
            if found is not None and found[0] != of:
                raise SumError(
                    "this node has let other clients into the same sum before; the difference of "
                    "the two would tell of single ones: ask for it over the same clients again, "
                    "when all of them are there"
                )
            file.execute("INSERT OR IGNORE INTO sums VALUES (?, ?)", (name, of))
        file.execute("COMMIT")
