"""What a client keeps between rounds: private gates, residuals, a personal copy.

It lies on the node's disk, one file a round, under the run's key and the client's number::

    $FEDMOE_HOME/clients/<run key>/client-3/round-5.safetensors

so that it does not matter which process serves the node. The key is the server's, the same when a
run is resumed. The file of the round before stays, too: a round that is asked for again starts from
the same values. Files are written to a temporary name and renamed.

What a client keeps, around one round: taken at the start, stored at the end.

Whatever is wrong with it costs the client its memory, never the round: a file that does not fit the
model counts as lost, values that the server would refuse are not kept, a full disk is reported.
"""

from __future__ import annotations

import logging
import re
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from fedmoe_app.client.parts import ClientParts
from fedmoe_app.client.personal import OwnModel, own_model
from fedmoe_app.config.files import private_folder, write_atomic
from fedmoe_app.config.paths import home
from fedmoe_app.moe.layers import write_state
from fedmoe_app.moe.state import ModelState, Tensors
from fedmoe_app.tasks.setup import Setup
from fedmoe_app.wire.records import MAX_CHANGE, TrainTask

MAX_AGE_DAYS = 30  # what runs that never ended left behind is dropped after so long
_RUN_KEY = re.compile(r"[0-9a-f]{8,64}")
_ROUND = re.compile(r"round-(\d+)\.safetensors")


@dataclass(frozen=True)
class Kept:
    """Tensors of the client's last round, and its number: 0 and none if there are none."""

    server_round: int = 0
    tensors: dict[str, Tensor] = field(default_factory=dict)


class ClientFiles:
    """The files of one client in one run.

    Args:
        run_key: the server's.
        client: the client's number.
        part: folder of what is kept beside the scheme's state; "" for that itself.

    Raises:
        ValueError: if the server's key is not hexadecimal: it becomes a folder's name.
    """

    def __init__(self, run_key: str, client: int, part: str = "") -> None:
        self._run = _run_folder(run_key)
        self._folder = client_folder(run_key, client) / part

    def load(self, server_round: int) -> Kept:
        """Return what was kept in the last round before ``server_round``.

        A file that cannot be read counts as lost: the one before it, or nothing, is returned.
        """
        for number in sorted((n for n in self._rounds() if n < server_round), reverse=True):
            try:
                return Kept(number, load_file(self._path(number)))
            except (SafetensorError, OSError):
                continue
        return Kept()

    def save(self, server_round: int, tensors: Mapping[str, Tensor]) -> None:
        """Keep tensors of a round; of earlier rounds only the last one stays."""
        _drop_old_runs(self._run)
        private_folder(self._folder)
        content = save(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        )
        write_atomic(self._path(server_round), content, private=True)
        earlier = sorted(number for number in self._rounds() if number < server_round)
        later = [number for number in self._rounds() if number > server_round]
        for number in earlier[:-1] + later:  # later ones are of a run that was set back
            self._path(number).unlink(missing_ok=True)

    def _path(self, server_round: int) -> Path:
        return self._folder / f"round-{server_round}.safetensors"

    def _rounds(self) -> list[int]:
        if not self._folder.is_dir():
            return []
        found = (_ROUND.fullmatch(path.name) for path in self._folder.iterdir())
        return [int(match[1]) for match in found if match]


def drop_kept(run_key: str, client: int) -> None:
    """Drop everything that a client kept in a run.

    Raises:
        ValueError: if the key is not hexadecimal.
    """
    shutil.rmtree(client_folder(run_key, client), ignore_errors=True)
    with suppress(OSError):  # other clients of this machine have not forgotten yet
        _run_folder(run_key).rmdir()


def client_folder(run_key: str, client: int) -> Path:
    """Return where a client keeps things in a run.

    Raises:
        ValueError: if the key is not hexadecimal.
    """
    return _run_folder(run_key) / f"client-{client}"


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


logger = logging.getLogger("fedmoe")


class Keeping:
    """The files of one client in one round.

    Attributes:
        kept: what the round started from; round 0 and nothing for a first round or a lost file.
        stored: whether this round's tensors are on the disk.
    """

    def __init__(self, parts: ClientParts, task: TrainTask, client: int) -> None:
        self._parts = parts
        self._task = task
        self._files = ClientFiles(task.run_key, client)
        self.kept = self._files.load(task.server_round) if parts.keeps_state else Kept()
        self.stored = False

    def start(self, setup: Setup) -> tuple[ModelState, OwnModel | None]:
        """Write the values that training starts from into the model.

        Returns:
            these values, and the client's own model where the scheme has one.
        """
        if self.kept.tensors:
            try:
                return self._start(setup, self.kept)
            except (KeyError, ValueError, RuntimeError) as error:
                logger.warning("what was kept of round %d: %s", self.kept.server_round, error)
                self.kept = Kept()
                write_state(setup.model, setup.layers, self._task.state)
        return self._start(setup, self.kept)

    def store(self, changes: ModelState, own: OwnModel | None) -> None:
        """Keep what the scheme keeps, unless the server will refuse these changes."""
        if not self._parts.keeps_state or not is_acceptable(changes):
            return
        if own is not None and not own.is_finite():
            return  # training diverged: the next round starts from what was kept before
        tensors = self._parts.keep(self._task.state, changes)
        try:
            self._files.save(self._task.server_round, tensors | (own.tensors() if own else {}))
            self.stored = True
        except OSError as error:
            logger.warning(
                "%s: nothing could be kept for the next round (%s); make room there, or set "
                "FEDMOE_HOME to another disk",
                home() / "clients",
                error,
            )

    def metrics(self) -> dict[str, float]:
        """Return from which round was kept what this one started from, and whether it is stored."""
        if not self._parts.keeps_state:
            return {}
        return {"kept-round": self.kept.server_round, "state-stored": float(self.stored)}

    def _start(self, setup: Setup, kept: Kept) -> tuple[ModelState, OwnModel | None]:
        _check_finite(kept.tensors)
        started = self._parts.start(self._task.state, kept.tensors)
        if kept.tensors:
            write_state(setup.model, setup.layers, started)
        return started, own_model(setup, self._parts.personal, kept.tensors)


def is_acceptable(changes: ModelState) -> bool:
    """Whether the server takes changes of these sizes: finite and at most ``MAX_CHANGE``."""
    # The comparison is false for NaN.
    return all(bool((change.abs() <= MAX_CHANGE).all()) for _, change in changes.named())


def _check_finite(tensors: Tensors) -> None:
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{name} holds NaN or infinite values")
