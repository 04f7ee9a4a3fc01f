"""The state that a node received, kept on its disk so that the server need not send it again.

One file a version, named by it (:mod:`fedmoe_app.client.store`); the last two stay.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, RecordDict
from safetensors import safe_open
from safetensors.numpy import save

from fedmoe_app.client.store import ClientStore
from fedmoe_app.wire.tasks import check_protocol
from fedmoe_app.wire.versions import (
    BASE,
    CANNOT_BUILD,
    DROPPED,
    VERSION,
    hashes,
    is_version,
    version_of,
)

_KEPT = 2  # a reply that never arrived leaves the server with the version before

logger = logging.getLogger("fedmoe")


class CannotBuildError(ValueError):
    """The node lacks what the message builds on; the server sends everything when it hears it."""


def complete(content: RecordDict, client: int) -> tuple[RecordDict, str]:
    """Put the whole state into a task that may hold only what changed, and keep it on the disk.

    Args:
        content: the server's message; simulated clients share it, so it stays as it is.
        client: the client's number.

    Returns:
        the task with the whole state, and the version that is on the disk now, for the reply: "" if
        none is, which costs bytes only.

    Raises:
        CannotBuildError: if the message builds on a version that is not, or not whole, on the disk.
        ProtocolError: if the server speaks another version of the protocol.
        ValueError: if the run's key is not hexadecimal.
    """
    task: Any = check_protocol(content)
    version, base = str(task.get(VERSION, "")), str(task.get(BASE, ""))
    if not is_version(version):
        return content, ""
    store = ClientStore(str(task["run-key"]), client, "received")
    if base:
        dropped = set(task.get(DROPPED, ()))
        arrays = _laid_over(_read(store, base), content.array_records["arrays"], dropped)
        if version_of(hashes(arrays)) != version:
            raise CannotBuildError(f"{CANNOT_BUILD}: version {base} is not what the server means")
        content = RecordDict({**content, "arrays": arrays})
    stored = _store(store, version, content.array_records["arrays"])
    return content, version if stored else ""


def _laid_over(base: ArrayRecord, changed: ArrayRecord, dropped: Collection[str]) -> ArrayRecord:
    kept = {name: array for name, array in base.items() if name not in dropped}
    return ArrayRecord({**kept, **changed})


def _read(store: ClientStore, version: str) -> ArrayRecord:
    if not is_version(version):
        raise CannotBuildError(f"{CANNOT_BUILD}: {version[:80]!r} is no version")
    arrays = store.read(version, _arrays)
    if arrays is None:
        raise CannotBuildError(f"{CANNOT_BUILD}: no version {version} that can be read")
    return arrays


def _arrays(path: Path) -> ArrayRecord:
    """Return a state of the disk; the file is mapped into memory, not read at once."""
    with safe_open(path, framework="numpy") as file:
        labels = json.loads(file.metadata()["arrays"])
        return ArrayRecord(
            {
                name: Array(dtype, tuple(shape), stype, file.get_tensor(name).tobytes())
                for name, (dtype, shape, stype) in labels.items()
            }
        )


def _store(store: ClientStore, version: str, arrays: ArrayRecord) -> bool:
    """Keep a state and drop those before the last one; whether it is on the disk."""
    try:
        if not store.use(version):
            labels = {name: [a.dtype, list(a.shape), a.stype] for name, a in arrays.items()}
            data = {name: np.frombuffer(a.data, np.uint8) for name, a in arrays.items()}
            store.write(version, save(data, {"arrays": json.dumps(labels)}))
        store.drop(store.names()[:-_KEPT])
    except OSError as error:
        logger.warning("%s: the received state could not be kept (%s)", store.folder, error)
        return False
    return True
