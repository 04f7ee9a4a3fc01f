"""Build or load the model of a run: a preset, a local folder or a hub name.

A preset is a small model of a real architecture with random weights: the same seed gives the same
weights, whatever the global random state is. One more, ``smollm2-moe``, is pre-trained and stands
for a folder (:mod:`fedmoe_app.moe.carve.preset`). Everything works without a network.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    OlmoeConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen3MoeConfig,
    SwitchTransformersConfig,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
)

from fedmoe_app.config.names import SMOLLM2_MOE
from fedmoe_app.config.tasks import TASKS
from fedmoe_app.moe.carve.preset import located
from fedmoe_app.moe.checkpoint import check_not_quantised
from fedmoe_app.moe.partial.load import load_with_experts
from fedmoe_app.moe.partial.restrict import ExpertsByLayer
from fedmoe_app.moe.quantised.packed import KINDS
from fedmoe_app.moe.spread import DeviceMap, connect, place, spread

Head = Literal["sequence", "label-words"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

_SPECIAL = ("pad", "eos", "bos")  # tokens
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")  # owner/model


class ModelNotFoundError(ValueError):
    """A model name that is neither a preset nor a folder nor a reachable hub model."""


def _decoder_only(
    config_class: Callable[..., PreTrainedConfig], hidden: int, layers: int, **sizes: Any
) -> Callable[..., PreTrainedConfig]:
    """Return a preset of 8 experts a layer, top-2, with weights ``N(0, 0.02)`` and tied ends."""

    def build(*, max_length: int, **tokens: Any) -> PreTrainedConfig:
        return config_class(
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            num_experts=8,
            num_experts_per_tok=2,
            norm_topk_prob=True,
            tie_word_embeddings=True,
            max_position_embeddings=max(max_length, 512),
            **sizes,
            **tokens,
        )

    return build


def _switch_tiny(*, max_length: int, **tokens: Any) -> PreTrainedConfig:
    """Switch-base-16 in small; no token is ever dropped, so routing is top-1 of the logits."""
    tokens.pop("bos_token_id", None)
    tokens["decoder_start_token_id"] = tokens["pad_token_id"]
    return SwitchTransformersConfig(
        d_model=64,
        d_kv=16,
        d_ff=128,
        num_layers=2,
        num_decoder_layers=2,
        num_sparse_encoder_layers=2,
        num_sparse_decoder_layers=2,
        num_heads=4,
        num_experts=16,
        expert_capacity=max(max_length, 512),  # tokens of one sequence that an expert takes
        router_jitter_noise=0.0,
        dropout_rate=0.0,
        **tokens,
    )


_TINY = dict(hidden=64, layers=2, head_dim=16, moe_intermediate_size=128, intermediate_size=128)
PRESETS: dict[str, Callable[..., PreTrainedConfig]] = {
    "qwen3moe-tiny": _decoder_only(Qwen3MoeConfig, **_TINY),
    "qwen3moe-small": _decoder_only(
        Qwen3MoeConfig, 128, 4, head_dim=32, moe_intermediate_size=256, intermediate_size=256
    ),
    "olmoe-tiny": _decoder_only(OlmoeConfig, 64, 2, intermediate_size=128),
    "switch-tiny": _switch_tiny,
}


@dataclass(frozen=True)
class LoadSpec:
    """Which model a run works with, and in which form; :func:`load_model` makes it.

    Attributes:
        name: a key of :data:`PRESETS`, a local folder or a hub name.
        task: one of :data:`fedmoe_app.config.tasks.TASKS`; those without classes need a
            language-modelling head.
        vocab_size: tokens of the tokenizer; a loaded model must have at least as many embeddings.
        pad_token_id, eos_token_id, bos_token_id: the tokenizer's special tokens.
        head: ``auto``, ``sequence`` or ``label-words``; only looked at for classification.
        label_names: class names in index order, kept in the model's config. A saved
            classification head must have been trained for the same names in the same order.
        num_labels: classes of a sequence-classification head; not needed with ``label_names``.
        seed: fixes a preset's weights, and those of a new classification head.
        dtype: ``float32`` or ``bfloat16``.
        max_length: longest text in tokens.
        quantization: ``none``, ``nf4`` or ``int8``; experts are quantised, too, each tensor as soon
            as it is read (see :mod:`fedmoe_app.moe.quantised.quantise`).
    """

    name: str
    task: str
    vocab_size: int
    pad_token_id: int = 0
    eos_token_id: int | None = None
    bos_token_id: int | None = None
    head: str = "auto"
    label_names: Sequence[str] = ()
    num_labels: int = 0
    seed: int = 0
    dtype: str = "float32"
    max_length: int = 512
    quantization: str = "none"

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", located(self.name))
        _choose("data.task", self.task, tuple(TASKS))
        _choose("model.dtype", self.dtype, tuple(DTYPES))
        _choose("model.quantization", self.quantization, ("none", *KINDS))

    @classmethod
    def of(cls, name: str, tokenizer: PreTrainedTokenizerBase, **fields: Any) -> LoadSpec:
        """Return the spec of a model for a tokenizer's vocabulary; ``fields`` are the others."""
        special = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in _SPECIAL}
        return cls(name, vocab_size=len(tokenizer), **special, **fields)

    @property
    def special_tokens(self) -> dict[str, int]:
        """The special tokens that there are, by their names in a model's config."""
        found = {f"{kind}_token_id": getattr(self, f"{kind}_token_id") for kind in _SPECIAL}
        return {name: token for name, token in found.items() if token is not None}

    @property
    def num_classes(self) -> int:
        """Classes of a sequence-classification head, at least 2."""
        return _at_least_two(len(self.label_names) or self.num_labels)


def load_model(
    spec: LoadSpec,
    device: str = "cpu",
    loaded: ExpertsByLayer | None = None,
    cards: Mapping[int, int] | None = None,
) -> PreTrainedModel:
    """Return the model of a run in eval mode, without a key-value cache.

    Args:
        spec: which one.
        device: where a quantised checkpoint is read to; quantising is much faster on a GPU. Other
            models are built on the CPU.
        loaded: the experts to load, which are read to ``device``; None means all, empty none.
        cards: free bytes by GPU, to divide the whole model among them; None: one device. A model
            that is not to be divided is built as with None.

    Raises:
        ModelNotFoundError: the name leads to no model.
        ConfigError: the weights do not fit on the cards.
        ValueError: an unknown task, head, dtype or quantisation; a head that the family lacks; a
            saved head of other classes; a vocabulary or context of the loaded model that is too
            small; a checkpoint that is quantised already.
    """
    if loaded is not None:
        check_not_quantised(spec.name)
    config, auto = _checked(spec)
    if auto is AutoModelForSequenceClassification:
        config.num_labels = spec.num_classes
    where = {"": device} if cards is None else _divided(auto, spec, config, cards)
    with _seeded(spec.seed):
        model = _build(auto, spec, config, where, loaded)
    if spec.label_names:
        model.config.id2label = dict(enumerate(spec.label_names))
        model.config.label2id = {label: index for index, label in enumerate(spec.label_names)}
    return model.eval()


def check_model(spec: LoadSpec) -> None:
    """Raise what :func:`load_model` would of a model; only its config is read."""
    _checked(spec)


def _checked(spec: LoadSpec) -> tuple[PreTrainedConfig, Any]:
    """Return the model's config and its class of transformers, if they are right for the run."""
    config = _config(spec.name, spec.vocab_size, spec.max_length, spec.special_tokens)
    _check_fits(spec.name, config, spec.vocab_size, spec.max_length)
    if spec.quantization != "none":
        _accept_for_quantising(spec.name, config)
    auto = _auto_class(config, spec.task, spec.head)
    if auto is AutoModelForSequenceClassification:
        _check_saved_head(spec.name, config, spec.num_classes, spec.label_names)
    return config, auto


def _build(
    auto: Any,
    spec: LoadSpec,
    config: PreTrainedConfig,
    where: DeviceMap,
    loaded: ExpertsByLayer | None,
) -> PreTrainedModel:
    """Build a preset or load a checkpoint, quantised or not, with all experts or some.

    ``where`` has one entry, ``""``, for one device.
    """
    name, dtype, quantization = spec.name, DTYPES[spec.dtype], spec.quantization
    divided = "" not in where
    if loaded is not None:
        return load_with_experts(auto, name, config, dtype, loaded, quantization, str(where[""]))
    if name in PRESETS:
        model: PreTrainedModel = auto.from_config(config).to(dtype)
        if divided:
            place(model, where)
        if quantization != "none":
            from fedmoe_app.moe.quantised.quantise import quantise

            quantise(model, quantization)
        return model
    options: dict[str, Any] = {}
    if quantization != "none":
        from fedmoe_app.moe.quantised.quantisers import quantization_config

        options["quantization_config"] = quantization_config(quantization, dtype)
    if divided or quantization != "none":
        options["device_map"] = dict(where)
    whole: PreTrainedModel = auto.from_pretrained(name, config=config, dtype=dtype, **options)
    if divided:
        connect(whole, where)
    return whole


def _divided(
    auto: Any, spec: LoadSpec, config: PreTrainedConfig, cards: Mapping[int, int]
) -> DeviceMap:
    """Return where each part of a model goes, by the sizes of its tensors as they will be."""
    model = _without_values(auto, config, spec.dtype)
    if spec.quantization == "none":
        return spread(model, cards)
    from fedmoe_app.moe.quantised.quantisers import quantised_parameters

    return spread(model, cards, quantised_parameters(model, spec.quantization), spec.quantization)


def _accept_for_quantising(name: str, config: PreTrainedConfig) -> None:
    """Refuse a checkpoint that is quantised already, but for MXFP4 (gpt-oss), which is read."""
    saved = getattr(config, "quantization_config", None)
    if not saved:
        return
    method = saved.get("quant_method") if isinstance(saved, dict) else saved.quant_method
    if method != "mxfp4":
        raise ValueError(
            f'model.name = "{name}": the checkpoint is quantised already ({method}); choose one in '
            '16 bits, or model.quantization = "none"'
        )
    del config.quantization_config


def resolve_head(name_or_config: str | PreTrainedConfig, head: str) -> Head:
    """Return the way of classifying: ``auto`` is ``sequence`` where the family has such a head.

    Raises:
        ValueError: an unknown head, or ``sequence`` for a family that has no such class.
    """
    _choose("model.head", head, ("auto", "sequence", "label-words"))
    config = name_or_config
    if isinstance(config, str):
        config = _config(config, vocab_size=2**17, max_length=8, special={"pad_token_id": 0})
    possible = type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    if head == "sequence" and not possible:
        raise ValueError(
            f'model.head = "sequence": {config.model_type} has no sequence-classification class '
            'in transformers; choose "label-words" (or "auto")'
        )
    return "sequence" if possible and head != "label-words" else "label-words"


def is_encoder_decoder(name: str) -> bool:
    """Tell whether a model has an encoder and a decoder; only its config is read.

    Raises:
        ModelNotFoundError: the name leads to no model.
    """
    config = _config(name, vocab_size=2**17, max_length=8, special={"pad_token_id": 0})
    return bool(config.is_encoder_decoder)


def _config(
    name: str, vocab_size: int, max_length: int, special: dict[str, Any]
) -> PreTrainedConfig:
    if name in PRESETS:
        tokens = {"vocab_size": vocab_size, **special}
        return PRESETS[name](max_length=max_length, use_cache=False, **tokens)
    name = located(name)
    folder = Path(name).is_dir()
    if not folder and not _HUB_NAME.fullmatch(name):  # a misspelt preset or path: no network
        raise ModelNotFoundError(_not_found(name, "no such folder, and not a hub name owner/model"))
    try:
        return AutoConfig.from_pretrained(name, use_cache=False, **special)
    except (OSError, ValueError) as error:
        tried = (
            "the folder holds no usable model" if folder else "no such folder; hub and its cache"
        )
        raise ModelNotFoundError(_not_found(name, f"{tried}: {_first_line(error)}")) from error


def _not_found(name: str, reason: str) -> str:
    return f'model.name = "{name}": not a preset ({", ".join((*PRESETS, SMOLLM2_MOE))}); {reason}'


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _check_fits(name: str, config: PreTrainedConfig, vocab_size: int, max_length: int) -> None:
    text = config.get_text_config()
    if text.vocab_size < vocab_size:
        raise ValueError(
            f'model.name = "{name}": the model has {text.vocab_size} token embeddings but the '
            f"tokenizer {vocab_size} tokens; use the model's own tokenizer"
        )
    context = getattr(text, "max_position_embeddings", None)
    if isinstance(context, int) and context < max_length:
        raise ValueError(
            f'data.max-length = {max_length}: model.name = "{name}" takes at most {context} tokens'
        )


def _check_saved_head(
    name: str, config: PreTrainedConfig, num_labels: int, label_names: Sequence[str]
) -> None:
    """Refuse a trained classification head whose outputs mean other classes than the run's."""
    kinds = config.architectures or ()
    if not any(kind.endswith("ForSequenceClassification") for kind in kinds):
        return  # a preset or a language model: the head will be new
    id2label: dict[Any, str] = dict(config.id2label or {})
    saved = [id2label[index] for index in sorted(id2label)]
    way_out = 'give data.label-names as it was trained with, or choose model.head = "label-words"'
    if len(saved) != num_labels:
        raise ValueError(
            f'model.name = "{name}": its classification head has {len(saved)} classes but the '
            f"run has {num_labels}; {way_out}"
        )
    unnamed = saved == [f"LABEL_{index}" for index in range(num_labels)]
    if label_names and not unnamed and saved != list(label_names):
        raise ValueError(
            f'model.name = "{name}": its classification head has the classes {", ".join(saved)} '
            f"but the run has {', '.join(label_names)}; {way_out}"
        )


def _auto_class(config: PreTrainedConfig, task: str, head: str) -> Any:
    if TASKS[task].classifies and resolve_head(config, head) == "sequence":
        return AutoModelForSequenceClassification
    encoder_decoder = getattr(config, "is_encoder_decoder", False)
    mapping = MODEL_FOR_CAUSAL_LM_MAPPING
    if encoder_decoder:
        mapping = MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING
    if type(config) not in mapping:
        raise ValueError(_no_language_model(config, task))
    return AutoModelForSeq2SeqLM if encoder_decoder else AutoModelForCausalLM


def _no_language_model(config: PreTrainedConfig, task: str) -> str:
    head, way_out = "", "another model.name"
    if TASKS[task].classifies:
        head = ' with model.head = "label-words"'
    if type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        way_out += ', or data.task = "classification" with model.head = "sequence"'
    return (
        f'data.task = "{task}"{head}: {config.model_type} has no language-modelling class in '
        f"transformers; choose {way_out}"
    )


def _at_least_two(num_labels: int) -> int:
    if num_labels < 2:
        raise ValueError(f"num_labels = {num_labels}: a classification head needs at least 2")
    return num_labels


def _choose(key: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f'{key} = "{value}": unknown; choose one of {", ".join(choices)}')


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Run with torch's random state set by ``seed``; the caller's state comes back after."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def empty_model(spec: LoadSpec) -> PreTrainedModel:
    """Return the model of a run without values, on torch's meta device: only its config is read.

    Without labels a classification head has two outputs.
    """
    config = _config(spec.name, spec.vocab_size, spec.max_length, spec.special_tokens)
    auto = _auto_class(config, spec.task, spec.head)
    if auto is AutoModelForSequenceClassification:
        config.num_labels = max(2, len(spec.label_names) or spec.num_labels)
    return _without_values(auto, config, spec.dtype)


def _without_values(auto: Any, config: PreTrainedConfig, dtype: str) -> PreTrainedModel:
    with torch.device("meta"):
        model: PreTrainedModel = auto.from_config(config, dtype=DTYPES[dtype])
    return model
