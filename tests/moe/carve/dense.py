"""Tiny dense models of every family that can be carved, with spread-out weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM as AutoCausalLM
from transformers import (
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from tests.bases import word_tokenizer
from tests.moe.families import COMMON

CONFIGS: dict[str, Any] = {
    "llama": LlamaConfig,
    "llama-tied": LlamaConfig,
    "mistral": MistralConfig,
    "mistral-window": MistralConfig,
    "qwen2": Qwen2Config,
    "qwen2-window": Qwen2Config,
    "qwen3": Qwen3Config,
}
OWN: dict[str, dict[str, Any]] = {
    "llama-tied": {"tie_word_embeddings": True, "head_dim": 16},
    "mistral": {"sliding_window": None},
    "mistral-window": {"sliding_window": 3},
    "qwen2-window": {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1},
    "qwen3": {"head_dim": 16},
}
NAMES = tuple(CONFIGS)
NEURONS = 48


def build_dense(name: str, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """Return a dense model of 3 layers of 48 neurons, hidden size 32, in eval mode."""
    values = {**COMMON, "num_hidden_layers": 3, "intermediate_size": NEURONS}
    config = CONFIGS[name](**{**values, **OWN.get(name, {}), **overrides})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoCausalLM.from_config(config)
        for key, parameter in model.named_parameters():
            if "norm" not in key:
                torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def save_dense(folder: Path, name: str, **overrides: Any) -> PreTrainedModel:
    """Write a dense model and its tokenizer; return the model."""
    model = build_dense(name, **overrides)
    model.save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return model
