"""What of a model is trained: everything, the experts, or LoRA on the experts.

A parameter takes part (is trained, sent and averaged) where it requires a gradient, as everywhere
in PyTorch and PEFT. All else is the frozen base, which every node loads and nobody sends.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from fedmoe_app.moe.layers import MoELayer
from fedmoe_app.moe.quantised.quantise import is_quantised


@dataclass(frozen=True)
class Adaptation:
    """What is trained.

    Attributes:
        train: "all" parameters of the model; full tensors of the "experts"; or "expert-lora".
        gates: train the routers, too. (These and the next two mean nothing with "all".)
        head: train the parameters outside the base model: a classification head.
        attention_lora: LoRA on the linear maps of attention, too.
        rank, alpha: r and α of all LoRA.
        residual: a third matrix of each expert's adapter, full and of zeros, that only the server
            moves.
    """

    train: str = "all"
    gates: bool = True
    head: bool = True
    attention_lora: bool = False
    rank: int = 8
    alpha: int = 16
    residual: bool = False


def adapt(
    model: PreTrainedModel, layers: Sequence[MoELayer], adaptation: Adaptation, seed: int
) -> None:
    """Freeze what is not trained and add adapters, in place; the seed fixes their values.

    Call it when the model is on its device and its MoE layers are known.

    Raises:
        ValueError: the model is quantised, so that only adapters on its experts can be trained.
        UnsupportedModelError: the family's experts cannot be adapted one by one.
    """
    if is_quantised(model) and adaptation.train != "expert-lora":
        raise ValueError(
            f'model.train = "{adaptation.train}": the model is quantised, so its weights cannot be '
            'trained; choose "expert-lora", or model.quantization = "none"'
        )
    frozen = frozen_by_family(model)
    if adaptation.train == "all":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and name not in frozen)
        return
    never = {id(p) for name, p in model.named_parameters() if name in frozen}
    model.requires_grad_(False)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        _open_experts(model, layers, adaptation)
    _cast_adapters(model)
    opened = [p for layer in layers if adaptation.gates for p in layer.router.parameters()]
    opened += head_parameters(model).values() if adaptation.head else ()
    for parameter in opened:
        parameter.requires_grad_(id(parameter) not in never)


def frozen_by_family(model: PreTrainedModel) -> frozenset[str]:
    """Return the names of the parameters that the family itself takes no gradient of.

    Such as the correction bias of a router, which pretraining moves by a rule of its own and
    fine-tuning leaves alone. Loading a checkpoint loses the mark, so a model without values is
    asked. (Most families keep that bias in a buffer, which is never trained.)
    """
    config = model.config
    return _frozen_in(_Make(type(model), config.to_json_string(use_diff=False), config))


@dataclass(frozen=True)
class _Make:
    """What a model is made of; equal where class and written config are."""

    kind: type[PreTrainedModel]
    written: str
    config: PreTrainedConfig = field(compare=False)


@lru_cache(maxsize=16)  # simulated clients load the same model again and again
def _frozen_in(make: _Make) -> frozenset[str]:
    with torch.device("meta"):
        fresh = make.kind(copy.deepcopy(make.config))
    return frozenset(name for name, p in fresh.named_parameters() if not p.requires_grad)


def head_parameters(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """Return the parameters outside the base model, such as a classification head."""
    inside = {id(p) for p in model.base_model.parameters()}
    return {name: p for name, p in model.named_parameters() if id(p) not in inside}


def classification_head(model: PreTrainedModel) -> str:
    """Return the path of the linear map to the classes' logits; "" where there is none.

    It is the last one outside the base model with C outputs.
    """
    inside = {id(module) for module in model.base_model.modules()}
    heads = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and id(module) not in inside
        and module is not model.get_output_embeddings()
        and module.out_features == model.config.num_labels
    ]
    return heads[-1] if heads else ""


def _open_experts(
    model: PreTrainedModel, layers: Sequence[MoELayer], adaptation: Adaptation
) -> None:
    from fedmoe_app.moe.training.lora import add_lora, add_peft_lora

    rank, alpha, attention = adaptation.rank, adaptation.alpha, adaptation.attention_lora
    if adaptation.train == "expert-lora":
        residual = adaptation.residual
        add_lora(model, layers, rank, alpha, attention=attention, residual=residual)
        return
    for layer in layers:
        for parameter in layer.expert_parameters():
            parameter.requires_grad_(True)
    add_peft_lora(model, [], rank, alpha, attention=attention)


def _cast_adapters(model: PreTrainedModel) -> None:
    """Keep adapters in float32: their steps are too small for 16 bits."""
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
