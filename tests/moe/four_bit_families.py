"""The families of families.py with sizes that fill the blocks of 64 values of NF4."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from . import families

_COMMON: dict[str, Any] = dict(hidden_size=64, intermediate_size=64)
_HEADS: dict[str, Any] = dict(head_dim=16)  # 4 heads: 64 values
SIZES: dict[str, dict[str, Any]] = {
    "Qwen2Moe": dict(moe_intermediate_size=64, shared_expert_intermediate_size=64),
    "Qwen3Moe": dict(moe_intermediate_size=64, **_HEADS),
    "DeepseekV2": dict(moe_intermediate_size=64, kv_lora_rank=64, v_head_dim=16),
    "DeepseekV3": dict(moe_intermediate_size=64, kv_lora_rank=64, v_head_dim=16),
    "GptOss": _HEADS,
    "SwitchTransformers": dict(hidden_size=64, d_ff=64, d_kv=16),
}


def build(family: str, **overrides: Any) -> PreTrainedModel:
    """Return the model; the same in every call, also the biases and sinks of GptOss."""
    common = {} if family == "SwitchTransformers" else _COMMON
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return families.build(family, **{**common, **SIZES.get(family, {}), **overrides})
