"""Adapter folders: plain PEFT on a plain base gives the outputs of the adapted model."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from fedmoe_app import LoadSpec, MoELayer, UnsupportedModelError, find_moe_layers, load_model
from fedmoe_app.moe import export
from fedmoe_app.moe.export import export_adapter
from fedmoe_app.moe.training.adapt import Adaptation, adapt
from fedmoe_app.moe.training.lora import merge_adapters
from fedmoe_app.moe.training.trainable import Trainables

from .families import NAMES, batch, build

LORA = Adaptation("expert-lora", gates=True, head=False, attention_lora=True, rank=2, alpha=6)
ONLY_EXPERTS = Adaptation("expert-lora", gates=False, head=False, rank=2, alpha=4)
FILES = ["README.md", "adapter_config.json", "adapter_model.safetensors"]


def logits_of(model: Any) -> Tensor:
    inputs = batch(model)
    if model.config.num_labels == 3:
        del inputs["labels"]  # of tokens, not of the three classes
    with torch.no_grad():
        return model(**inputs).logits.float()


def adapted(
    model: PreTrainedModel, adaptation: Adaptation = LORA
) -> tuple[PreTrainedModel, tuple[MoELayer, ...]]:
    """Adapt, and move every trained value, so that each part of an adapter shows in the logits."""
    layers = find_moe_layers(model)
    adapt(model, layers, adaptation, seed=1)
    generator = torch.Generator().manual_seed(2)
    with Trainables(model, layers) as trainables, torch.no_grad():
        for parameter in trainables.named_parameters().values():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model, layers


def exported(model: PreTrainedModel, folder: Path, adaptation: Adaptation = LORA) -> Path:
    export_adapter(*adapted(model, adaptation), folder / "adapter")
    return folder / "adapter"


def load_plain(base: PreTrainedModel, folder: Path) -> PeftModel:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # PEFT's, of missing and unknown tensors
        warnings.filterwarnings("ignore", message=".*deprecated.*")
        return PeftModel.from_pretrained(base, folder).eval()


@pytest.mark.parametrize("family", NAMES)
def test_plain_peft_gives_the_outputs_of_the_adapted_model(family: str, tmp_path: Path) -> None:
    before = logits_of(build(family))
    model, layers = adapted(build(family))
    wanted = logits_of(model)
    export_adapter(model, layers, tmp_path / "adapter")
    assert torch.equal(logits_of(model), wanted)  # exporting changes nothing
    assert (wanted - before).abs().max() > 0.1
    loaded = load_plain(build(family), tmp_path / "adapter")
    assert torch.allclose(logits_of(loaded), wanted, atol=1e-4)
    assert torch.allclose(logits_of(loaded.merge_and_unload()), wanted, atol=1e-4)


@pytest.mark.parametrize("family", ["Qwen3Moe", "GptOss", "SwitchTransformers"])
def test_experts_alone_copy_no_module(family: str, tmp_path: Path) -> None:
    model, layers = adapted(build(family), ONLY_EXPERTS)
    export_adapter(model, layers, tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["modules_to_save"] is None
    assert bool(config["target_modules"]) == (family == "SwitchTransformers")
    loaded = load_plain(build(family), tmp_path / "adapter")
    assert torch.allclose(logits_of(loaded), logits_of(model), atol=1e-4)


def test_the_files_hold_a_expert_after_expert_and_b_interleaved(tmp_path: Path) -> None:
    model, layers = adapted(build("Qwen3Moe"), ONLY_EXPERTS)
    export_adapter(model, layers, tmp_path / "adapter", base="owner/base")
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    # The outer wrapper is of down_proj, the inner ("base_layer") of gate_up_proj.
    name = "base_model.model.model.layers.1.mlp.experts."
    assert len(tensors) == 2 * 4
    for e, adapter in enumerate(layers[1].adapters):
        a, b = tensors[name + "lora_A.weight"], tensors[name + "lora_B.weight"]
        assert torch.equal(a[2 * e : 2 * e + 2], adapter["down_proj.lora_A"])
        assert torch.equal(b[:, e::4], adapter["down_proj.lora_B"])
        inner = tensors[name + "base_layer.lora_B.weight"]
        assert torch.equal(inner[:, e::4], adapter["gate_up_proj.lora_B"])
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["task_type"]) == (2, 4, "CAUSAL_LM")
    assert config["base_model_name_or_path"] == "owner/base"
    assert config["target_parameters"] == [
        f"model.layers.{i}.mlp.experts.{stack}"
        for i in (0, 1)
        for stack in ("down_proj", "gate_up_proj")
    ]


def test_an_adapter_leads_to_its_base(tmp_path: Path) -> None:
    """A base on the disk, loaded by PEFT alone."""
    build("Mixtral").save_pretrained(tmp_path / "base")
    model, layers = adapted(build("Mixtral"))
    export_adapter(model, layers, tmp_path / "adapter", base=str(tmp_path / "base"))
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert torch.allclose(logits_of(loaded), logits_of(model), atol=1e-4)


@pytest.mark.parametrize("head", [True, False], ids=["trained", "frozen"])
def test_a_new_head_goes_along_whether_trained_or_not(head: bool, tmp_path: Path) -> None:
    """The base is a language model: each that loads it as a classifier has another random head."""
    build("Qwen3Moe").save_pretrained(tmp_path / "base")

    def classifier(seed: int) -> PreTrainedModel:
        base = str(tmp_path / "base")
        return load_model(
            LoadSpec(base, "classification", 61, num_labels=3, max_length=16, seed=seed)
        )

    adaptation = Adaptation("expert-lora", gates=False, head=head, rank=2, alpha=4)
    model, layers = adapted(classifier(0), adaptation)
    export_adapter(model, layers, tmp_path / "adapter")
    loaded = load_plain(classifier(1), tmp_path / "adapter")
    assert torch.allclose(logits_of(loaded), logits_of(model), atol=1e-4)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert "score" in config["modules_to_save"]
    assert "num_labels=3" in (tmp_path / "adapter" / "README.md").read_text()


def test_a_16_bit_base(tmp_path: Path) -> None:
    model, layers = adapted(build("Qwen3Moe").to(torch.bfloat16))
    export_adapter(model, layers, tmp_path / "adapter")
    loaded = load_plain(build("Qwen3Moe").to(torch.bfloat16), tmp_path / "adapter")
    wanted = logits_of(model)
    assert (logits_of(loaded) - wanted).abs().mean() < 0.02 * wanted.abs().mean()


def test_the_same_adapter_is_the_same_files(tmp_path: Path) -> None:
    folders = [exported(build("DeepseekV2"), tmp_path / str(i)) for i in (0, 1)]
    for name in FILES:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()
    assert sorted(os.listdir(folders[0])) == FILES


def test_after_merging_the_model_is_a_plain_one_for_peft_too(tmp_path: Path) -> None:
    model, layers = adapted(build("Qwen3Moe"))
    before = build("Qwen3Moe").get_experts_implementation()
    merge_adapters(model, layers)
    assert model.get_experts_implementation() == before
    assert not hasattr(model, "peft_config")


# -- what has no adapter folder ------------------------------------------------------------------


@pytest.mark.parametrize(
    "adaptation",
    [Adaptation(), Adaptation("experts", gates=False, head=False, attention_lora=True)],
    ids=lambda a: a.train,
)
def test_models_without_adapters_on_experts_are_refused(
    adaptation: Adaptation, tmp_path: Path
) -> None:
    model = build("Qwen3Moe")
    layers = find_moe_layers(model)
    adapt(model, layers, adaptation, seed=0)
    with pytest.raises(UnsupportedModelError, match=r"model.layers.0.mlp: .*no LoRA adapters"):
        export_adapter(model, layers, tmp_path / "adapter")
    assert list(tmp_path.iterdir()) == []


def test_what_peft_would_hold_in_another_form_is_refused(tmp_path: Path) -> None:
    model, layers = adapted(build("Qwen3Moe"))
    model.config.num_local_experts = 8  # as if only half of the experts were in memory
    with pytest.raises(UnsupportedModelError, match=r"PEFT cannot hold .*use the merged model"):
        export_adapter(model, layers, tmp_path / "adapter")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_export_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(export, "save_file", full)
    with pytest.raises(OSError, match="no space left"):
        exported(build("Qwen3Moe"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_left_alone(tmp_path: Path) -> None:
    folder = exported(build("Qwen3Moe"), tmp_path)
    with pytest.raises(FileExistsError, match="choose another"):
        export_adapter(*adapted(build("Qwen3Moe")), folder)
    assert sorted(os.listdir(folder)) == FILES
