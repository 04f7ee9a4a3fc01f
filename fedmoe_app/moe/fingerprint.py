"""Fingerprint of a frozen base model: do two machines hold the same one?

A hash over the model's config, over names, shapes and types of all tensors, and over a sample of
their bytes. Of a checkpoint it reads a few kilobytes from the safetensors files, whatever their
size and however they are sharded; a preset, which has no files, is hashed from memory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

from fedmoe_app.moe.checkpoint import checkpoint_folder, safetensors_files

SAMPLED_TENSORS = 64  # spread evenly over the sorted names
SAMPLED_VALUES = 256  # from the first row or rows of each


# Keys of a config that do not change what the model computes from its weights.
_NO_MATTER = {
    "_name_or_path",
    "architectures",
    "dtype",
    "id2label",
    "label2id",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}


def preset_fingerprint(model: PreTrainedModel) -> str:
    """Hash a model in memory.

    Quantised weights count by name and shape only: their bytes may differ between CPU and GPU, and
    the other weights, of the same seed, tell them apart.
    """
    tensors = dict(model.named_parameters())
    shapes = {name: [str(t.dtype), list(t.shape)] for name, t in tensors.items()}
    plain = {name: shapes[name] for name, t in tensors.items() if type(t) is nn.Parameter}
    sample = ((name, tensors[name].detach()) for name in _sample(plain))
    return _hash(model.config.to_dict(), shapes, sample)


def checkpoint_fingerprint(name: str) -> str:
    """Hash config and safetensors files of a local folder or a hub model in the cache.

    Raises:
        ConfigError: if it has none, or one that is missing or cut off.
    """
    folder = checkpoint_folder(name)
    where: dict[str, Path] = {}
    shapes: dict[str, Any] = {}
    for path in safetensors_files(name, folder):
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118  (a safetensors file is no mapping)
                part = file.get_slice(key)
                where[key], shapes[key] = path, [part.get_dtype(), part.get_shape()]
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return _hash(config, shapes, ((key, _head(where[key], key)) for key in _sample(shapes)))


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


def _hash(
    config: Mapping[str, Any], shapes: dict[str, Any], sample: Iterator[tuple[str, Tensor]]
) -> str:
    kept = {key: value for key, value in config.items() if key not in _NO_MATTER}
    header = json.dumps([kept, shapes], sort_keys=True, default=str)
    digest = hashlib.sha256(header.encode())
    for name, tensor in sample:
        values = tensor.reshape(-1)[:SAMPLED_VALUES].cpu()
        digest.update(name.encode())
        # NumPy lacks bfloat16: compare bytes.
        digest.update(values.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]
