"""A client's update on its way out: the codec, and error feedback (Karimireddy et al. 2019).

    sent = decode(encode(change + residual)),   residual ← change + residual − sent

arXiv:1901.09847, algorithm 2. The residual is kept on the node's disk beside the scheme's state,
tensor by tensor: that of an expert waits until the expert is trained again. A file that is lost or
does not fit costs its residuals, never the round.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from flwr.app import RecordDict
from torch import Tensor

from fedmoe_app.client.state import is_acceptable
from fedmoe_app.client.store import Kept, RoundStore
from fedmoe_app.config.paths import home
from fedmoe_app.moe.state import ModelState, Tensors
from fedmoe_app.wire.codecs import Codec, choose
from fedmoe_app.wire.errors import InvalidUpdateError
from fedmoe_app.wire.packing import unpack_changes
from fedmoe_app.wire.records import ProtocolError, TrainTask, encode_update
from fedmoe_app.wire.spec import tensors_in_order
from fedmoe_app.wire.update import ClientUpdate

logger = logging.getLogger("fedmoe")


def encode_reply(
    update: ClientUpdate, task: TrainTask, seed: int, own: str | None = None, version: str = ""
) -> RecordDict:
    """Encode an update as the server offered; what encoding lost is kept for the next one.

    Args:
        update: with the changes as they were trained.
        task: the server's, with its offer.
        seed: of the run; random rounding depends on it, on the round and on the client.
        own: the codec that the node's config names.
        version: of the received state that the node has on its disk, "" for none.

    Raises:
        ProtocolError: if the node knows none of the codecs.
    """
    codec = choose(task.offer, own)
    if codec is None:
        raise ProtocolError(
            f"the server offers the codecs {', '.join(task.offer.codecs)}, this node knows none of "
            "them; install the same version of fedmoe on both"
        )
    if own not in (None, codec.name):
        logger.warning("the server does not take %s, replying in %s", own, codec.name)
    seeds = (seed, task.server_round, update.client)
    if codec.lossless or not task.offer.error_feedback:
        return encode_update(update, codec, seeds, version, task.question)
    return _with_feedback(update, task, codec, seeds, version)


def _with_feedback(
    update: ClientUpdate, task: TrainTask, codec: Codec, seeds: Sequence[int], version: str
) -> RecordDict:
    files = RoundStore(task.run_key, update.client, "residuals")
    kept = _usable(files.load(task.server_round), update.changes)
    total = _add(update.changes, kept.tensors)
    if not is_acceptable(total):  # training diverged: the server will say so
        return encode_update(update, codec, seeds, version, task.question)
    metrics = update.metrics | {"residual-round": kept.server_round}
    whole = replace(update, changes=total, metrics=metrics)
    reply = encode_update(whole, codec, seeds, version, task.question)
    try:
        lost = _lost(total, reply, codec)
        files.save(task.server_round, kept.tensors | lost)
    except (OSError, InvalidUpdateError) as error:
        logger.warning(
            "%s: what encoding lost could not be kept for the next round (%s)",
            home() / "clients",
            error,
        )
    return reply


def _usable(kept: Kept, changes: ModelState) -> Kept:
    """Return what was kept, or nothing if it does not fit the model or holds NaN."""
    known = dict(changes.named())
    for name, tensor in kept.tensors.items():
        fits = name not in known or known[name].shape == tensor.shape
        if not fits or not bool(torch.isfinite(tensor).all()):
            logger.warning("residuals of round %d: %s does not fit", kept.server_round, name)
            return Kept()
    return kept


def _add(changes: ModelState, residuals: Mapping[str, Tensor]) -> ModelState:
    """Return changes + residuals of the tensors that changed."""
    total = ModelState()
    for name, change in changes.named():
        residual = residuals.get(name)
        total.insert(name, change if residual is None else change + residual.to(change.device))
    return total


def _lost(total: ModelState, reply: RecordDict, codec: Codec) -> Tensors:
    """Return what the server will not see of the changes: by name, in float32."""
    tensors = {name: t.detach().cpu().float() for name, t in tensors_in_order(total).items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    arrays = reply.array_records["arrays"]
    buffers = {name: memoryview(array.data) for name, array in arrays.items()}
    seen = dict(unpack_changes(buffers, codec, shapes).named())
    return {name: tensor - seen[name] for name, tensor in tensors.items()}
