"""What docs/serving.md says of the saved model: pipelines, tensor names, the adapter's config."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from transformers import pipeline

from fedmoe_app import run_in_process
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
