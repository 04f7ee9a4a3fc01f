"""The weight files of a checkpoint: which they are, and whether all are there and whole.

transformers finds a missing or torn file too, but late and without a word on what to do.
"""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers.utils import cached_file

from fedmoe_app.config import ConfigError

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")


def check_checkpoint(name: str) -> None:
    """Check the weight files of a local folder; a preset or hub name passes.

    Raises:
        ConfigError: no weights, a missing shard, or a file that is cut off.
    """
    folder = Path(name)
    if not folder.is_dir():
        return
    stored = any((folder / file).is_file() for file in (_INDEX, _SINGLE))
    if stored or not any((folder / file).is_file() for file in _PICKLES):
        safetensors_files(name, folder)


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


def safetensors_files(name: str, folder: Path) -> list[Path]:
    """Return the safetensors files of a checkpoint in ``folder``, sorted by name.

    Args:
        name: ``model.name``, for the messages.
        folder: that folder, or the one that holds the hub model ``name``.

    Raises:
        ConfigError: there are none, one is missing, or one is cut off.
    """
    names = _file_names(name, folder)
    missing = [file for file in names if not (folder / file).is_file()]
    if missing:
        raise ConfigError(
            f'model.name = "{name}": {len(missing)} of its {len(names)} weight files are missing, '
            f"such as {missing[0]}; copy or download the model again"
        )
    paths = [folder / file for file in names]
    for path in paths:
        _check_whole(name, path)
    return paths


def _file_names(name: str, folder: Path) -> list[str]:
    index = folder / _INDEX
    if index.is_file():
        try:
            return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                f'model.name = "{name}": {_INDEX} cannot be read ({error!r}); copy or download '
                "the model again"
            ) from error
    if (folder / _SINGLE).is_file():
        return [_SINGLE]
    has_pickle = any((folder / file).is_file() for file in _PICKLES)
    way_out = (
        "save it again by transformers' from_pretrained and save_pretrained, which write one"
        if has_pickle
        else "copy or download the model again"
    )
    found = "only pytorch_model.bin, no safetensors file" if has_pickle else "no weight files"
    raise ConfigError(f'model.name = "{name}": holds {found}; {way_out}')


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
