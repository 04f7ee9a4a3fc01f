"""A carved Qwen2-MoE written as GraniteMoeShared, which more programs compute as it is.

The two are the same function where

- the shared expert has no gate: a gate whose weights are zero is the factor 1/2, which goes into
  the down projection;
- top-k of the logits and then a softmax over those k is a softmax, then top-k, then a division by
  their sum;
- a dense layer is a shared expert of its size beside experts that are zero, and a shared expert
  that is too narrow has zero neurons added;
- the four multipliers are 1, and that of attention is ``head_dim ** -0.5``.

So nothing is approximated. The zeros cost memory and time: those of a dense layer are its experts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GraniteMoeSharedConfig, PreTrainedModel

from fedmoe_app.moe.layers import UnsupportedModelError

_KEPT = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "tie_word_embeddings",
    "rope_parameters",
    "num_experts_per_tok",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)


@torch.no_grad()
def as_granite(model: PreTrainedModel) -> PreTrainedModel:
    """Return a Qwen2-MoE written anew, in its dtype, with the same logits but for rounding.

    Args:
        model: with ``norm_topk_prob``, full attention and heads of ``hidden_size /
            num_attention_heads``. It stays as it is; what is the same, the two share.

    Raises:
        UnsupportedModelError: it is not the same function as any GraniteMoeShared.
    """
    config = model.config
    _check(model)
    granite = _granite_config(model)
    made: PreTrainedModel
    with torch.device("meta"):
        made = AutoModelForCausalLM.from_config(granite, dtype=model.dtype)
    state = model.state_dict()
    tensors = {name: tensor for name, tensor in state.items() if ".mlp." not in name}
    if config.qkv_bias:  # GraniteMoe has a bias behind attention, too
        for i in range(config.num_hidden_layers):
            key = f"model.layers.{i}.self_attn.o_proj"
            tensors[f"{key}.bias"] = torch.zeros_like(state[f"{key}.weight"][:, 0])
    for i, layer in enumerate(model.model.layers):
        parts = _layer(layer.mlp, granite)
        tensors |= {f"model.layers.{i}.{name}": tensor for name, tensor in parts.items()}
    made.load_state_dict(tensors, assign=True)
    made.tie_weights()
    made.model.rotary_emb = type(made.model.rotary_emb)(granite)  # its buffers are in no state
    made.generation_config = model.generation_config
    return made.eval()


def _check(model: PreTrainedModel) -> None:
    """Refuse what GraniteMoeShared is not the same function as."""
    if not model.config.norm_topk_prob:
        raise UnsupportedModelError(
            f"{type(model).__name__}: has dense layers and norm_topk_prob = False, which "
            "GraniteMoe has not"
        )
    for i, layer in enumerate(model.model.layers):
        gate = getattr(layer.mlp, "shared_expert_gate", None)
        if gate is not None and gate.weight.any():
            raise UnsupportedModelError(
                f"model.layers.{i}.mlp.shared_expert_gate: was trained, and GraniteMoe's shared "
                f"expert has no gate"
            )


def _granite_config(model: PreTrainedModel) -> GraniteMoeSharedConfig:
    config = model.config
    dense = any(not hasattr(layer.mlp, "experts") for layer in model.model.layers)
    head_dim = config.hidden_size // config.num_attention_heads
    return GraniteMoeSharedConfig(
        **{key: getattr(config, key) for key in _KEPT},
        attention_bias=config.qkv_bias,
        attention_multiplier=head_dim**-0.5,
        num_local_experts=config.num_experts,
        intermediate_size=config.moe_intermediate_size,
        shared_intermediate_size=max(
            config.shared_expert_intermediate_size, config.intermediate_size if dense else 0
        ),
        use_cache=True,
    )


def _layer(mlp: Any, config: GraniteMoeSharedConfig) -> dict[str, Tensor]:
    """Return a feed-forward layer, dense or not, by GraniteMoeShared's names."""
    width = config.shared_intermediate_size
    router, experts = "block_sparse_moe.router.weight", "block_sparse_moe.experts"
    if hasattr(mlp, "experts"):
        shared, factor = mlp.shared_expert, 0.5  # the logistic function at 0
        routed = {
            router: mlp.gate.weight,
            f"{experts}.gate_up_proj": mlp.experts.gate_up_proj,
            f"{experts}.down_proj": mlp.experts.down_proj,
        }
    else:
        shared, factor = mlp, 1.0
        sizes = {
            router: (config.num_local_experts, config.hidden_size),
            f"{experts}.gate_up_proj": (
                config.num_local_experts,
                2 * config.intermediate_size,
                config.hidden_size,
            ),
            f"{experts}.down_proj": (
                config.num_local_experts,
                config.hidden_size,
                config.intermediate_size,
            ),
        }
        like = mlp.down_proj.weight
        routed = {name: like.new_zeros(size) for name, size in sizes.items()}
    gate, up = (_rows(getattr(shared, f"{key}_proj").weight, width) for key in ("gate", "up"))
    down = _rows(shared.down_proj.weight.T * factor, width).T.contiguous()
    return routed | {
        "shared_mlp.input_linear.weight": torch.cat([gate, up]),  # [2 S, D]
        "shared_mlp.output_linear.weight": down,  # [D, S]
    }


def _rows(matrix: Tensor, count: int) -> Tensor:
    """Add rows of zeros until there are ``count``."""
    return torch.cat([matrix, matrix.new_zeros(count - len(matrix), matrix.shape[1])])
