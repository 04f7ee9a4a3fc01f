"""What must hold in every family of the installed transformers, on small models of all of them."""

from __future__ import annotations

import copy
from functools import lru_cache
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn
from transformers import CONFIG_MAPPING, PreTrainedModel
from transformers.models.auto.configuration_auto import model_type_to_module_name

from benchmarks.every_family import (
    classifier_class,
    family_names,
    language_class,
    small_model,
    token_batch,
)
from fedmoe_app import UnsupportedModelError, find_moe_layers
from fedmoe_app.data.tokenizer import embedded_tokenizer
from fedmoe_app.moe.layers import read_state
from fedmoe_app.moe.quantised.packed import KINDS
from fedmoe_app.moe.quantised.quantise import dequantise, quantise
from fedmoe_app.moe.training.adapt import Adaptation, adapt, frozen_by_family
from fedmoe_app.moe.training.trainable import Trainables
from fedmoe_app.tasks.base import Batch
from fedmoe_app.tasks.classification import LabelWords

ALL = family_names()
SPARSE_ATTENTION = ("axk2", "deepseek_v32", "glm_moe_dsa")


def source_of(name: str) -> str:
    folder = Path(transformers.__file__).parent / "models" / model_type_to_module_name(name)
    return "\n".join(file.read_text("utf-8") for file in folder.glob("modeling_*.py"))


@lru_cache(maxsize=1)
def built(name: str) -> PreTrainedModel:
    """Return the small model of a family with experts that can be trained; skip any other."""
    config_class = CONFIG_MAPPING[name]
    kind = language_class(config_class) or classifier_class(config_class)
    if kind is None:
        pytest.skip("a family without a language model or classifier in transformers")
    return small_model(name, kind)


def trainable(name: str) -> PreTrainedModel:
    model = copy.deepcopy(built(name))
    try:
        find_moe_layers(model)
    except UnsupportedModelError as error:
        pytest.skip(str(error))
    return model


def test_the_families_are_found() -> None:
    assert len(ALL) > 40
    assert {"mixtral", "switch_transformers", "llama4_text", "dbrx", *SPARSE_ATTENTION} <= set(ALL)


@pytest.mark.parametrize("name", ALL)
def test_label_words_are_the_models_own_logits(name: str) -> None:
    if language_class(CONFIG_MAPPING[name]) is None:
        pytest.skip("no language model in transformers")
    model = copy.deepcopy(built(name))
    model.config.decoder_start_token_id = 7  # of an encoder-decoder model
    task = LabelWords(embedded_tokenizer(), 24, ["no", "yes"])
    task.label_ids = torch.tensor([9, 17, 33])
    inputs = token_batch(model)
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.full((2, 1), 7)
    batch = Batch(inputs["input_ids"], inputs["attention_mask"], torch.tensor([0, 1]))
    with torch.no_grad():
        found, _ = task.predict(model, batch)
        whole = model(**inputs).logits
    last = [0, 0] if model.config.is_encoder_decoder else [15, 10]
    wanted = whole[torch.arange(2), last][:, task.label_ids]
    assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-5 * float(whole.abs().max()))


def test_label_words_take_scale_cap_and_bias() -> None:
    """The families whose forward does something after the output embeddings are among them."""
    after = ("logit_scale", "logits_scaling", "final_logit_softcapping", "lm_head_bias")
    found = {word: [name for name in ALL if word in source_of(name)] for word in after}
    assert all(found.values()), found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [n for n in ALL if "_keep_in_fp32_modules" in source_of(n)])
def test_a_quantised_model_computes_what_its_weights_say(name: str, kind: str) -> None:
    """Families that keep modules in 32 bits: quantised forward against dequantised forward."""
    model = trainable(name)
    try:
        quantise(model, kind)
    except UnsupportedModelError as error:
        assert "NF4 needs a multiple" in str(error)
        pytest.skip(str(error))
    plain = copy.deepcopy(model)
    dequantise(plain)
    with torch.no_grad():
        found, wanted = (m(**token_batch(m))[0] for m in (model, plain))
    assert torch.allclose(found, wanted, atol=1e-4 * float(wanted.abs().max()))


@pytest.mark.parametrize("name", SPARSE_ATTENTION)
def test_an_indexer_stays_as_it_is_and_takes_part(name: str) -> None:
    model = trainable(name)
    quantise(model, "nf4")
    indexers = [(n, m) for n, m in model.named_modules() if n.endswith("indexer.weights_proj")]
    assert indexers
    assert {type(module) for _, module in indexers} == {nn.Linear}
    assert token_batch(model)["input_ids"].shape[1] > model.config.index_topk
    with torch.no_grad():
        before = model(**token_batch(model))[0]
        indexers[0][1].weight.neg_()
        assert not torch.allclose(model(**token_batch(model))[0], before)


@pytest.mark.parametrize("train", ["all", "experts", "expert-lora"])
@pytest.mark.parametrize("name", [n for n in ALL if "requires_grad=False" in source_of(n)])
def test_what_a_family_freezes_is_neither_trained_nor_sent(
    name: str, train: str, tmp_path: Path
) -> None:
    """Loading a checkpoint loses the mark, so it is tested on a loaded model."""
    trainable(name).save_pretrained(tmp_path)
    model = type(built(name)).from_pretrained(tmp_path)
    frozen = frozen_by_family(model)
    if not frozen:
        pytest.skip("nothing of its text model")
    layers = find_moe_layers(model)
    adapt(model, layers, Adaptation(train, head=False, rank=2), seed=0)
    named = dict(model.named_parameters())
    before = {name: named[name].detach().clone() for name in frozen}
    leaves = {name.rpartition(".")[2] for name in frozen}
    keys = [key for key, _ in read_state(model, layers).named()]
    assert not [key for key in keys if key.rpartition(".")[2] in leaves]
    assert any(".gate." in key for key in keys)  # the rest of the router takes part
    with Trainables(model, layers) as trainables:
        parameters = trainables.named_parameters().values()
        optimiser = torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.1)
        inputs = token_batch(model)
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
        optimiser.step()
    assert all(torch.equal(named[name], value) for name, value in before.items())
