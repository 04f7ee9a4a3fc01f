"""Loading a checkpoint quantised: the same model, one layer in full at a time, clear errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Mxfp4Config, PreTrainedModel

from fedmoe_app import LoadSpec, find_moe_layers, load_model
from fedmoe_app.moe.quantised import quantisers
from fedmoe_app.moe.quantised.packed import KINDS
from fedmoe_app.moe.quantised.quantise import is_quantised, quantise
from fedmoe_app.moe.quantised.quantisers import quantization_config
from fedmoe_app.moe.training.adapt import Adaptation, adapt
from fedmoe_app.moe.training.lora import merge_adapters

from .families import FUSED, NAMES, VOCAB
from .four_bit_families import build
from .test_adapt import logits_of

TOKENS: dict[str, Any] = dict(vocab_size=VOCAB, pad_token_id=0, eos_token_id=2, bos_token_id=1)


def load(folder: Path, model: PreTrainedModel, kind: str = "nf4") -> PreTrainedModel:
    loaded: PreTrainedModel = type(model).from_pretrained(
        folder,
        dtype=torch.float32,
        quantization_config=quantization_config(kind, torch.float32),
        device_map={"": "cpu"},
    )
    return loaded


@pytest.mark.parametrize("original", [True, False], ids=["per-expert", "fused"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", NAMES)
def test_loading_equals_quantising_in_memory(
    family: str, kind: str, original: bool, tmp_path: Path
) -> None:
    model = build(family)
    model.save_pretrained(tmp_path, max_shard_size="20KB", save_original_format=original)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded = load(tmp_path, model, kind)
    assert is_quantised(loaded)
    quantise(model, kind)
    got, wanted = values(loaded), values(model)
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(got[name], value), name
    assert torch.allclose(logits_of(loaded), logits_of(model), atol=1e-5)


def values(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Return all parameters and buffers as bytes, in which no value is unequal to itself."""
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor.detach().reshape(-1).view(torch.uint8) for name, tensor in named}


@pytest.mark.parametrize("family", FUSED)
def test_one_parameter_at_a_time_is_in_full(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(family)
    model.save_pretrained(tmp_path)
    in_full: list[int] = []
    before = quantisers._WithExperts.pack_parameter

    def watch(self: Any, name: str, stacked: Any) -> nn.Parameter:
        stacks = [m.get_parameter(n.rpartition(".")[2]) for n, m in self.fused.items()]
        in_full.append(sum(p.nbytes for p in stacks if p.device.type != "meta"))
        return before(self, name, stacked)

    monkeypatch.setattr(quantisers._WithExperts, "pack_parameter", watch)
    load(tmp_path, model)
    layers = find_moe_layers(model)
    assert in_full == [0] * 2 * len(layers)


@pytest.mark.parametrize("family", ["Olmoe", "GptOss", "SwitchTransformers"])
def test_a_loaded_model_merges_to_the_format_it_came_in(family: str, tmp_path: Path) -> None:
    model = build(family)
    model.save_pretrained(tmp_path / "base")
    loaded = load(tmp_path / "base", model)
    layers = find_moe_layers(loaded)
    adapt(loaded, layers, Adaptation("expert-lora", head=False, rank=2, alpha=4), seed=1)
    wanted = logits_of(loaded)
    merge_adapters(loaded, layers)
    loaded.save_pretrained(tmp_path / "merged")
    files = [tmp_path / name / "model.safetensors" for name in ("base", "merged")]
    assert load_file(files[0]).keys() == load_file(files[1]).keys()
    again = type(model).from_pretrained(tmp_path / "merged")
    assert torch.allclose(logits_of(again), wanted, atol=1e-4)


def test_incomplete_checkpoints_are_refused(tmp_path: Path) -> None:
    model = build("Olmoe")
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    for lost in ("layers.1.mlp.experts.3.", "layers.1.mlp.experts.2.up_proj"):
        kept = {name: t for name, t in tensors.items() if lost not in name}
        save_file(kept, file, metadata={"format": "pt"})
        with pytest.raises(RuntimeError, match="conversion"):
            load(tmp_path, model)
    kept = {name: t for name, t in tensors.items() if "layers.1.mlp.experts" not in name}
    save_file(kept, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks model\.layers\.1\.mlp\.experts\.down_proj"):
        load(tmp_path, model)


@pytest.mark.parametrize("name", ["qwen3moe-tiny", "olmoe-tiny", "switch-tiny"])
def test_presets_are_quantised_when_they_are_built(name: str) -> None:
    options: dict[str, Any] = dict(task="causal-lm", seed=3, **TOKENS)
    plain = load_model(LoadSpec(name, **options))
    model = load_model(LoadSpec(name, quantization="nf4", **options))
    quantise(plain, "nf4")
    ids = torch.tensor([[5, 6, 7]])
    inputs = {"input_ids": ids, "labels": ids}
    assert torch.equal(model(**inputs).logits, plain(**inputs).logits)


def test_a_classification_head_stays_and_is_trained() -> None:
    model = load_model(
        LoadSpec("qwen3moe-tiny", task="classification", num_labels=3, quantization="nf4", **TOKENS)
    )
    adapt(model, find_moe_layers(model), Adaptation("expert-lora"), seed=0)
    head = model.get_submodule("score")
    assert type(head) is nn.Linear
    assert head.weight.requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_gpt_oss_is_read_from_mxfp4_and_saved_in_full(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "published"
    save_in_mxfp4(build("GptOss"), folder)
    model = load_model(
        LoadSpec(str(folder), task="causal-lm", max_length=32, quantization=kind, **TOKENS)
    )
    full = type(model).from_pretrained(
        folder, dtype=torch.float32, quantization_config=Mxfp4Config(dequantize=True)
    )
    quantise(full, kind)
    assert torch.equal(logits_of(model), logits_of(full))
    layers = find_moe_layers(model)
    adapt(model, layers, Adaptation("expert-lora", head=False, rank=2, alpha=4), seed=1)
    merge_adapters(model, layers)
    model.save_pretrained(tmp_path / "merged")
    again = type(model).from_pretrained(tmp_path / "merged")
    assert torch.allclose(logits_of(again), logits_of(full), atol=1e-4)


def save_in_mxfp4(model: PreTrainedModel, folder: Path) -> None:
    """Save GptOss with random experts as it is published: blocks of 32 values of four bits."""
    generator = torch.Generator().manual_seed(0)

    def bytes_of(low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=generator, dtype=torch.uint8)

    model.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith(("experts.gate_up_proj", "down_proj"))]:
        experts, inputs, outputs = tensors.pop(name).shape
        tensors[f"{name}_blocks"] = bytes_of(0, 256, experts, outputs, inputs // 32, 16)
        tensors[f"{name}_scales"] = bytes_of(122, 126, experts, outputs, inputs // 32)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": []}
    (folder / "config.json").write_text(json.dumps(config))


def test_bad_choices_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r'model.quantization = "fp4": unknown; choose one of'):
        load_model(LoadSpec("olmoe-tiny", task="causal-lm", quantization="fp4", **TOKENS))
    model = build("GptOss")
    model.config.quantization_config = {"quant_method": "gptq"}
    model.config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"quantised already \(gptq\)"):
        load_model(
            LoadSpec(str(tmp_path), task="causal-lm", max_length=32, quantization="nf4", **TOKENS)
        )
