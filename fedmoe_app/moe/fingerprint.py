"""Fingerprint of a frozen base model: do two machines hold the same one?

A hash over names, shapes and types of all tensors and over a sample of their bytes. Of a checkpoint
it reads a few kilobytes from the safetensors files, whatever their size and however they are
sharded; a preset, which has no files, is hashed from memory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import cached_file

from fedmoe_app.config import ConfigError

SAMPLED_TENSORS = 64  # spread evenly over the sorted names
SAMPLED_VALUES = 256  # from the first row or rows of each


def preset_fingerprint(model: PreTrainedModel) -> str:
    """Hash a model in memory."""
    tensors = dict(model.named_parameters())
    shapes = {name: [str(t.dtype), list(t.shape)] for name, t in tensors.items()}
    return _hash(shapes, ((name, tensors[name].detach()) for name in _sample(shapes)))


def checkpoint_fingerprint(name: str) -> str:
    """Hash the safetensors files of a local folder or a hub model in the cache.

    Raises:
        ConfigError: if it has none, or one that the index names is missing.
    """
    files = _files(_folder(name))
    where: dict[str, Path] = {}
    shapes: dict[str, Any] = {}
    for path in files:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118  (a safetensors file is no mapping)
                part = file.get_slice(key)
                where[key], shapes[key] = path, [part.get_dtype(), part.get_shape()]
    return _hash(shapes, ((key, _head(where[key], key)) for key in _sample(shapes)))


def _folder(name: str) -> Path:
    if Path(name).is_dir():
        return Path(name)
    config = cached_file(name, "config.json")
    if config is None:
        raise ConfigError(f'model.name = "{name}": not in the cache of the model hub')
    return Path(config).parent


def _files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise ConfigError(f"model.name: {folder.name} holds no .safetensors files")
        return files
    names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    missing = sorted(name for name in names if not (folder / name).is_file())
    if missing:
        raise ConfigError(
            f"model.name: {folder.name} lacks {len(missing)} of its {len(names)} shards, such as "
            f"{missing[0]}; copy or download the model again"
        )
    return sorted(folder / name for name in names)


def _head(path: Path, key: str) -> Tensor:
    """Read the first row of a tensor only; a scalar as a whole."""
    with safe_open(path, framework="pt") as file:
        part = file.get_slice(key)
        head: Tensor = part[:1] if part.get_shape() else file.get_tensor(key)
        return head


def _sample(shapes: dict[str, Any]) -> list[str]:
    names = sorted(shapes)
    step = max(1, len(names) // SAMPLED_TENSORS)
    return names[::step]


def _hash(shapes: dict[str, Any], sample: Iterator[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256(json.dumps(shapes, sort_keys=True).encode())
    for name, tensor in sample:
        values = tensor.reshape(-1)[:SAMPLED_VALUES].cpu()
        digest.update(name.encode())
        # NumPy lacks bfloat16: compare bytes.
        digest.update(values.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]
