"""The weight files of a checkpoint: which they are, and whether all are there and whole.

transformers finds a missing or torn file too, but late and without a word on what to do.
"""

from __future__ import annotations

import json
from pathlib import Path

from huggingface_hub import ModelCard
from safetensors import SafetensorError, safe_open
from transformers.utils import cached_file

from fedmoe_app.config.errors import ConfigError

# Attribute of a quantization config: called with the model before its values are read.
BEFORE_LOADING = "before_loading"

CARD_FILE = "README.md"
_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_PICKLE, _PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
_PICKLES = (_PICKLE, _PICKLE_INDEX)


def check_checkpoint(name: str) -> None:
    """Check the weight files of a local folder; a preset or hub name passes.

    Raises:
        ConfigError: no weights, a missing shard, or a file that is cut off.
    """
    folder = Path(name)
    if not folder.is_dir():
        return
    weight_files(name, folder)


def checkpoint_folder(name: str) -> Path:
    """Return the folder of a local model, or the one of a hub model in the cache.

    Raises:
        ConfigError: the hub model is not in the cache.
    """
    if Path(name).is_dir():
        return Path(name)
    config = cached_file(name, "config.json")
    if config is None:
        raise ConfigError(f'model.name = "{name}": not in the cache of the model hub')
    return Path(config).parent


def check_not_quantised(name: str) -> None:
    """Refuse a checkpoint that is quantised already, whose experts cannot be read one by one.

    Raises:
        ConfigError: naming the method.
    """
    path = checkpoint_folder(name) / "config.json"
    saved = json.loads(path.read_text(encoding="utf-8")).get("quantization_config")
    if saved:
        raise ConfigError(
            f'model.name = "{name}": the checkpoint is quantised already '
            f'({saved.get("quant_method")}); with model.experts-in-memory = "chosen" choose one '
            "in 16 or 32 bits"
        )


def licence_of(base: str) -> str | None:
    """Return the licence that a base model's own card names; None where there is none."""
    card = Path(base) / CARD_FILE
    if not card.is_file():
        return None
    try:
        found = ModelCard.load(card).data.to_dict().get("license")
    except Exception:  # a card is prose that anybody wrote
        return None
    return found if isinstance(found, str) else None


def weight_files(name: str, folder: Path) -> list[Path]:
    """Return the files that transformers reads a checkpoint from, sorted by name.

    Safetensors where there are any, else those of PyTorch's own format.

    Raises:
        ConfigError: there are none, one is missing, or one is cut off.
    """
    stored = any((folder / file).is_file() for file in (_INDEX, _SINGLE))
    if stored or not any((folder / file).is_file() for file in _PICKLES):
        return safetensors_files(name, folder)
    return _present(name, folder, _listed(name, folder, _PICKLE, _PICKLE_INDEX) or [])


def safetensors_files(name: str, folder: Path) -> list[Path]:
    """Return the safetensors files of a checkpoint in ``folder``, sorted by name.

    Args:
        name: ``model.name``, for the messages.
        folder: that folder, or the one that holds the hub model ``name``.

    Raises:
        ConfigError: there are none, one is missing, or one is cut off.
    """
    names = _listed(name, folder, _SINGLE, _INDEX)
    if names is None:
        has_pickle = any((folder / file).is_file() for file in _PICKLES)
        way_out = (
            "save it again by transformers' from_pretrained and save_pretrained, which write one"
            if has_pickle
            else "copy or download the model again"
        )
        found = "only pytorch_model.bin, no safetensors file" if has_pickle else "no weight files"
        raise ConfigError(f'model.name = "{name}": holds {found}; {way_out}')
    paths = _present(name, folder, names)
    for path in paths:
        _check_whole(name, path)
    return paths


def _listed(name: str, folder: Path, single: str, index: str) -> list[str] | None:
    """Return the names of a checkpoint's files: the single one goes first, as in transformers."""
    if (folder / single).is_file():
        return [single]
    if not (folder / index).is_file():
        return None
    try:
        listed = json.loads((folder / index).read_text(encoding="utf-8"))["weight_map"]
        return sorted(set(listed.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f'model.name = "{name}": {index} cannot be read ({error!r}); copy or download '
            "the model again"
        ) from error


def _present(name: str, folder: Path, names: list[str]) -> list[Path]:
    missing = [file for file in names if not (folder / file).is_file()]
    if missing:
        raise ConfigError(
            f'model.name = "{name}": {len(missing)} of its {len(names)} weight files are missing, '
            f"such as {missing[0]}; copy or download the model again"
        )
    return [folder / file for file in names]


def _check_whole(name: str, path: Path) -> None:
    """Read the header, which says how long the file must be."""
    try:
        with safe_open(path, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise ConfigError(
            f'model.name = "{name}": {path.name} is cut off or damaged ({error}); copy or '
            "download the model again"
        ) from error
