"""What docs/serving.md says of the saved model: pipelines, tensor names, the adapter's config."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, pipeline

from fedmoe_app import run_in_process
from fedmoe_app.cli.export import export
from tests.bases import save_base
from tests.compare.test_in_process import SMALL
from tests.conftest import flat_config

ROWS = [
    {"prompt": f"What is {a} and {b}?", "completion": f" It is {a + b}."}
    for a in range(8)
    for b in range(8)
]


@pytest.fixture(autouse=True)
def _no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedmoe_app.report.plots.plot_run", lambda path: None)


def trained(folder: Path, **overrides: Any) -> Path:
    """The result folder of one round of LoRA on a language model."""
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    config = SMALL | {
        "num-server-rounds": 1,
        "output-dir": str(folder / "out"),
        "data.task": "causal-lm",
        "data.source": str(data),
        "data.partition": "iid",
        "model.train": "expert-lora",
    }
    return run_in_process(flat_config(**config | overrides), 2)


def test_a_language_model_in_a_pipeline_and_in_files(tmp_path: Path) -> None:
    run = trained(tmp_path)
    generate = pipeline("text-generation", model=str(run / "model"))
    (answer,) = generate("What is 1 and 2?", max_new_tokens=4, do_sample=False)
    assert answer["generated_text"].startswith("What is 1 and 2?")
    # Merged: what other programs read are the checkpoint's own names, an expert at a time.
    with safe_open(run / "model" / "model.safetensors", "pt") as file:
        names = list(file.keys())
    experts = [
        name for name in names if re.search(r"\.mlp\.experts\.\d+\.down_proj\.weight$", name)
    ]
    assert len(experts) == 16
    assert not [name for name in names if "lora" in name]
    about = json.loads((run / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert about["target_parameters"]
    assert len(about["modules_to_save"]) == 2  # the gates of two layers


def test_for_llama_cpp_the_weights_of_a_known_family_stay(tmp_path: Path) -> None:
    run = trained(tmp_path)
    made = export(run, "llama.cpp", tmp_path / "made")
    shutil.rmtree(run / "model")  # as of a run that was stopped
    again = export(run, "llama.cpp", tmp_path / "again")
    for folder in (made, again):
        found = load_file(folder / "model.safetensors")
        expected = load_file(made / "model.safetensors")
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in found)
        about = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        assert about["tokenizer_class"] == "PreTrainedTokenizerFast"  # as transformers 4 knows it
        assert (folder / "README.md").is_file()


@pytest.mark.parametrize("on_checkpoint", [False, True])
def test_for_llama_cpp_a_carved_model_becomes_another_family(
    on_checkpoint: bool, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    model = save_base(base, "Qwen2Moe", norm_topk_prob=True, mlp_only_layers=[0], qkv_bias=False)
    with torch.no_grad():
        model.model.layers[1].mlp.shared_expert_gate.weight.zero_()
    model.save_pretrained(base)
    run = trained(tmp_path, **{"model.name": str(base)})
    expected = next_tokens(run / "model")
    assert "Not for vLLM and llama.cpp as it is" in (run / "model" / "README.md").read_text()
    if on_checkpoint:
        shutil.rmtree(run / "model")
    made = export(run, "llama.cpp", tmp_path / "made")
    assert json.loads((made / "config.json").read_text())["model_type"] == "granitemoeshared"
    assert "as it is" not in (made / "README.md").read_text()
    torch.testing.assert_close(next_tokens(made), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def next_tokens(folder: Path) -> Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    return model(torch.arange(5, 15)[None]).logits


def test_without_gates_the_adapter_saves_no_modules_whole(tmp_path: Path) -> None:
    run = trained(tmp_path, **{"model.gates": False, "scheme": "fedavg"})
    about = json.loads((run / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert about["modules_to_save"] is None


def test_a_classifier_in_a_pipeline(tmp_path: Path) -> None:
    config = SMALL | {"num-server-rounds": 1, "output-dir": str(tmp_path)}
    run = run_in_process(flat_config(**config), 2)
    classify = pipeline("text-classification", model=str(run / "model"))
    (found,) = classify("Return the eigenvalues of a matrix.")
    assert found["label"] in classify.model.config.label2id
    assert 0 < found["score"] < 1
