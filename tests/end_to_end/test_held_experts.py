"""Nodes that hold only their experts, over real gRPC: the same run as in one process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedmoe_app import read_metrics, run_in_process
from tests.bases import save_base
from tests.conftest import REPOSITORY, flat_config
from tests.end_to_end.processes import deployment
from tests.end_to_end.test_runs import assert_same_run

BUDGETS = (2, 8)  # of 8 experts, top-2


def node_config(index: int) -> str:
    return f"partition-id={index} num-partitions=2 expert-budget={BUDGETS[index]} memory-budget=4"


@pytest.mark.slow
def test_two_budgets_over_grpc(tmp_path: Path) -> None:
    save_base(tmp_path / "model", "Olmoe", num_experts=8)
    rows = [{"text": f"{w} day {i}", "label": w} for i in range(20) for w in ("good", "bad")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes: dict[str, Any] = {
        "scheme": "fedmoe",
        "fedmoe.experts-per-client": 8,
        "model.name": str(tmp_path / "model"),
        "model.train": "expert-lora",
        "model.experts-in-memory": "chosen",
        "model.head": "label-words",
        "data.source": str(tmp_path / "rows.jsonl"),
        "data.test-source": str(tmp_path / "rows.jsonl"),
        "data.partition": "iid",
        "data.max-length": 16,
        "num-server-rounds": 2,
        "min-clients": 2,
        "run-name": "run",
    }
    nodes = [
        {"partition-id": i, "num-partitions": 2, "expert-budget": budget, "memory-budget": 4}
        for i, budget in enumerate(BUDGETS)
    ]
    here, there = tmp_path / "here", tmp_path / "there"
    expected = run_in_process(flat_config(**changes | {"output-dir": str(here)}), 2, nodes)
    with deployment(tmp_path, 2, node_config) as flower:
        outcome = flower.run(REPOSITORY, changes | {"output-dir": str(there)})
    assert outcome.completed, (outcome, flower.lines[-20:])
    flower.assert_nothing_left()
    assert_same_run(there / "run", expected)
    for line, same in zip(read_metrics(there / "run"), read_metrics(expected), strict=True):
        for client, other in zip(line["clients"], same["clients"], strict=True):
            assert client["bytes_down"] == other["bytes_down"]
            assert client["experts_held"] == other["experts_held"]
        sizes = [client["bytes_down"] for client in line["clients"]]
        assert sizes == sorted(set(sizes))
