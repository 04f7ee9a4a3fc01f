"""Tiny models of every MoE family that the tests build: hidden 32, a few thousand parameters."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from fedmoe_app import MoELayer

VOCAB = 61
EXPERTS = 4
COMMON: dict[str, Any] = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
    use_cache=False,
)
DEEPSEEK: dict[str, Any] = dict(
    num_hidden_layers=3,
    num_key_value_heads=4,
    intermediate_size=48,
    moe_intermediate_size=16,
    n_routed_experts=EXPERTS,
    num_experts_per_tok=2,
    first_k_dense_replace=1,
    n_shared_experts=1,
    q_lora_rank=None,
    kv_lora_rank=16,
    qk_rope_head_dim=8,
    qk_nope_head_dim=8,
    v_head_dim=8,
)
QWEN: dict[str, Any] = dict(
    num_experts=EXPERTS,
    num_experts_per_tok=2,
    intermediate_size=48,
    moe_intermediate_size=16,
)
LOCAL: dict[str, Any] = dict(num_local_experts=EXPERTS, num_experts_per_tok=2, intermediate_size=16)
FAMILIES: dict[str, dict[str, Any]] = {
    "Mixtral": LOCAL,
    "Qwen2Moe": {**QWEN, "shared_expert_intermediate_size": 24},
    "Qwen3Moe": {**QWEN, "head_dim": 8, "norm_topk_prob": True},
    "Olmoe": {**QWEN, "intermediate_size": 16},
    "DeepseekV2": {**DEEPSEEK, "topk_method": "greedy"},
    "DeepseekV3": {**DEEPSEEK, "n_group": 2, "topk_group": 1},
    "GptOss": {**LOCAL, "head_dim": 8, "sliding_window": 16},
    "GraniteMoe": LOCAL,
    "Phimoe": {**LOCAL, "router_jitter_noise": 0.0, "input_jitter_noise": 0.0},
    "SwitchTransformers": dict(
        d_kv=8,
        d_ff=16,
        num_layers=2,
        num_decoder_layers=2,
        num_sparse_encoder_layers=2,
        num_sparse_decoder_layers=2,
        num_heads=4,
        num_experts=EXPERTS,
        expert_capacity=64,
        router_jitter_noise=0.0,
        dropout_rate=0.0,
        decoder_start_token_id=0,
    ),
}
NAMES = tuple(FAMILIES)
FUSED = tuple(name for name in NAMES if name != "SwitchTransformers")


def build(family: str, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """Return a tiny language model of the family, in eval mode, with spread-out weights."""
    values = {**COMMON, **FAMILIES[family], **overrides}
    switch = family == "SwitchTransformers"
    if switch:
        for unused in ("num_hidden_layers", "num_attention_heads", "num_key_value_heads"):
            values.pop(unused)
        values["d_model"] = values.pop("hidden_size")
    config = getattr(transformers, f"{family}Config")(**values)
    head = "ForConditionalGeneration" if switch else "ForCausalLM"
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # vectors (GptOss' sinks and biases) keep their first values
        model = getattr(transformers, f"{family}{head}")(config)
    scatter(model, seed)
    return model.eval()


@torch.no_grad()
def scatter(model: PreTrainedModel, seed: int) -> None:
    """Give every matrix N(0, 0.2) values, so that experts differ and routing is not uniform."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)


def batch(model: PreTrainedModel, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return 3 rows of 7, 5 and 2 real tokens, right-padded, with labels.

    An encoder-decoder model decodes the first 4 of them: 4, 4 and 2 real tokens.
    """
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCAB, (3, 7), generator=generator)
    mask = torch.tensor([[1] * 7, [1] * 5 + [0] * 2, [1] * 2 + [0] * 5])
    ids = ids * mask
    labels = ids.masked_fill(mask == 0, -100)
    inputs = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    if model.config.is_encoder_decoder:
        inputs["labels"] = labels[:, :4].contiguous()
        inputs["decoder_attention_mask"] = mask[:, :4]
    return inputs


def real_tokens(layer: MoELayer) -> int:
    """Return the number of real tokens of :func:`batch` that a layer routes."""
    return 10 if layer.in_decoder else 14
