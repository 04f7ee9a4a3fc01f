"""Fingerprint of a frozen base model: do two machines hold the same one?

A hash over the model's config and over every byte of every tensor, whatever the number of files and
their format: any tensor that another value slipped into gives another fingerprint. Weight files are
read in full once and then known by the cache (:mod:`fedmoe_app.moe.tensor_hashes`); what is in no
file, such as a preset or a new head, is hashed from memory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from fedmoe_app.config.errors import ConfigError
from fedmoe_app.moe.checkpoint import checkpoint_folder, weight_files
from fedmoe_app.moe.tensor_hashes import file_marks, tensor_marks

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
    """Hash a model in memory: its config, its parameters, and the buffers that it would save.

    Give it a model that is not quantised: packed bytes may differ between CPU and GPU.
    """
    return _hash(model.config.to_dict(), tensor_marks(model.state_dict()))


def checkpoint_fingerprint(name: str, beside: Mapping[str, Tensor] | None = None) -> str:
    """Hash config and weight files of a local folder or a hub model in the cache.

    Args:
        name: the folder, or the name of the hub model.
        beside: frozen tensors that are in none of its files, such as a new head.

    Raises:
        ConfigError: if it has no weight files, or one that is missing, cut off or unreadable.
    """
    folder = checkpoint_folder(name)
    marks: dict[str, Any] = {}
    for path in weight_files(name, folder):
        marks |= file_marks(path)
    marks |= {f"beside {key}": mark for key, mark in tensor_marks(beside or {}).items()}
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f'model.name = "{name}": config.json cannot be read ({error})') from error
    return _hash(config, marks)


def tensors_fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Hash tensors alone; empty where there are none."""
    return _hash({}, tensor_marks(tensors)) if tensors else ""


def saved_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Return the buffers that a checkpoint of the model holds: nobody trains or sends them."""
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return {name: t for name, t in model.state_dict().items() if name not in parameters}


def _hash(config: Mapping[str, Any], marks: Mapping[str, Any]) -> str:
    kept = {key: value for key, value in config.items() if key not in _NO_MATTER}
    text = json.dumps([kept, marks], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
