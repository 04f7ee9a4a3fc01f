"""How large published MoE models are, in 16 and in four bits, and what LoRA of rank 8 adds.

    python -m benchmarks.sizes

Worked out from the architectures, without any weights (models on torch's meta device), by the rules
that quantisation and LoRA go by here; nothing is measured. "NF4": experts and linear maps in 4.5
bits a value, embeddings, gates, heads and norms in 16. "training": five float32 values for each of
an adapter's (its own, the received one, gradient, two of AdamW). Activations come on top.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    GptOssConfig,
    MixtralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    SwitchTransformersConfig,
)

from benchmarks.cells import print_markdown
from benchmarks.random_checkpoint import ARCHITECTURES, full_size_config
from fedmoe_app import find_moe_layers
from fedmoe_app.moe.quantised.packed import BLOCK

RANK = 8
NF4 = 4.5 / 8  # bytes a value
GB = 1e9
# The defaults of these classes are the published models Mixtral-8x7B and switch-base-8.
OTHERS: dict[str, PreTrainedConfig] = {
    "mixtral-8x7b": MixtralConfig(),
    "gpt-oss-20b": GptOssConfig(num_hidden_layers=24, num_local_experts=32),
    "switch-base-8": SwitchTransformersConfig(
        d_ff=3072, num_layers=12, num_sparse_encoder_layers=6, num_sparse_decoder_layers=6
    ),
}
HEADERS = ("model", "parameters", "bfloat16 GB", "NF4 GB", "LoRA MB up", "LoRA training GB")


def main() -> None:
    configs = {name: full_size_config(name, 1.0, 0) for name in ARCHITECTURES} | OTHERS
    print_markdown(HEADERS, [_row(name, config) for name, config in configs.items()])


def _row(name: str, config: PreTrainedConfig) -> tuple[str, ...]:
    model = _empty(config)
    parameters = sum(p.numel() for p in model.parameters())
    small = _quantised_parameters(model)
    nf4 = NF4 * small + 2 * (parameters - small)
    adapters = _adapter_parameters(model)
    return (
        name,
        f"{parameters / 1e9:.1f} B",
        f"{2 * parameters / GB:.1f}",
        f"{nf4 / GB:.1f}",
        f"{4 * adapters / 1e6:.0f}",
        f"{20 * adapters / GB:.1f}",
    )


def _empty(config: PreTrainedConfig) -> PreTrainedModel:
    auto: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.device("meta"):
        model: PreTrainedModel = auto.from_config(config)
    return model


def _quantised_parameters(model: PreTrainedModel) -> int:
    """Return how many values quantisation packs: stacks of experts, and most linear maps."""
    routers = {id(module) for layer in find_moe_layers(model) for module in layer.router.modules()}
    output = model.get_output_embeddings()
    total = sum(p.numel() for p in model.parameters() if p.dim() == 3)
    for module in model.base_model.modules():
        if not isinstance(module, nn.Linear) or module is output or id(module) in routers:
            continue
        if module.in_features % BLOCK == 0:
            total += module.weight.numel()
    return total


def _adapter_parameters(model: PreTrainedModel) -> int:
    """Return the values of LoRA on both maps of every expert."""
    matrices = [
        (1 if p.dim() == 2 else p.shape[0], p.shape[-1] + p.shape[-2])
        for layer in find_moe_layers(model)
        for p in layer.expert_parameters()
        if p.dim() == (3 if layer.fused else 2)
    ]
    return sum(experts * RANK * sides for experts, sides in matrices)


if __name__ == "__main__":
    main()
