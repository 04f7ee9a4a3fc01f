"""A small model of the same make: the config of any family with small widths and few layers.

What a model can do is decided by its make, not by its size. To try that before a run starts, its
config is made small. Every width is divided by one number, which keeps the relations between them
(hidden = heads · head size); sizes that nothing else depends on are set; layers are cut off behind
the first ones of each kind. There is no list of families here, only of words that configs use.
Whether the result is a working model, the caller finds out: it gets candidates, the smallest first.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

logger = logging.getLogger("fedmoe")

SMALL = 20_000_000  # parameters; a model that has no more is small already
LARGEST = 40_000_000  # parameters of a small model: a larger one would take too long
SEEN = 4  # tokens that an indexer chooses: the texts of a trial are longer
_VOCABULARY = 512
_INNER = 64  # a block of NF4
_LEAST_HEAD = 8  # rotary embeddings need some pairs
_LEAST_LAYERS = 2
_FACTORS = (64, 32, 16, 8, 4, 2, 1)

_EXPERTS = re.compile(r"(^|_)num_(local_|routed_)?experts$|^n_routed_experts$|^zero_expert_num$")
_TOP_K = re.compile(r"experts_per_tok(en)?$|^moe_topk?$|^moe_k$|^moe_top_k$|^top_k_experts$")
_GROUPS = re.compile(r"^n_group$|^num_expert_group$")
_HIDDEN = re.compile(r"(^|_)hidden_size$|^d_model$")
_HEADS = re.compile(r"head_dim$|head_size$|^kv_channels$|^d_kv$|d_head$")
_WIDTHS = re.compile(
    f"{_HEADS.pattern}|{_HIDDEN.pattern}|lora_rank$|lowrank$|dt_rank$|embed_dim$"
    "|^hidden_size_per_layer_input$|^rotary_dim$"
)
_INNER_SIZES = re.compile(r"intermediate_size|ffn_hidden_size$|ffn_dim$|^d_ff$")
_VOCABULARIES = re.compile(r"vocab_size")
_CHOSEN = re.compile(r"^index_topk$|^index_topk_blocks$|^index_block_size$")
_CHUNKS = re.compile(r"^(mamba_)?chunk_size$")  # to which a state space model pads texts
_CHUNK = 8
_LAYERS = re.compile(r"^num_hidden_layers$|^n_layers$|^num_layers$")
_SECTIONS = re.compile(r"mrope_section$")  # a list of widths

# What a small model has anew.
_NOT_TAKEN = ("id2label", "label2id", "num_labels", "quantization_config", "dtype", "torch_dtype")

Values = dict[str, Any]  # a config as a nested dict


def small_configs(model: PreTrainedModel, **own: Any) -> Iterator[PreTrainedConfig]:
    """Yield small configs of a model's make that its family takes, to be tried in this order.

    Args:
        model: of any size, on any device; its values are not looked at.
        own: keys of the config, with the values that they are to have.
    """
    for values in miniatures(model.config, model):
        plain = {key: value for key, value in values.items() if key not in _NOT_TAKEN}
        try:
            small = type(model.config).from_dict(plain)
            for key, value in own.items():
                setattr(small, key, value)
            with torch.device("meta"):
                size = sum(p.numel() for p in type(model)(small).parameters())
        except Exception as error:  # whatever a family's own checks raise
            logger.debug("%s: %s", type(model.config).__name__, error)
            continue
        if size <= LARGEST:
            yield small


def miniatures(config: PreTrainedConfig, model: PreTrainedModel) -> Iterator[Values]:
    """Yield the values of small configs of the same make, to be tried in this order.

    Args:
        config: of a model of any size; it stays as it is.
        model: built from it, on any device; its values are not looked at.
    """
    values = config.to_dict()
    if sum(parameter.numel() for parameter in model.parameters()) <= SMALL:
        yield _few_chosen(values)
    kept = max(_LEAST_LAYERS, _layers_of_each_kind(model, values))
    cut = not values.get("is_encoder_decoder")  # its two stacks share some of their keys
    for factor in _factors(values):
        small = _smaller(values, factor)
        if cut:
            yield _fewer_layers(small, kept)
        yield small


def _layers_of_each_kind(model: PreTrainedModel, values: Values) -> int:
    """Return how many layers from the first on have one of every kind among them.

    Two layers are of one kind if they have modules of the same classes under the same names and
    all lists of the config with one entry a layer say the same of both.
    """
    stacks = [m for m in model.modules() if isinstance(m, nn.ModuleList)]
    text = _text(values)
    stack = next((m for m in stacks if len(m) == _num_layers(text)), None)
    if stack is None:
        return _num_layers(text)
    lists = [v for v in text.values() if isinstance(v, list) and len(v) == len(stack)]
    kinds = [
        (_classes(layer), *(str(entries[i]) for entries in lists)) for i, layer in enumerate(stack)
    ]
    return 1 + max(kinds.index(kind) for kind in set(kinds))


def _classes(layer: nn.Module) -> str:
    return str([(name, type(module).__name__) for name, module in layer.named_modules()])


def _text(values: Values) -> Values:
    """Return the part of a config of several kinds of data that is about text."""
    part = values.get("text_config")
    return part if isinstance(part, dict) else values


def _num_layers(values: Values) -> int:
    found = [v for k, v in values.items() if _LAYERS.search(k) and isinstance(v, int)]
    return max(found, default=0)


def _factors(values: Values) -> list[int]:
    """Return powers of two to divide widths by.

    First the largest that divides every width and leaves heads large enough; then, rounded, the
    largest that leaves heads large enough; and 1, which changes no width.
    """
    widths = [(key, v) for key, v in _integers(values) if _WIDTHS.search(key) and v > 0]
    # What NF4's blocks divide, they are to divide in small, too.
    blocks = [v // _INNER for k, v in widths if _HIDDEN.search(k) and v % _INNER == 0]
    heads = [v for k, v in widths if _HEADS.search(k)] or [_head(_text(values))]
    large = [f for f in _FACTORS if f * _LEAST_HEAD <= min(heads)] or [1]
    exact = [f for f in large if all(v % f == 0 for v in (*(v for _, v in widths), *blocks))]
    return list(dict.fromkeys((*exact[:1], large[0], 1)))


def _head(values: Values) -> int:
    hidden = next((v for k, v in values.items() if _HIDDEN.search(k) and v), 0)
    heads = next((v for k, v in values.items() if k.endswith("attention_heads") and v), 1)
    return int(hidden) // int(heads)


def _integers(values: Any, key: str = "") -> Iterator[tuple[str, int]]:
    """Yield all whole numbers of a nested config with the name of each."""
    if isinstance(values, dict):
        for name, value in values.items():
            yield from _integers(value, str(name))
    elif isinstance(values, int) and not isinstance(values, bool):
        yield key, values


def _smaller(values: Values, factor: int) -> Values:
    """Return a nested config with small widths, vocabularies and numbers of experts."""
    experts = _enough_experts(values)
    return {key: _small(str(key), value, factor, experts) for key, value in values.items()}


def _small(key: str, value: Any, factor: int, experts: int) -> Any:
    if isinstance(value, dict) and key not in ("id2label", "label2id"):
        return {name: _small(str(name), part, factor, experts) for name, part in value.items()}
    if isinstance(value, list) and _SECTIONS.search(key):
        return [part // factor for part in value]
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        return value
    if _INNER_SIZES.search(key):
        return _INNER if value % _INNER == 0 else _INNER + 8
    if _WIDTHS.search(key):
        block = _INNER if _HIDDEN.search(key) and value % _INNER == 0 else 1
        return block * max(1, value // block // factor)
    for pattern, limit in (
        (_EXPERTS, experts),
        (_VOCABULARIES, _VOCABULARY),
        (re.compile("token_id$"), _VOCABULARY - 1),
        (_CHOSEN, SEEN),
        (_CHUNKS, _CHUNK),
    ):
        if pattern.search(key):
            return min(value, limit)
    return value


def _few_chosen(values: Values) -> Values:
    """Let an indexer choose fewer tokens than the texts of a trial have."""
    return {k: min(v, SEEN) if _CHOSEN.search(k) and v else v for k, v in values.items()}


def _enough_experts(values: Values) -> int:
    """Return a small number of experts a layer that top-k and groups can work with."""
    numbers = list(_integers(values))
    top_k = max((v for k, v in numbers if _TOP_K.search(k)), default=1)
    groups = max((v for k, v in numbers if _GROUPS.search(k)), default=1) or 1
    a_group = max(2, -(-2 * max(top_k, 2) // groups))  # its score is that of its best two experts
    return groups * a_group


def _fewer_layers(values: Values, kept: int) -> Values:
    """Cut the number of layers, and every list that has one entry a layer."""
    count = _num_layers(values)
    cut: Values = {}
    for key, value in values.items():
        if key == "text_config" and isinstance(value, dict):
            value = _fewer_layers(value, kept)
        elif _LAYERS.search(key) and isinstance(value, int):
            value = min(value, kept)
        elif isinstance(value, list) and len(value) == count:
            value = value[:kept]
        elif key == "per_layer_config" and isinstance(value, dict):
            value = {layer: own for layer, own in value.items() if int(layer) < kept}
        cut[key] = value
    return cut
