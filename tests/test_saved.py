"""What a LoRA run leaves behind: a merged model and an adapter, in plain transformers and PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
)

from fedmoe_app import read_metrics, run_in_process
from fedmoe_app.data.sources import load_text_data
from fedmoe_app.tasks.setup import load_setup
from tests.compare.test_in_process import SMALL
from tests.conftest import flat_config, make_config

LORA = SMALL | {
    "model.train": "expert-lora",
    "model.attention-lora": True,
    "train.learning-rate": 3e-3,
    "num-server-rounds": 2,
}


@pytest.fixture(autouse=True)
def _no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedmoe_app.report.plots.plot_run", lambda path: None)


@torch.no_grad()
def class_logits(model: Any, tokenizer: Any, texts: list[str]) -> Tensor:
    """Return ``[N, 8]`` as a user of the model would work them out, one text after the other."""
    rows = []
    for text in texts:
        inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=24)
        inputs.pop("token_type_ids", None)
        if not model.config.is_encoder_decoder:
            rows.append(model(**inputs).logits[0])
            continue
        start = torch.tensor([[model.config.decoder_start_token_id]])
        logits = model(**inputs, decoder_input_ids=start).logits[0, 0]
        rows.append(logits[tokenizer.convert_tokens_to_ids([f"<label_{i}>" for i in range(8)])])
    return torch.stack(rows)


def plain_base(preset: str, names: tuple[str, ...]) -> PreTrainedModel:
    return load_setup(make_config(**SMALL | {"model.name": preset}), names).model.eval()


@pytest.mark.parametrize(
    ("preset", "auto"),
    [
        ("qwen3moe-tiny", AutoModelForSequenceClassification),
        ("switch-tiny", AutoModelForSeq2SeqLM),
    ],
)
def test_the_saved_model_and_its_adapter_have_the_runs_accuracy(
    preset: str, auto: Any, tmp_path: Path
) -> None:
    overrides = LORA | {"model.name": preset, "output-dir": str(tmp_path)}
    folder = run_in_process(flat_config(**overrides), 2)
    _, first, last = read_metrics(folder)
    assert last["train_loss"] < first["train_loss"]
    final = last["accuracy"]
    data = load_text_data(make_config(**overrides).data)
    assert data.test is not None
    texts, labels = list(data.test["text"]), torch.tensor(data.test["label"])
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    merged = class_logits(auto.from_pretrained(folder / "model").eval(), tokenizer, texts)
    assert (merged.argmax(1) == labels).float().mean().item() == pytest.approx(final)
    base = plain_base(preset, data.label_names)
    assert (class_logits(base, tokenizer, texts) - merged).abs().max() > 0.1
    loaded = PeftModel.from_pretrained(base, folder / "adapter").eval()
    assert torch.allclose(class_logits(loaded, tokenizer, texts), merged, atol=1e-4)


def test_full_experts_leave_no_adapter(tmp_path: Path) -> None:
    overrides = SMALL | {"model.train": "experts", "num-server-rounds": 1}
    folder = run_in_process(flat_config(**overrides | {"output-dir": str(tmp_path)}), 2)
    assert (folder / "model").is_dir()
    assert not (folder / "adapter").exists()


def test_a_model_is_saved_even_if_its_adapter_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*args: Any) -> None:
        raise RuntimeError("PEFT is out of sorts")

    monkeypatch.setattr("fedmoe_app.moe.export.export_adapter", refuse)
    overrides = LORA | {"output-dir": str(tmp_path), "num-server-rounds": 1}
    folder = run_in_process(flat_config(**overrides), 2)
    AutoModelForSequenceClassification.from_pretrained(folder / "model")
    assert "no adapter folder: RuntimeError: PEFT is out of sorts" in caplog.text
