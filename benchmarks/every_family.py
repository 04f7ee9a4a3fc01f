"""Every Mixture-of-Experts family of the installed transformers, each as a small model.

A family is one of transformers' model folders whose code has a class for experts, a router or a
Mixture-of-Experts block. Its small model is made from its default config by the rules that
:mod:`fedmoe_app.moe.miniature` has for configs of any size.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import (
    CONFIG_MAPPING_NAMES,
    model_type_to_module_name,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
)

from fedmoe_app.moe.miniature import small_configs

_LANGUAGE = (MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING)
_EXPERTS = re.compile(
    r"^class \w*(Expert|MoE\b|MoELayer|MoeBlock|SparseMoe|MoEGate|Router|TopkGate)\w*\(", re.M
)
# What default configs lack, or have otherwise than the published models with experts.
OVERRIDES: dict[str, dict[str, Any]] = {
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "kv_n_heads": 4, "clip_qkv": 8.0}},
    "deepseek_v2": {"num_experts_per_tok": 6, "moe_intermediate_size": 1408},
    "doge": {"is_moe": True},
    "dots1": {"n_routed_experts": 128, "num_experts_per_tok": 6, "n_shared_experts": 2},
    "gemma4_text": {
        "enable_moe_block": True,
        "num_experts": 128,
        "top_k_experts": 8,
        "moe_intermediate_size": 704,
    },
    "granitemoehybrid": {"layer_types": ["linear_attention"] * 5 + ["full_attention"] * 27},
    "inkling2_loop_text": {
        "num_hidden_layers": 6,
        "loop_layer_index_start": 2,
        "loop_layer_index_end": 4,
        "n_layers_per_attn_res_block": 2,
    },
    "hunyuan_v1_moe": {"num_experts": 16, "moe_topk": 2, "head_dim": 128},
    "lfm2_moe": {"layer_types": ["conv", "conv", "full_attention", "conv"] * 8},
    "qwen4_exp_text": {
        "indexer_head_dim": 256,
        "indexer_n_heads": 8,
        "indexer_kv_heads": 1,
        "indexer_budget": 512,
        "indexer_compress_ratio": 4,
    },
    "switch_transformers": {"decoder_start_token_id": 0},
}


def family_names() -> list[str]:
    """Return one model type a family, in alphabetical order: that of its text model, if it has."""
    by_folder: dict[str, list[str]] = {}
    for model_type in CONFIG_MAPPING_NAMES:
        by_folder.setdefault(model_type_to_module_name(model_type), []).append(model_type)
    return sorted(_main(types) for folder, types in by_folder.items() if _has_experts(folder))


def _has_experts(folder: str) -> bool:
    root = Path(transformers.__file__).parent / "models" / folder
    return any(_EXPERTS.search(file.read_text("utf-8")) for file in root.glob("modeling_*.py"))


def _main(types: list[str]) -> str:
    """Prefer what has a language model, and of that the part that is about text."""
    speaking = [name for name in types if language_class(CONFIG_MAPPING[name]) is not None]
    return max(speaking or types, key=lambda name: (name.endswith("_text"), -len(name)))


def language_class(config_class: type[PreTrainedConfig]) -> type[PreTrainedModel] | None:
    """Return the class with a language-modelling head; None for a family that has none."""
    found = (_one(mapping, config_class) for mapping in _LANGUAGE)
    return next((kind for kind in found if kind is not None), None)


def classifier_class(config_class: type[PreTrainedConfig]) -> type[PreTrainedModel] | None:
    """Return the class with a classification head; None for a family that has none."""
    return _one(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, config_class)


def _one(mapping: Any, config_class: type[PreTrainedConfig]) -> type[PreTrainedModel] | None:
    """Look a class up in one of transformers' tables, which are no dicts."""
    found: type[PreTrainedModel] | None = mapping.get(config_class, None)
    return found


def default_config(name: str) -> PreTrainedConfig:
    """Return a family's config as published, with what it lacks."""
    return CONFIG_MAPPING[name](**OVERRIDES.get(name, {}))


def small_model(name: str, kind: type[PreTrainedModel], seed: int = 0) -> PreTrainedModel:
    """Return a family's small model with spread-out random weights, in eval mode.

    Raises:
        ValueError: no small model of the family runs.
    """
    errors = []
    with torch.device("meta"):
        empty = kind(default_config(name))
    for config in small_configs(empty, pad_token_id=0, bos_token_id=1, eos_token_id=2):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            try:
                model = kind(config).eval()
                _scatter(model)
                with torch.no_grad():
                    model(**token_batch(model))
            except Exception as error:  # whatever the family's own code does
                errors.append(f"{type(error).__name__}: {error}")
                continue
            return model
    raise ValueError(f"{name}: no small model of it runs ({'; '.join(errors)})")


@torch.no_grad()
def _scatter(model: PreTrainedModel) -> None:
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.normal_(0, 0.05)


def token_batch(model: PreTrainedModel, length: int = 16) -> dict[str, torch.Tensor]:
    """Return two rows of different real length, more than an indexer of a small model chooses."""
    ids = torch.arange(2 * length).view(2, length) * 7 % 50 + 5
    mask = torch.ones_like(ids)
    mask[1, 11:] = 0
    inputs = {"input_ids": ids * mask, "attention_mask": mask}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids[:, :3]
    return inputs
