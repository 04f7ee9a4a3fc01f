"""The features of which a client has sent sums, kept on its node until it sends others.

By them a part of the loss takes an example out of the sums again, whatever has trained the model
since (:class:`fedmoe_app.schemes.parts.Logits`). One file an exchange without training::

    $FEDMOE_HOME/clients/<run key>/client-3/measured/round-5.safetensors

A lost file costs the client that, and no more: it trains on the model's own logits.
"""

from __future__ import annotations

import logging
from typing import NamedTuple

import torch
from torch import Tensor

from fedmoe_app.client.store import RoundStore
from fedmoe_app.schemes.views import EMPTY
from fedmoe_app.wire.records import TrainTask

_FOLDER, _NAME = "measured", "features"

logger = logging.getLogger("fedmoe")


class Recalled(NamedTuple):
    """What was kept.

    Attributes:
        features: by example, ``[n, D]`` float32; empty if there are none.
        server_round: the round after which they were sent; -1 if there are none.
    """

    features: Tensor = EMPTY
    server_round: int = -1


NOTHING = Recalled()


def remember(task: TrainTask, client: int, features: Tensor) -> None:
    """Keep the features of which sums are being sent, ``[n, D]``; a full disk is reported."""
    store = RoundStore(task.run_key, client, _FOLDER)
    try:
        store.save(task.server_round, {_NAME: features.float()})
    except OSError as error:
        logger.warning("%s: features could not be kept (%s)", store.folder, error)


def recall(task: TrainTask, client: int, examples: int) -> Recalled:
    """Return what the client sent last, or nothing if that was of another number of examples."""
    kept = RoundStore(task.run_key, client, _FOLDER).load(task.server_round)
    found = kept.tensors.get(_NAME, EMPTY)
    if found.dim() != 2 or len(found) != examples or not bool(torch.isfinite(found).all()):
        return NOTHING
    return Recalled(found, kept.server_round)
