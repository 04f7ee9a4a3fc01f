"""Which clients a node has let into a sum, so that no other sum of the same numbers follows.

Training is deterministic: two sums over the same state, one with a client and one without it, have
that client's changes as their difference. So before a node gives out the shares that take the masks
off, it writes down over whom; asked for the same sum over others, it refuses. Over the same ones it
answers again, since that sum is known already. One file on the node, ``$FEDMOE_HOME/node/sums.db``
(SQLite), mode 0600, that no run takes with it.

**Over all runs** a sum goes by what the node was sent and by its own data set
(:func:`start_of`): whoever submits runs chooses their keys, seeds and learning rates, and none of
these makes the update of the same rows from the same values another one. That binds those who keep
to the protocol. A state that differs by one bit has another digest and the same update, and no test
on states would be better: values that a client's rows never reach may be anything, and experts may
change places. What holds against any state is to let in one list of clients only (``most``): then
no two sums that this node is in differ by a member.

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
from fedmoe_app.config.policy import REFUSED, RefusedError
from fedmoe_app.moe.state import ModelState
from fedmoe_app.privacy.member import SumError

FILE = "sums.db"
_SECONDS = 60.0  # to wait for another process of this node


def start_of(state: ModelState, base_fingerprint: str) -> str:
    """Return a digest of the values that a node was sent, by which a start is known over all runs.

    Args:
        state: all values that are trained.
        base_fingerprint: of the frozen rest.
    """
    digest = hashlib.sha256(base_fingerprint.encode())
    for name, tensor in sorted(state.named()):
        values = tensor.detach().float().contiguous()
        digest.update(f"{name} {tuple(values.shape)} ".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()


class AnsweredSums:
    """The file of a node.

    Args:
        folder: where it lies; None is the node's.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or home() / "node"

    def note(
        self,
        names: Iterable[str],
        clients: Collection[int],
        data_set: str = "",
        most: int | None = None,
    ) -> None:
        """Write down over whom a sum is; call it before the shares of it are given out.

        Args:
            names: of the sum: what was asked for, of which run and state. It may have several, and
                is another one where any of them was of other clients.
            clients: Flower ids of the nodes that are in it.
            data_set: of which it is, on this node.
            most: lists of clients that sums of this data set may be over, those of all runs
                together; None is any number.

        Raises:
            RefusedError: it would be over one list more.
            SumError: the same sum was asked for over others before, or the file cannot be read or
                written, without which nobody knows.
        """
        of = hashlib.sha256(",".join(map(str, sorted(clients))).encode()).hexdigest()
        path = self._folder / FILE
        try:
            private_folder(self._folder)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            with closing(sqlite3.connect(path, timeout=_SECONDS, isolation_level=None)) as file:
                self._note(file, sorted(set(names)), of, (data_set, most))
        except RefusedError:  # it is an OSError, too
            raise
        except (sqlite3.Error, OSError) as error:
            raise SumError(
                f"the node's record of the sums that it answered cannot be used "
                f"({type(error).__name__}); without it nobody knows over whom they were"
            ) from error

    @staticmethod
    def _note(
        file: sqlite3.Connection, names: list[str], of: str, limit: tuple[str, int | None]
    ) -> None:
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
        data_set, most = limit
        file.execute(
            "CREATE TABLE IF NOT EXISTS lists "
            "(data_set TEXT, clients TEXT, PRIMARY KEY (data_set, clients))"
        )
        file.execute("INSERT OR IGNORE INTO lists VALUES (?, ?)", (data_set, of))
        count = "SELECT COUNT(*) FROM lists WHERE data_set = ?"
        if most is not None and file.execute(count, (data_set,)).fetchone()[0] > most:
            raise RefusedError(
                f"{REFUSED} does not allow masked sums over one more list of clients; ask for them "
                "over the same clients as before, when all of them are there"
            )
        file.execute("COMMIT")
