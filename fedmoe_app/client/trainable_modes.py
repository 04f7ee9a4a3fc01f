"""Can this model be trained in this mode? Asked once, before anything is started.

The mode is task, head, ``model.train``, ``model.quantization`` and ``model.experts-in-memory``. The
structure is checked on the model itself, without values; whether it runs is tried on a small model
of the same make (:mod:`fedmoe_app.client.trial`). What passed once is not tried again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from fedmoe_app.client.trial import LABELS, NotBuiltError, TrialError, try_mode
from fedmoe_app.config.errors import ConfigError
from fedmoe_app.config.paths import cache_dir
from fedmoe_app.config.schema import ModelConfig, RunConfig
from fedmoe_app.moe.layers import UnsupportedModelError, find_moe_layers
from fedmoe_app.moe.loading import PRESETS, LoadSpec, empty_model
from fedmoe_app.moe.miniature import small_configs
from fedmoe_app.moe.quantised.packed import BLOCK
from fedmoe_app.tasks.setup import head_of

logger = logging.getLogger("fedmoe")

BITSANDBYTES = "bitsandbytes"  # leaves stacked experts in 16 bits, so that adapters can be added

_VERSION = 1  # raise it whenever a model that passed might not pass any more


def check_trainable(config: RunConfig) -> None:
    """Refuse a model that cannot be trained as the run config says; a preset passes.

    Reads the model's config, not its weights.

    Raises:
        ModelNotFoundError, ConfigError: the name leads to no model, or not to one for this task.
        UnsupportedModelError: naming the mode, what was tried, and what came of it.
    """
    name = config.model.name
    if name in PRESETS:
        return
    head = head_of(config)
    spec = LoadSpec(name, config.data.task, vocab_size=1, head=head, label_names=LABELS)
    empty = empty_model(spec)
    _check_precision(config.model, empty)
    try:
        _check_structure(config.model, empty)
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f'model.name = "{name}": {error}') from None
    passed = cache_dir() / "tried" / _key(config, head, empty)
    if not passed.exists() and _try(config, head, empty):
        _remember(passed)


def mode_of(config: RunConfig, head: str) -> dict[str, str | bool]:
    """Return what decides, beside the model, whether it can be trained."""
    mode: dict[str, str | bool] = {
        "data.task": config.data.task,
        **({"model.head": head} if config.data.kind.classifies else {}),
        "model.train": config.model.train,
        "model.quantization": config.model.quantization,
        "model.experts-in-memory": config.model.experts_in_memory,
        "model.dtype": config.model.dtype,
    }
    # The rest is told only where it is not the default.
    extras = {
        "model.attention-lora": config.model.attention_lora,
        "model.gates": config.model.gates,
        "train.gradient-checkpointing": config.train.gradient_checkpointing,
    }
    return mode | {key: value for key, value in extras.items() if value != (key == "model.gates")}


def _check_structure(model: ModelConfig, empty: PreTrainedModel) -> None:
    layers = find_moe_layers(empty)
    if model.quantization == "nf4":
        from fedmoe_app.moe.quantised.quantisers import check_blocks

        check_blocks(layers, BLOCK)


def _check_precision(model: ModelConfig, empty: PreTrainedModel) -> None:
    """Refuse a checkpoint that is quantised already in a way that cannot be trained on.

    MXFP4 (gpt-oss) passes: transformers reads it in 16 bits. What goes with a ``quantization`` of
    the run's own, :func:`fedmoe_app.moe.loading.load_model` says.
    """
    saved: Any = getattr(empty.config, "quantization_config", None)
    if not saved or model.quantization != "none":
        return
    method = saved.get("quant_method") if isinstance(saved, dict) else saved.quant_method
    method = getattr(method, "value", method) or BITSANDBYTES  # old configs name none
    adapters = method == BITSANDBYTES and model.train == "expert-lora"
    if method != "mxfp4" and not adapters:
        raise ConfigError(
            f'model.name = "{model.name}": the checkpoint is quantised already ({method}), '
            f'which model.train = "{model.train}" cannot train; choose one in 16 or 32 '
            'bits, and model.quantization = "nf4" with model.train = "expert-lora" to hold it in '
            "four"
        )


def _try(config: RunConfig, head: str, empty: PreTrainedModel) -> bool:
    """Try the first small model that plain transformers can run; tell whether there was one."""
    for small in small_configs(empty, num_labels=len(LABELS), pad_token_id=0):
        try:
            with tempfile.TemporaryDirectory(prefix="fedmoe-trial-") as folder:
                try_mode(config, head, type(empty), small, Path(folder))
            return True
        except NotBuiltError as error:
            logger.debug("a small %s: %s", type(empty).__name__, error)
        except TrialError as error:
            raise UnsupportedModelError(_refusal(config, head, empty, error)) from error
        except (OSError, MemoryError) as error:
            logger.debug("%s was not tried: %s", type(empty).__name__, error)
            return False
    return False


def _refusal(config: RunConfig, head: str, empty: PreTrainedModel, error: TrialError) -> str:
    mode = ", ".join(f"{key} = {json.dumps(value)}" for key, value in mode_of(config, head).items())
    return (
        f'model.name = "{config.model.name}": {type(empty).__name__} cannot be trained with '
        f"{mode}: tried on a small model of its make, {error}; choose another model, or another "
        "value of one of these"
    )


def _key(config: RunConfig, head: str, empty: PreTrainedModel) -> str:
    """Return what changes whenever the answer might."""
    versions = [torch.__version__, transformers.__version__, version("peft"), _VERSION]
    values = empty.config.to_dict()
    details = [config.data.metric, config.model.train_head, config.model.lora_rank]
    inputs = [type(empty).__name__, values, mode_of(config, head), details, versions]
    text = json.dumps(inputs, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _remember(passed: Path) -> None:
    try:
        passed.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        passed.touch(mode=0o600)
    except OSError as error:  # a cache that cannot be written: tried again the next time
        logger.debug("%s: %s", passed, error)
