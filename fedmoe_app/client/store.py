"""A client's files of one run on its node's disk, so that any process may serve the node.

::

    $FEDMOE_HOME/clients/<run key>/client-3/round-5.safetensors           what the scheme keeps
    $FEDMOE_HOME/clients/<run key>/client-3/residuals/round-5.safetensors what encoding lost
    $FEDMOE_HOME/clients/<run key>/client-3/received/<version>.safetensors
    $FEDMOE_HOME/clients/<run key>/client-3/prefix/<key>-0.safetensors    of the frozen layers

The key is the server's, the same when a run is resumed. Encoded rows are no client's: they lie in
the cache, under what they are made of (:mod:`fedmoe_app.client.rows`).
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from fedmoe_app.config.files import private_folder, write_atomic
from fedmoe_app.config.paths import home

MAX_AGE_DAYS = 30  # what runs that never ended left behind is dropped after so long
PREFIX = "prefix"  # the kind of file that the next run makes anew (client/prefix.py)
_RUN_KEY = re.compile(r"[0-9a-f]{8,64}")
_ROUND = re.compile(r"round-(\d+)")
_ENDING = ".safetensors"
_T = TypeVar("_T")


class ClientStore:
    """Files of one kind, by name; what is wrong with one costs the client that file, no more.

    Args:
        run_key: the server's.
        client: the client's number.
        part: folder of the kind; "" for the client's own.

    Raises:
        ValueError: if the server's key is not hexadecimal: it becomes a folder's name.
    """

    def __init__(self, run_key: str, client: int, part: str = "") -> None:
        self._run = _run_folder(run_key)
        self.folder = self._run / f"client-{client}" / part

    def names(self) -> list[str]:
        """Return the names of all files, those that were written or used last at the end."""
        files = [(path.stat().st_mtime_ns, path.stem) for path in self.folder.glob(f"*{_ENDING}")]
        return [name for _, name in sorted(files)]

    def read(self, name: str, reader: Callable[[Path], _T]) -> _T | None:
        """Return what ``reader`` makes of a file; None where there is none that it can read."""
        try:
            return reader(self._path(name))
        except (SafetensorError, OSError, ValueError, KeyError, TypeError):
            return None

    def use(self, name: str) -> bool:
        """Make a file the newest one; whether it is there."""
        found = self._path(name).exists()
        if found:
            self._path(name).touch()
        return found

    def write(self, name: str, content: bytes) -> None:
        """Write a file, whole or not at all.

        Raises:
            OSError: if there is no room for it.
        """
        _drop_old_runs(self._run)
        private_folder(self.folder)
        write_atomic(self._path(name), content, private=True)

    def drop(self, names: Iterable[str]) -> None:
        """Delete files."""
        for name in names:
            self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}{_ENDING}"


@dataclass(frozen=True)
class Kept:
    """Tensors of the client's last round, and its number: 0 and none if there are none."""

    server_round: int = 0
    tensors: dict[str, Tensor] = field(default_factory=dict)


class RoundStore(ClientStore):
    """A file of tensors a round.

    The file of the round before stays, too: a round that is asked for again starts from the same
    values.
    """

    def load(self, server_round: int) -> Kept:
        """Return what was kept in the last round before ``server_round``.

        A file that cannot be read counts as lost: the one before it, or nothing, is returned.
        """
        for number in reversed([n for n in self._rounds() if n < server_round]):
            tensors = self.read(f"round-{number}", load_file)
            if tensors is not None:
                return Kept(number, tensors)
        return Kept()

    def save(self, server_round: int, tensors: Mapping[str, Tensor]) -> None:
        """Keep tensors of a round; of earlier rounds only the last one stays.

        Raises:
            OSError: if there is no room for them.
        """
        on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        self.write(f"round-{server_round}", save(on_cpu))
        rounds = self._rounds()
        earlier = [number for number in rounds if number < server_round]
        later = [number for number in rounds if number > server_round]
        # Later ones are of a run that was set back.
        self.drop(f"round-{number}" for number in earlier[:-1] + later)

    def _rounds(self) -> list[int]:
        return sorted(int(found[1]) for name in self.names() if (found := _ROUND.fullmatch(name)))


def drop_client(run_key: str, client: int, part: str = "") -> None:
    """Drop every file of a client in a run, or those of one kind.

    Raises:
        ValueError: if the key is not hexadecimal.
    """
    run = _run_folder(run_key)
    shutil.rmtree(run / f"client-{client}" / part, ignore_errors=True)
    with suppress(OSError):  # other clients of this machine have not forgotten yet
        run.rmdir()


def _run_folder(run_key: str) -> Path:
    if not _RUN_KEY.fullmatch(run_key):
        raise ValueError(f"run key {run_key[:80]!r}: must be 8 to 64 hexadecimal digits")
    return home() / "clients" / run_key


def _drop_old_runs(current: Path) -> None:
    """Remove the folders of other runs in which nothing was written for long."""
    oldest = time.time() - MAX_AGE_DAYS * 86400
    if current.exists() or not current.parent.is_dir():
        return  # once a run is often enough
    for folder in current.parent.iterdir():
        with suppress(OSError):  # a run that is going on renames and drops files meanwhile
            newest = max((p.stat().st_mtime for p in folder.rglob("*")), default=oldest + 1)
            if newest < oldest:
                shutil.rmtree(folder, ignore_errors=True)
