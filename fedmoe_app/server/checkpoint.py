"""Checkpoints of a run: what the server needs to go on after the round, one folder a round.

::

    checkpoints/round-00005/state.safetensors       global values
    checkpoints/round-00005/broadcast.safetensors   what the scheme sends with the next round
    checkpoints/round-00005/server-state.safetensors  state of the scheme's steps, where it has any
    checkpoints/round-00005/reported.safetensors    values that are saved instead, where others are
    checkpoints/round-00005/checkpoint.json         the rest, and the checksums of all of them

A checkpoint is written to a temporary folder, synced and renamed, so that there is never half of
one. It holds no state of random number generators, because there is none: what is drawn in a round
comes from the seed, the round and the client's number alone.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fedmoe_app.config.files import new_folder, sync_to_disk
from fedmoe_app.moe.state import ModelState
from fedmoe_app.results.best import Best
from fedmoe_app.results.folder import CHECKPOINTS, list_checkpoints, round_of

FORMAT = 1  # raised when an older program could misread a checkpoint
HEADER_FILE = "checkpoint.json"
STATE_FILE, BROADCAST_FILE = "state.safetensors", "broadcast.safetensors"
STEPS_FILE, REPORTED_FILE = "server-state.safetensors", "reported.safetensors"


class CheckpointError(ValueError):
    """A checkpoint that cannot be read; the message names the file and what is wrong with it."""


@dataclass(frozen=True)
class StoredPlacement:
    """A client's placement as plain numbers: its budget, and the experts by layer."""

    budget: int
    subsets: list[list[int]]


@dataclass(frozen=True)
class Counters:
    """What the loop over rounds counts.

    Attributes:
        num_folded: rounds so far that changed the global model.
        unevaluated: whether the global model changed since its last evaluation.
        last_replies: client -> its last round with a usable reply.
        roster: node id (in decimal) -> client's number, in the order in which they were bound.
        holding: client -> the experts that it has in its next round, where nodes choose.
        sizes: client -> training examples in its last usable reply.
        rests: of :meth:`fedmoe_app.server.clients.Rests.dump`.
        tests: client -> test items in its last usable reply.
    """

    num_folded: int = 0
    unevaluated: bool = False
    last_replies: dict[int, int] = field(default_factory=dict)
    roster: dict[int, int] = field(default_factory=dict)
    holding: dict[int, StoredPlacement] = field(default_factory=dict)
    sizes: dict[int, int] = field(default_factory=dict)
    rests: dict[str, list[int]] = field(default_factory=dict)
    tests: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Identity:
    """What has to be the same when a run is resumed.

    Attributes:
        config: flat run config, the partition's seed included.
        label_names, data_fingerprint, base_fingerprint: as the clients are sent them.
    """

    config: dict[str, Any]
    label_names: tuple[str, ...] = ()
    data_fingerprint: str = ""
    base_fingerprint: str = ""


@dataclass(frozen=True)
class Snapshot:
    """The server's state after a round.

    Attributes:
        reported: values by full name that are evaluated and saved instead; empty where there are no
            others.
    """

    server_round: int
    run_key: str
    state: ModelState
    broadcast: dict[str, Tensor]
    counters: Counters
    step_state: dict[str, Tensor] = field(default_factory=dict)
    guard: dict[str, Any] = field(default_factory=dict)  # of Guard.dump(); empty without one
    best: Best | None = None  # round so far, where the run keeps that
    reported: dict[str, Tensor] = field(default_factory=dict)

    @property
    def result(self) -> ModelState:
        """The model that is evaluated and saved."""
        return _state_of(self.reported) if self.reported else self.state


@dataclass(frozen=True)
class Checkpoint:
    """A snapshot with the run that it belongs to, as read from its folder."""

    path: Path
    snapshot: Snapshot
    identity: Identity
    versions: dict[str, str]


def write_checkpoint(
    results: Path, snapshot: Snapshot, identity: Identity, versions: Mapping[str, str]
) -> Path:
    """Write a checkpoint into a result folder; return its folder.

    One of the same round, left by a run that was set back, is replaced.
    """
    path = results / CHECKPOINTS / f"round-{snapshot.server_round:05d}"
    with new_folder(path, replace=True) as draft:
        files = {
            STATE_FILE: _write_tensors(draft / STATE_FILE, dict(snapshot.state.named())),
            BROADCAST_FILE: _write_tensors(draft / BROADCAST_FILE, snapshot.broadcast),
        }
        for name, more in ((STEPS_FILE, snapshot.step_state), (REPORTED_FILE, snapshot.reported)):
            if more:
                files[name] = _write_tensors(draft / name, more)
        header = _header(snapshot, identity, versions, files)
        (draft / HEADER_FILE).write_text(json.dumps(header, indent=1), encoding="utf-8")
        sync_to_disk(draft / HEADER_FILE)
    sync_to_disk(path.parent)
    return path


def read_checkpoint(path: Path) -> Checkpoint:
    """Read one checkpoint and check every byte of it.

    Raises:
        CheckpointError: if a file is missing, cut off, changed, or of another format.
    """
    header = _read_header(path / HEADER_FILE)
    tensors = {name: _read_tensors(path / name, file) for name, file in header["files"].items()}
    return Checkpoint(
        path,
        Snapshot(
            server_round=header["round"],
            run_key=header["run_key"],
            state=_state_of(tensors[STATE_FILE]),
            broadcast=tensors[BROADCAST_FILE],
            counters=_counters(header["counters"]),
            step_state=tensors.get(STEPS_FILE, {}),
            guard=header.get("guard", {}),  # not in older ones
            best=_best(header),
            reported=tensors.get(REPORTED_FILE, {}),
        ),
        _identity(header),
        header["versions"],
    )


def _state_of(tensors: Mapping[str, Tensor]) -> ModelState:
    state = ModelState()
    for key, tensor in tensors.items():
        state.insert(key, tensor)
    return state


def read_identity(path: Path) -> tuple[int, Identity]:
    """Return a checkpoint's round and the run it is of; tensors are neither read nor checked.

    Raises:
        CheckpointError: the header is missing, damaged or of another format.
    """
    header = _read_header(path / HEADER_FILE)
    return header["round"], _identity(header)


def read_best(path: Path) -> Best | None:
    """Return the best round that a checkpoint knows; None without one, or if it is damaged."""
    try:
        return _best(_read_header(path / HEADER_FILE))
    except CheckpointError:
        return None


def best_state(results: Path, best: Best) -> ModelState:
    """Return the model of the best round: its global state, or what was reported in its place.

    Raises:
        CheckpointError: its checkpoint cannot be read.
    """
    path = results / CHECKPOINTS / f"round-{best.round:05d}"
    return read_checkpoint(path).snapshot.result


def _best(header: Mapping[str, Any]) -> Best | None:
    return Best(**header["best"]) if header.get("best") else None


def _identity(header: Mapping[str, Any]) -> Identity:
    identity = dict(header["identity"])
    identity["label_names"] = tuple(identity["label_names"])
    return Identity(**identity)


def prune_checkpoints(results: Path, keep: int) -> None:
    """Remove all but the ``keep`` newest checkpoints, and what interrupted writes left.

    The best round of each of those stays, too: whoever goes on there may still have to save it.
    """
    found = list_checkpoints(results)
    named = {best.round for path in found[:keep] if (best := read_best(path)) is not None}
    for path in found[keep:]:
        if round_of(path) not in named:
            shutil.rmtree(path, ignore_errors=True)
    for path in (results / CHECKPOINTS).glob(".round-*"):
        shutil.rmtree(path, ignore_errors=True)


def drop_later(results: Path, server_round: int) -> None:
    """Remove the checkpoints after a round: the run was set back to it."""
    for path in list_checkpoints(results):
        if round_of(path) > server_round:
            shutil.rmtree(path, ignore_errors=True)


def _header(
    snapshot: Snapshot, identity: Identity, versions: Mapping[str, str], files: Mapping[str, Any]
) -> dict[str, Any]:
    header = {
        "format": FORMAT,
        "round": snapshot.server_round,
        "run_key": snapshot.run_key,
        "counters": asdict(snapshot.counters),
        "identity": asdict(identity),
        "versions": dict(versions),
        "files": dict(files),
    }
    if snapshot.guard:
        header["guard"] = snapshot.guard
    if snapshot.best is not None:
        header["best"] = asdict(snapshot.best)
    return header | {"sha256": _own_digest(header)}


def _own_digest(header: Mapping[str, Any]) -> str:
    """Hash a header without its own checksum, whatever the order and type of its keys."""
    text = json.dumps(json.loads(json.dumps(header)), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _read_header(path: Path) -> dict[str, Any]:
    try:
        header = json.loads(path.read_bytes())
        digest = header.pop("sha256")
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, AttributeError, TypeError):
        raise CheckpointError(f"{path}: cut off or damaged") from None
    if digest != _own_digest(header):
        raise CheckpointError(f"{path}: its checksum is wrong")
    if header["format"] != FORMAT:
        raise CheckpointError(
            f"{path}: format {header['format']}, this version of fedmoe reads {FORMAT}"
        )
    return dict(header)


def _read_tensors(path: Path, described: Mapping[str, Any]) -> dict[str, Tensor]:
    try:
        if _digest(path) != described["sha256"]:
            raise CheckpointError(f"{path}: its checksum is wrong")
        tensors = load_file(path)
        # The file is sorted by its own rules; the order decides in which order sums are made.
        return {name: tensors[name] for name in described["order"]}
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from None
    except (SafetensorError, KeyError) as error:
        raise CheckpointError(f"{path}: {error}") from None


def _counters(stored: Mapping[str, Any]) -> Counters:
    """Undo JSON, which knows strings as keys only."""
    maps = {
        name: {int(key): value for key, value in stored.get(name, {}).items()}
        for name in ("last_replies", "roster", "sizes", "tests")  # tests: not in older ones
    }
    holding = {int(client): StoredPlacement(**entry) for client, entry in stored["holding"].items()}
    return Counters(
        stored["num_folded"],
        stored["unevaluated"],
        **maps,
        holding=holding,
        rests=stored["rests"],
    )


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Write a safetensors file; return its checksum and the order of the tensors."""
    save_file({name: _own_memory(tensor) for name, tensor in tensors.items()}, path)
    sync_to_disk(path)
    return {"sha256": _digest(path), "order": list(tensors)}


def _own_memory(tensor: Tensor) -> Tensor:
    """Copy a tensor that is a view of a larger one: safetensors refuses shared memory."""
    tensor = tensor.detach().cpu().contiguous()
    is_view = tensor.untyped_storage().nbytes() != tensor.nbytes
    return tensor.clone() if is_view else tensor


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
