"""Whole runs in which every node holds only the experts that were chosen for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fedmoe_app.inprocess import run_in_process
from fedmoe_app.report.log import read_metrics
from tests.bases import save_base
from tests.conftest import flat_config

EXPERTS, TOP_K, LAYERS = 8, 2, 2
BUDGETS = (2, 4, 8)
ROWS = [
    {"text": f"{kind} day number {i}", "label": "yes" if kind == "good" else "no"}
    for i in range(20)
    for kind in ("good", "bad")
]


@pytest.fixture(autouse=True)
def _no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take longer than the rounds."""
    monkeypatch.setattr("fedmoe_app.report.plots.plot_run", lambda path: None)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 8 experts a layer in the hub's format, in several files, with data beside it."""
    folder = tmp_path_factory.mktemp("base")
    model = save_base(folder / "model", "Qwen3Moe", num_experts=EXPERTS)
    (folder / "model" / "model.safetensors").unlink()
    model.save_pretrained(folder / "model", max_shard_size="40KB")
    assert (folder / "model" / "model.safetensors.index.json").is_file()
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return folder


def config_of(base: Path, folder: Path, **overrides: Any) -> dict[str, Any]:
    config: dict[str, Any] = {
        "model.name": str(base / "model"),
        "model.head": "label-words",
        "model.train": "experts",
        "model.experts-in-memory": "chosen",
        "scheme": "hfedmoe",
        "hfedmoe.selection": "round",
        "data.source": str(base / "rows.jsonl"),
        "data.test-source": str(base / "rows.jsonl"),
        "data.partition": "iid",
        "data.max-length": 16,
        "num-server-rounds": 2,
        "output-dir": str(folder),
        "run-name": "run",
    }
    return flat_config(**config | overrides)


def nodes_of(*budgets: int) -> list[dict[str, Any]]:
    return [
        {"partition-id": i, "num-partitions": len(budgets), "expert-budget": budget}
        for i, budget in enumerate(budgets)
    ]


def run(base: Path, folder: Path, budgets: tuple[int, ...] = BUDGETS, **overrides: Any) -> Path:
    config = config_of(base, folder, **overrides)
    return run_in_process(config, len(budgets), nodes_of(*budgets))


@pytest.mark.parametrize("train", ["experts", "expert-lora", "all"])
def test_bytes_shrink_with_the_budget(base: Path, tmp_path: Path, train: str) -> None:
    lines = read_metrics(run(base, tmp_path, **{"model.train": train}))
    assert [line["status"] for line in lines] == ["ok"] * 3
    for line in lines[1:]:
        assert line["failures"] == []
        clients = line["clients"]
        down, up = ([c[way] for c in clients] for way in ("bytes_down", "bytes_up"))
        assert down[0] < down[1] < down[2]
        assert up[0] < up[2]
        # What differs is experts: 4 more and then 2 more of each layer... in whole experts.
        per_expert = (down[2] - down[1]) / ((BUDGETS[2] - BUDGETS[1]) * LAYERS)
        assert (down[1] - down[0]) / ((BUDGETS[1] - BUDGETS[0]) * LAYERS) == pytest.approx(
            per_expert, rel=0.02
        )
        trained = torch.tensor(line["routing"]["trained"]) > 0  # [N, L, E]
        assert (trained.sum(dim=2).amax(dim=1) <= torch.tensor(BUDGETS)).all()
    assert lines[-1]["loss"] < lines[0]["loss"]
