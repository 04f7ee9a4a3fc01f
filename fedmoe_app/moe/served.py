"""Models for other programs: what a program would compute otherwise is changed, or refused.

A program that knows a family's name need not know all that its config can say. Some of it is
ignored without a word, and another model answers. Read in the programs' sources and found by
comparing logits (docs/serving.md has the versions):

- llama.cpp's ``qwen2_moe`` and ``olmoe`` never divide the weights of the chosen experts by their
  sum, its ``qwen3_moe`` always does, whatever ``norm_topk_prob`` is; ``mlp_only_layers`` they lack.
- vLLM's ``qwen2_moe`` has biases of queries, keys and values that stay unset if the checkpoint has
  none (``qkv_bias = false``); its ``olmoe`` never divides, either.
- A sliding window of Qwen-MoE neither has, nor ``head_dim`` of its own for ``qwen2_moe``.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from fedmoe_app.moe.carve.granite import as_granite
from fedmoe_app.moe.layers import UnsupportedModelError

# Family -> what llama.cpp, and what vLLM, takes ``norm_topk_prob`` to be.
_LLAMA_CPP = {"qwen2_moe": False, "qwen3_moe": True, "olmoe": False}
_VLLM = {"olmoe": False}
# Families that neither program computes with a sliding window, and with heads of another width than
# hidden_size / num_attention_heads.
_NO_WINDOW = ("qwen2_moe", "qwen3_moe")
_PLAIN_HEADS = ("qwen2_moe",)
_ELSE = "use --format hf with another program"


def misread_by(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the programs that would compute another model, or none, from a folder as it is.

    Args:
        config: of a language model, as its ``config.json`` has it.

    Returns:
        Names of formats of ``fedmoe export``, which writes a folder for each or says why not.
    """
    family, norm = config["model_type"], bool(config.get("norm_topk_prob", False))
    biases_unset = family == "qwen2_moe" and not config.get("qkv_bias", True)
    dense = bool(config.get("mlp_only_layers")) or config.get("decoder_sparse_step", 1) > 1
    shape = _ignored_shape(config)
    found = {
        "vllm": bool(shape) or biases_unset or norm != _VLLM.get(family, norm),
        "llama.cpp": bool(shape)
        or (family in _LLAMA_CPP and (dense or norm != _LLAMA_CPP[family])),
    }
    return tuple(program for program, misread in found.items() if misread)


def _ignored_shape(config: Mapping[str, Any]) -> str:
    """Return what of a config's attention neither program computes; "" if that is nothing."""
    family = config["model_type"]
    if family in _NO_WINDOW and "sliding_attention" in (config.get("layer_types") or ()):
        return "has a sliding window"
    if family in _PLAIN_HEADS:
        plain = config["hidden_size"] // config["num_attention_heads"]
        if (head_dim := config.get("head_dim") or plain) != plain:
            return f"has heads of {head_dim}, not hidden_size / num_attention_heads"
    return ""


def for_llama_cpp(model: PreTrainedModel) -> PreTrainedModel:
    """Return a model that llama.cpp computes as transformers does, with the same logits.

    Args:
        model: a language model with nothing left to merge. It stays as it is, and is returned
            itself where there is nothing to change.

    Raises:
        UnsupportedModelError: llama.cpp would refuse it, or compute something else.
    """
    name, family = type(model).__name__, str(model.config.model_type)
    if name.endswith("ForSequenceClassification"):
        raise UnsupportedModelError(
            f"{name}: llama.cpp has no classification heads of Mixture-of-Experts models; train "
            f'with model.head = "label-words", or {_ELSE}'
        )
    if family not in _LLAMA_CPP:
        return model
    if shape := _ignored_shape(model.config.to_dict()):
        raise _ignored(name, shape, f"llama.cpp's {family}")
    dense = any(not hasattr(layer.mlp, "experts") for layer in model.model.layers)
    if not dense and bool(model.config.norm_topk_prob) == _LLAMA_CPP[family]:
        return model
    if family == "qwen2_moe":
        try:
            return as_granite(model)
        except UnsupportedModelError as error:
            raise UnsupportedModelError(f"{error}; {_ELSE}") from error
    found = "has dense layers" if dense else f"has norm_topk_prob = {model.config.norm_topk_prob}"
    raise _ignored(name, found, f"llama.cpp's {family}")


def for_vllm(model: PreTrainedModel) -> PreTrainedModel:
    """Return a model that vLLM computes as transformers does, with the same logits.

    Args:
        model: with nothing left to merge. It stays as it is, and is returned itself where there is
            nothing to change.

    Raises:
        UnsupportedModelError: vLLM would compute something else.
    """
    config, family = model.config, str(model.config.model_type)
    if shape := _ignored_shape(config.to_dict()):
        raise _ignored(type(model).__name__, shape, f"vLLM's {family}")
    if family in _VLLM and bool(config.norm_topk_prob) != _VLLM[family]:
        found = f"has norm_topk_prob = {config.norm_topk_prob}"
        raise _ignored(type(model).__name__, found, f"vLLM's {family}")
    if family == "qwen2_moe" and not config.qkv_bias:
        return _with_biases(model)
    return model


def _ignored(name: str, found: str, where: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{name}: {found}, and {where} has not: it would compute another model; {_ELSE}"
    )


def _with_biases(model: PreTrainedModel) -> PreTrainedModel:
    """Return a Qwen2-MoE with biases of queries, keys and values, which are zero."""
    config = copy.deepcopy(model.config)
    config.qkv_bias = True
    made: PreTrainedModel
    with torch.device("meta"):
        made = type(model)(config)
    zeros = {
        name: torch.zeros(bias.shape, dtype=model.dtype)
        for name, bias in made.named_parameters()
        if name.endswith("_proj.bias")
    }
    made.load_state_dict(model.state_dict() | zeros, assign=True)
    made.tie_weights()
    made.model.rotary_emb = type(made.model.rotary_emb)(config)  # its buffers are in no state
    made.generation_config = model.generation_config
    return made.eval()
