"""Every family in every mode: one federated round from a base on the disk, with two clients."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

from fedmoe_app import find_moe_layers, read_metrics, run_in_process
from tests.bases import save_base
from tests.conftest import flat_config
from tests.moe.families import NAMES, batch

MODES = ("all", "experts", "expert-lora")
EXAMPLES = [{"text": f"good day number {i}", "label": "yes"} for i in range(20)] + [
    {"text": f"bad night number {i}", "label": "no"} for i in range(20)
]
QUESTIONS = [{"instruction": f"number {i}", "response": f"{i} good day"} for i in range(20)]


@pytest.fixture(autouse=True)
def _no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take longer than the round."""
    monkeypatch.setattr("fedmoe_app.report.plots.plot_run", lambda path: None)


def run_round(folder: Path, rows: list[dict[str, str]], **overrides: Any) -> Path:
    """Run one round on the base in ``folder/base`` with these rows; return the result folder."""
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "model.name": str(folder / "base"),
        "model.head": "label-words",
        "model.gates": False,
        "model.lora-rank": 2,
        "data.source": str(file),
        "data.test-source": str(file),
        "data.partition": "iid",
        "data.max-length": 16,
        "num-server-rounds": 1,
        "output-dir": str(folder / "out"),
    }
    return run_in_process(flat_config(**config | overrides), 2)


def load(folder: Path) -> PreTrainedModel:
    config = json.loads((folder / "config.json").read_text())
    auto = AutoModelForSeq2SeqLM if config.get("is_encoder_decoder") else AutoModelForCausalLM
    return auto.from_pretrained(folder).eval()


def moved(before: PreTrainedModel, after: PreTrainedModel) -> set[str]:
    """Return which parts differ: experts, gates, dense."""
    parts = {}
    for layer in find_moe_layers(before):
        parts |= {id(p): "experts" for p in layer.expert_parameters()}
        parts |= {id(p): "gates" for p in layer.router.parameters()}
    others = dict(after.named_parameters())
    return {
        parts.get(id(p), "dense")
        for name, p in before.named_parameters()
        if not torch.equal(p, others[name])
    }


def check_adapter(folder: Path, base: PreTrainedModel, merged: PreTrainedModel) -> None:
    """The adapter on the base is the merged model, in plain PEFT."""
    loaded = PeftModel.from_pretrained(base, folder).eval()
    with torch.no_grad():
        difference = loaded(**batch(merged)).logits - merged(**batch(merged)).logits
    assert difference.abs().max() < 1e-4


def _every() -> Iterator[Any]:
    """Every family in every mode; those tests are slow in which both are in another one, too."""
    for row, family in enumerate(NAMES):
        for mode in MODES:
            marks = [] if MODES.index(mode) == row % len(MODES) else [pytest.mark.slow]
            yield pytest.param(family, mode, id=f"{family}-{mode}", marks=marks)


@pytest.mark.parametrize(("family", "mode"), _every())
def test_a_round_in_every_mode(family: str, mode: str, tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", family)
    folder = run_round(tmp_path, EXAMPLES, **{"model.train": mode})
    line = read_metrics(folder)[-1]
    assert (line["status"], len(line["clients"]), line["failures"]) == ("ok", 2, [])
    assert math.isfinite(line["loss"])
    assert all(c["experts_sent"] > 0 for c in line["clients"])
    model = load(folder / "model")
    expected = {"experts", "gates", "dense"} if mode == "all" else {"experts"}
    assert moved(base, model) == expected
    assert (folder / "adapter").is_dir() == (mode == "expert-lora")
    if mode == "expert-lora":
        check_adapter(folder / "adapter", base, model)


@pytest.mark.parametrize("family", ["Mixtral", "SwitchTransformers"])
def test_gates_and_attention_too_on_instructions(family: str, tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", family)
    overrides = {"model.train": "expert-lora", "model.gates": True, "model.attention-lora": True}
    folder = run_round(tmp_path, QUESTIONS, **overrides | {"data.task": "causal-lm"})
    lines = read_metrics(folder)
    assert lines[-1]["loss"] < lines[0]["loss"]
    model = load(folder / "model")
    assert moved(base, model) == {"experts", "gates", "dense"}
    check_adapter(folder / "adapter", base, model)
