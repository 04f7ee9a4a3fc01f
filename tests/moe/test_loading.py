"""Presets, local folders, heads, and names that lead nowhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import (
    OlmoeForCausalLM,
    PreTrainedModel,
    Qwen3MoeForCausalLM,
    Qwen3MoeForSequenceClassification,
)
from transformers import SwitchTransformersForConditionalGeneration as SwitchModel

from fedmoe_app import LoadSpec, find_moe_layers, load_model
from fedmoe_app.moe.loading import PRESETS, ModelNotFoundError, resolve_head

from .families import build

TOKENS: dict[str, Any] = dict(
    vocab_size=97, pad_token_id=0, eos_token_id=1, bos_token_id=2, max_length=16
)


@pytest.mark.parametrize(
    ("name", "task", "kind", "experts", "top_k"),
    [
        ("qwen3moe-tiny", "classification", Qwen3MoeForSequenceClassification, 8, 2),
        ("qwen3moe-tiny", "causal-lm", Qwen3MoeForCausalLM, 8, 2),
        ("qwen3moe-small", "causal-lm", Qwen3MoeForCausalLM, 8, 2),
        ("olmoe-tiny", "multiple-choice", OlmoeForCausalLM, 8, 2),
        ("switch-tiny", "multiple-choice", SwitchModel, 16, 1),
        ("olmoe-tiny", "classification", OlmoeForCausalLM, 8, 2),
        ("switch-tiny", "classification", SwitchModel, 16, 1),
    ],
)
def test_presets(name: str, task: str, kind: type, experts: int, top_k: int) -> None:
    model = load_model(LoadSpec(name, task=task, num_labels=5, **TOKENS))
    layers = find_moe_layers(model)
    assert type(model) is kind
    assert len(layers) == (2 if name in ("qwen3moe-tiny", "olmoe-tiny") else 4)
    assert {(layer.num_experts, layer.top_k) for layer in layers} == {(experts, top_k)}
    assert model.config.pad_token_id == 0
    assert not model.config.use_cache and not model.training
    inputs = {"input_ids": torch.tensor([[2, 5, 7, 0]])}
    inputs["attention_mask"] = torch.tensor([[1, 1, 1, 0]])
    if kind is SwitchModel:
        inputs["decoder_input_ids"] = torch.tensor([[0]])
    expected = 5 if kind is Qwen3MoeForSequenceClassification else 97
    assert model(**inputs).logits.shape[-1] == expected


@pytest.mark.parametrize("name", PRESETS)
def test_a_seed_fixes_the_weights_and_leaves_the_random_state(name: str) -> None:
    torch.manual_seed(7)
    state = torch.get_rng_state()
    a = load_model(LoadSpec(name, task="causal-lm", seed=1, **TOKENS)).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    b = load_model(LoadSpec(name, task="causal-lm", seed=1, **TOKENS)).state_dict()
    c = load_model(LoadSpec(name, task="causal-lm", seed=2, **TOKENS)).state_dict()
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert any(not torch.equal(a[key], c[key]) for key in a)


def test_a_local_folder_loads_as_saved_and_gets_a_seeded_head(tmp_path: Path) -> None:
    saved = build("Qwen3Moe")
    saved.save_pretrained(tmp_path)
    options: dict[str, Any] = dict(vocab_size=61, pad_token_id=0, max_length=16)
    model = load_model(LoadSpec(str(tmp_path), task="causal-lm", **options))
    for (name, p), (_, q) in zip(saved.named_parameters(), model.named_parameters(), strict=True):
        assert torch.equal(p, q), name
    heads = [
        load_model(
            LoadSpec(str(tmp_path), task="classification", num_labels=3, seed=seed, **options)
        )
        for seed in (1, 1, 2)
    ]
    scores = [head.score.weight for head in heads]
    assert scores[0].shape == (3, 32)
    assert torch.equal(scores[0], scores[1]) and not torch.equal(scores[0], scores[2])


def load_saved(folder: Path, *label_names: str, head: str = "auto") -> PreTrainedModel:
    return load_model(
        LoadSpec(str(folder), task="classification", head=head, label_names=label_names, **TOKENS)
    )


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    """A saved classifier of the classes x, y and z."""
    names = ("x", "y", "z")
    model = load_model(
        LoadSpec("qwen3moe-tiny", task="classification", label_names=names, **TOKENS)
    )
    model.save_pretrained(tmp_path / "classifier")
    return tmp_path / "classifier"


def test_a_saved_head_serves_the_same_classes(classifier: Path) -> None:
    model = load_saved(classifier, "x", "y", "z")
    assert model.config.id2label == {0: "x", 1: "y", 2: "z"}
    assert model.config.label2id == {"x": 0, "y": 1, "z": 2}
    again = load_saved(classifier, "x", "y", "z")
    assert torch.equal(model.score.weight, again.score.weight)


def test_a_saved_head_of_another_size_is_refused_with_both_numbers(classifier: Path) -> None:
    message = r'has 3 classes but the run has 2; .*data.label-names.*model.head = "label-words"'
    with pytest.raises(ValueError, match=message):
        load_saved(classifier, "x", "y")
    assert load_saved(classifier, "x", "y", head="label-words").config.id2label == {0: "x", 1: "y"}


@pytest.mark.parametrize("names", ["yxz", "xyw"])
def test_a_saved_head_of_other_classes_is_refused_with_both_lists(
    classifier: Path, names: str
) -> None:
    message = f"has the classes x, y, z but the run has {', '.join(names)}; .*data.label-names"
    with pytest.raises(ValueError, match=message):
        load_saved(classifier, *names)


def test_a_saved_head_without_names_serves_any_of_its_number(tmp_path: Path) -> None:
    load_model(
        LoadSpec("qwen3moe-tiny", task="classification", num_labels=3, **TOKENS)
    ).save_pretrained(tmp_path)
    assert load_saved(tmp_path, "a", "b", "c").config.id2label == {0: "a", 1: "b", 2: "c"}


def test_a_saved_language_model_gets_a_new_head_of_any_size(tmp_path: Path) -> None:
    options = {"task": "classification", "head": "label-words", **TOKENS}
    load_model(LoadSpec("qwen3moe-tiny", label_names=("x", "y", "z"), **options)).save_pretrained(
        tmp_path
    )
    assert load_saved(tmp_path, "a", "b").score.weight.shape == (2, 64)


def test_bfloat16() -> None:
    model = load_model(LoadSpec("qwen3moe-tiny", task="causal-lm", dtype="bfloat16", **TOKENS))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("name", ["qwen3moe-tin", "/no/such/folder", "nobody/nothing"])
def test_an_unknown_name_lists_the_presets_and_what_was_tried(name: str) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        load_model(LoadSpec(name, task="causal-lm", **TOKENS))
    message = str(caught.value)
    assert f'model.name = "{name}": not a preset (qwen3moe-tiny, ' in message
    assert "no such folder" in message


def test_a_folder_without_a_model_says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="the folder holds no usable model"):
        load_model(LoadSpec(str(tmp_path), task="causal-lm", **TOKENS))


def test_heads() -> None:
    assert resolve_head("qwen3moe-tiny", "auto") == "sequence"
    assert resolve_head("qwen3moe-tiny", "label-words") == "label-words"
    for name in ("olmoe-tiny", "switch-tiny"):
        assert resolve_head(name, "auto") == "label-words"
        with pytest.raises(ValueError, match='choose "label-words"'):
            resolve_head(name, "sequence")
    with pytest.raises(ValueError, match="no sequence-classification class"):
        resolve_head(build("GraniteMoe").config, "sequence")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "regression"}, 'data.task = "regression": unknown; choose one of classification'),
        ({"head": "linear"}, 'model.head = "linear": unknown; choose one of auto, sequence'),
        ({"dtype": "float16"}, 'model.dtype = "float16": unknown; choose one of float32'),
        ({"num_labels": 1}, "num_labels = 1: a classification head needs at least 2"),
    ],
)
def test_wrong_values_are_refused(changes: dict[str, Any], message: str) -> None:
    options = {"task": "classification", "num_labels": 3, **TOKENS, **changes}
    with pytest.raises(ValueError, match=message):
        load_model(LoadSpec("qwen3moe-tiny", **options))


def test_a_loaded_model_must_fit_tokenizer_and_texts(tmp_path: Path) -> None:
    build("Qwen3Moe").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has 61 token embeddings but the tokenizer 97 tokens"):
        load_model(LoadSpec(str(tmp_path), task="causal-lm", **TOKENS))
    with pytest.raises(ValueError, match=r"data.max-length = 65: .* takes at most 64 tokens"):
        load_model(
            LoadSpec(str(tmp_path), task="causal-lm", vocab_size=61, pad_token_id=0, max_length=65)
        )


@pytest.mark.parametrize(
    ("kind", "task", "message"),
    [
        ("Qwen3VLMoeConfig", "multiple-choice", 'task = "multiple-choice": qwen3_vl_moe has no la'),
        ("Qwen3VLMoeConfig", "causal-lm", 'task = "causal-lm": qwen3_vl_moe has no language-mod'),
        ("Qwen3VLMoeConfig", "classification", 'with model.head = "label-words": qwen3_vl_moe ha'),
        ("DistilBertConfig", "causal-lm", 'choose another model.name, or data.task = "classifica'),
    ],
)
def test_a_family_without_a_head_for_the_task(
    tmp_path: Path, kind: str, task: str, message: str
) -> None:
    getattr(transformers, kind)().save_pretrained(tmp_path)
    options: dict[str, Any] = dict(vocab_size=61, pad_token_id=0, max_length=16)
    with pytest.raises(ValueError, match=message):
        load_model(LoadSpec(str(tmp_path), task=task, num_labels=2, **options))
