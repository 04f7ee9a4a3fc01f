"""Small models of published sizes: the same make, a few million values, at work."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    JambaConfig,
    JambaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    SwitchTransformersConfig,
    SwitchTransformersForConditionalGeneration,
)

from benchmarks.every_family import token_batch
from fedmoe_app import find_moe_layers
from fedmoe_app.moe.miniature import LARGEST, miniatures, small_configs

from .families import build

MIXTRAL: Any = MixtralConfig(id2label={0: "a", 1: "b", 2: "c"})  # 8x7B
PUBLISHED: dict[str, tuple[Any, Any]] = {
    "mixtral": (MixtralForCausalLM, MIXTRAL),
    "deepseek-v3": (DeepseekV3ForCausalLM, DeepseekV3Config()),  # 671 B
    "gpt-oss": (GptOssForCausalLM, GptOssConfig()),  # 120 B; hidden 2880
    "qwen3-235b": (
        Qwen3MoeForCausalLM,
        Qwen3MoeConfig(
            hidden_size=4096,
            num_hidden_layers=94,
            num_attention_heads=64,
            num_key_value_heads=4,
            head_dim=128,
            moe_intermediate_size=1536,
        ),
    ),
    "jamba": (JambaForCausalLM, JambaConfig()),  # Mamba and attention, every second layer sparse
    "switch-base": (
        SwitchTransformersForConditionalGeneration,
        SwitchTransformersConfig(num_experts=128),
    ),
}


def empty(name: str) -> Any:
    kind, config = PUBLISHED[name]
    with torch.device("meta"):
        return kind(config)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_model_has_a_small_one_that_works(name: str) -> None:
    large = empty(name)
    small = next(small_configs(large, pad_token_id=0))
    model = type(large)(small).eval()
    assert sum(p.numel() for p in model.parameters()) <= LARGEST
    with torch.no_grad():
        assert model(**token_batch(model))[0].isfinite().all()
    old, new = find_moe_layers(large)[0], find_moe_layers(model)[0]
    assert (new.fused, new.top_k, type(new.router)) == (old.fused, old.top_k, type(old.router))
    assert new.top_k < new.num_experts <= old.num_experts
    kinds = [{type(m) for m in one.modules()} for one in (large, model)]
    assert kinds[0] == kinds[1]  # dense and sparse layers, every kind of attention


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_fills_nf4s_blocks_does_so_in_small(name: str) -> None:
    large = empty(name)
    model = type(large)(next(small_configs(large)))
    for layer in (find_moe_layers(model)[0], find_moe_layers(model)[-1]):
        matrices = [p for p in layer.expert(0).values() if p.dim() == 2]
        assert matrices
        assert all(size % 64 == 0 for matrix in matrices for size in matrix.shape)


def test_the_config_stays_as_it_is() -> None:
    before = MIXTRAL.to_dict()
    list(miniatures(MIXTRAL, empty("mixtral")))
    assert MIXTRAL.to_dict() == before


def test_a_small_model_is_taken_as_it_is() -> None:
    model = build("DeepseekV3")
    small = next(small_configs(model))
    names = ("hidden_size", "num_hidden_layers", "n_routed_experts", "vocab_size")
    assert [getattr(small, n) for n in names] == [getattr(model.config, n) for n in names]


def test_classes_and_quantisation_of_a_checkpoint_are_not_taken() -> None:
    large = empty("mixtral")
    large.config.quantization_config = {"quant_method": "mxfp4"}
    small = next(small_configs(large, num_labels=2))
    assert small.num_labels == 2
    assert not hasattr(small, "quantization_config")
