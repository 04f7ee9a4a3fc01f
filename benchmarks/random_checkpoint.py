"""Checkpoints of full-size architectures with random weights, written one shard at a time.

As on the hub: bfloat16, one tensor an expert and map, a shard a layer. Only one shard is ever in
memory, so that a model of any size can be written on any machine with the disk for it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    DeepseekV2Config,
    OlmoeConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    Qwen2MoeConfig,
)

HEAD = 128  # width of an attention head in all three
# Sizes from the published config.json of each model.
ARCHITECTURES: dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
    "olmoe-1b-7b": (
        OlmoeConfig,
        dict(
            vocab_size=50304,
            intermediate_size=1024,
            num_hidden_layers=16,
            num_attention_heads=16,
            num_experts=64,
            num_experts_per_tok=8,
        ),
    ),
    "qwen1.5-moe-a2.7b": (
        Qwen2MoeConfig,
        dict(
            vocab_size=151936,
            intermediate_size=5632,
            moe_intermediate_size=1408,
            shared_expert_intermediate_size=5632,
            num_hidden_layers=24,
            num_attention_heads=16,
            num_experts=60,
            num_experts_per_tok=4,
        ),
    ),
    "deepseek-v2-lite": (
        DeepseekV2Config,
        dict(
            vocab_size=102400,
            intermediate_size=10944,
            moe_intermediate_size=1408,
            num_hidden_layers=27,
            num_attention_heads=16,
            n_routed_experts=64,
            num_experts_per_tok=6,
            n_shared_experts=2,
            first_k_dense_replace=1,
            kv_lora_rank=512,
            q_lora_rank=None,
            qk_nope_head_dim=128,
            qk_rope_head_dim=64,
            v_head_dim=128,
            topk_method="greedy",
            routed_scaling_factor=1.0,
        ),
    ),
}
_WIDTHS = ("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size")
_EXPERTS = ("num_experts", "n_routed_experts")


def full_size_config(name: str, scale: float, least_vocabulary: int) -> PreTrainedConfig:
    """Return a config of :data:`ARCHITECTURES`.

    Args:
        name: its key.
        scale: share of the layers, heads, widths, experts and vocabulary; 1 is the real size.
        least_vocabulary: tokens of the tokenizer.
    """
    kind: Any
    kind, sizes = ARCHITECTURES[name]
    values = dict(sizes)
    values["vocab_size"] = max(_part(values["vocab_size"], scale, 64), least_vocabulary)
    values["num_hidden_layers"] = _part(values["num_hidden_layers"], scale, 1, least=2)
    heads = values["num_attention_heads"] = _part(values["num_attention_heads"], scale, 1, least=2)
    for key in _WIDTHS:
        if key in values:
            values[key] = _part(values[key], scale, 64)
    for key in _EXPERTS:
        if key in values:
            least = 2 * values["num_experts_per_tok"]
            values[key] = _part(values[key], scale, 1, least=least)
    return kind(
        hidden_size=heads * HEAD,
        num_key_value_heads=heads,
        max_position_embeddings=4096,
        dtype="bfloat16",
        **values,
    )


def write_checkpoint(
    config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, folder: Path, device: str = "cpu"
) -> int:
    """Write config, tokenizer and random weights, ``N(0, 0.02)``; return the parameters.

    Args:
        config: of a decoder-only model.
        tokenizer: saved beside the weights.
        folder: new or empty.
        device: where the numbers are drawn; a GPU draws them much faster.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    config.architectures = [type(model).__name__]
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    shards: dict[str, dict[str, Tensor]] = {}
    for name, meta in model.state_dict().items():
        shards.setdefault(_shard(name), {})[name] = meta
    generator = torch.Generator(device).manual_seed(0)
    weight_map: dict[str, str] = {}
    for shard, metas in shards.items():
        tensors = {
            name: value
            for meta_name, meta in metas.items()
            for name, value in _draw(meta_name, meta, generator)
        }
        save_file(tensors, folder / shard, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, shard)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return sum(parameter.numel() for parameter in model.parameters())


def _part(value: int, scale: float, multiple: int, least: int = 0) -> int:
    return max(least or multiple, round(value * scale / multiple) * multiple)


def _shard(name: str) -> str:
    """Return the file of a tensor: one a layer, one for the rest."""
    parts = name.split(".")
    layer = parts[parts.index("layers") + 1] if "layers" in parts else "rest"
    return f"model-{layer}.safetensors"


def _draw(name: str, meta: Tensor, generator: torch.Generator) -> Iterable[tuple[str, Tensor]]:
    """Yield the tensors that the hub's format has for one of the model, on the CPU."""
    path, _, last = name.rpartition(".")
    if meta.dim() == 1:
        value = torch.ones if "norm" in name else torch.zeros
        yield name, value(meta.shape, dtype=torch.bfloat16)
    elif meta.dim() == 2:
        yield name, _normal(meta.shape, generator)
    else:
        maps = ("gate_proj", "up_proj") if last == "gate_up_proj" else (last,)
        rows = meta.shape[1] // len(maps)
        for e in range(meta.shape[0]):
            for one in maps:
                yield f"{path}.{e}.{one}.weight", _normal((rows, meta.shape[2]), generator)


def _normal(shape: Iterable[int], generator: torch.Generator) -> Tensor:
    values = torch.empty(tuple(shape), dtype=torch.bfloat16, device=generator.device)
    return values.normal_(0, 0.02, generator=generator).cpu()
