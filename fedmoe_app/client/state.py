"""What a client keeps between rounds, around one round: taken at the start, stored at the end.

Private gates, a personal copy: what the scheme keeps (:mod:`fedmoe_app.client.store`). Whatever is
wrong with it costs the client its memory, never the round: a file that does not fit the model
counts as lost, values that the server would refuse are not kept, a full disk is reported.
"""

from __future__ import annotations

import logging

import torch

from fedmoe_app.client.parts import ClientParts
from fedmoe_app.client.personal import OwnModel, own_model
from fedmoe_app.client.store import Kept, RoundStore
from fedmoe_app.config.paths import home
from fedmoe_app.moe.layers import write_state
from fedmoe_app.moe.state import ModelState, Tensors
from fedmoe_app.schemes.faults import PartError
from fedmoe_app.tasks.setup import Setup
from fedmoe_app.wire.records import MAX_CHANGE, TrainTask

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
        self._files = RoundStore(task.run_key, client)
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
            except PartError:  # a fault of the scheme, not of the file
                raise
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
