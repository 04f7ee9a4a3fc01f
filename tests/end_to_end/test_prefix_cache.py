"""Frozen layers that are computed once, over real gRPC: the same run as in one process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedmoe_app import run_in_process
from tests.bases import save_base
from tests.conftest import REPOSITORY, flat_config
from tests.end_to_end.processes import deployment
from tests.end_to_end.test_runs import assert_same_run


def node_config(index: int) -> str:
    return f"partition-id={index} num-partitions=2"


@pytest.mark.slow
def test_hidden_states_are_kept_from_process_to_process(tmp_path: Path) -> None:
    """Each message of a node has a process of its own; what it kept goes with the run."""
    save_base(tmp_path / "model", "Qwen2Moe", num_hidden_layers=4, mlp_only_layers=[0, 1, 2])
    rows = [{"text": f"{w} day {i}", "label": w} for i in range(20) for w in ("good", "bad")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes: dict[str, Any] = {
        "model.name": str(tmp_path / "model"),
        "model.train": "experts",
        "head.closed-form": "before",
        "data.source": str(tmp_path / "rows.jsonl"),
        "data.test-source": str(tmp_path / "rows.jsonl"),
        "data.partition": "iid",
        "data.max-length": 16,
        "num-server-rounds": 2,
        "min-clients": 2,
        "keep-client-state": True,
        "run-name": "run",
    }
    here, there = tmp_path / "here", tmp_path / "there"
    expected = run_in_process(flat_config(**changes | {"output-dir": str(here)}), 2)
    with deployment(tmp_path, 2, node_config) as flower:
        outcome = flower.run(REPOSITORY, changes | {"output-dir": str(there)})
        kept = [path for path in tmp_path.rglob("clients/*/*/prefix") if path.is_dir()]
    assert outcome.completed, (outcome, flower.lines[-20:])
    assert "layers 1 to 3 of 4 are frozen" in "\n".join(flower.lines)
    assert not any(list(folder.iterdir()) for folder in kept)
    assert_same_run(there / "run", expected)
