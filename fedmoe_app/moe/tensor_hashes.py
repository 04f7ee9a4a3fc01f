"""A hash of every tensor of a weight file: read once in full, then kept in the cache.

What is hashed are the bytes of each tensor, so that it does not matter how a checkpoint is divided
into files, or whether they are safetensors or PyTorch's own. XXH3 with 128 bits: no two tensors
that differ by accident have one hash; it is no protection against somebody who makes them so.

An entry of the cache holds for one file as it was found: device, inode, size, and the times of its
last change of content (which programs can set) and of anything (which they cannot).
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch
import xxhash
from torch import Tensor

from fedmoe_app.config.errors import ConfigError
from fedmoe_app.config.files import private_folder, write_atomic
from fedmoe_app.config.paths import cache_dir

Mark = list[Any]  # type, shape and hash of a tensor, as JSON has them

_VERSION = 1
_BLOCK = 1 << 20  # bytes read at once: they stay in the core's cache for the hash
# A file that changed just now may change again within one tick of the file system's clock.
_SETTLED = 2 * 10**9  # ns
_TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def file_marks(path: Path) -> dict[str, Mark]:
    """Return type, shape and hash of every tensor of a weight file by name, from the cache if kept.

    Raises:
        ConfigError: the file cannot be read, or changed while it was.
    """
    before = _state(path)
    entry = _entry(path)
    if (kept := _kept(entry, before)) is not None:
        return kept
    try:
        marks = _safetensors(path) if path.suffix == ".safetensors" else _pickled(path)
    except (OSError, ValueError, KeyError, RuntimeError, struct.error) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); copy or download it again") from error
    if _state(path) != before:
        raise ConfigError(f"{path}: changed while it was read; start again when it is complete")
    if time.time_ns() - max(before[3:]) > _SETTLED:
        _keep(entry, before, marks)
    return marks


def tensor_marks(tensors: Mapping[str, Tensor]) -> dict[str, Mark]:
    """Return the same of tensors in memory, on any device."""
    return {name: _mark(tensor) for name, tensor in tensors.items()}


def _mark(tensor: Tensor) -> Mark:
    # NumPy lacks bfloat16: compare bytes.
    values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    kind = _TYPES.get(tensor.dtype, str(tensor.dtype))
    return [kind, list(tensor.shape), xxhash.xxh3_128_hexdigest(values.numpy().data)]


def _safetensors(path: Path) -> dict[str, Mark]:
    """Hash the tensors in the order in which they lie in the file."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        start = 8 + length
        marks = {}
        for name, info in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            first, end = info["data_offsets"]
            file.seek(start + first)
            marks[name] = [info["dtype"], info["shape"], _hash(file, end - first)]
    return marks


def _hash(file: BinaryIO, size: int) -> str:
    digest, buffer = xxhash.xxh3_128(), memoryview(bytearray(min(_BLOCK, size)))
    while size:
        count = file.readinto(buffer[: min(len(buffer), size)])  # type: ignore[attr-defined]
        if not count:
            raise ValueError("the file is cut off")
        digest.update(buffer[:count])
        size -= count
    return digest.hexdigest()


def _pickled(path: Path) -> dict[str, Mark]:
    """Hash the tensors of a file of ``torch.save``; only tensors are unpickled from it."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, ValueError):  # the format before PyTorch 1.6 cannot be mapped
        state = torch.load(path, map_location="cpu", weights_only=True)
    return tensor_marks({n: t for n, t in state.items() if isinstance(t, Tensor)})


def _state(path: Path) -> tuple[int, ...]:
    """Return device, inode, size and the two times of a file, links followed."""
    try:
        found = path.stat()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _entry(path: Path) -> Path:
    key = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]
    return cache_dir() / "fingerprints" / f"{key}.json"


def _kept(entry: Path, state: tuple[int, ...]) -> dict[str, Mark] | None:
    try:
        content = json.loads(entry.read_text(encoding="utf-8"))
        if content["state"] == [_VERSION, *state]:
            marks: dict[str, Mark] = content["marks"]
            return marks
    except (OSError, ValueError, KeyError, TypeError):
        pass  # none yet, or a broken one: it is made anew
    return None


def _keep(entry: Path, state: tuple[int, ...], marks: dict[str, Mark]) -> None:
    """Write an entry, private and whole; a cache that cannot be written is no error."""
    content = json.dumps({"state": [_VERSION, *state], "marks": marks})
    with suppress(OSError):
        private_folder(entry.parent)
        write_atomic(entry, content, private=True, sync=False)
