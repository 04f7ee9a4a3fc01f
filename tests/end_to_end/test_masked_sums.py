"""Masked sums over gRPC: equal to plain sums in one process, with a node killed in the middle."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fedmoe_app import read_metrics, run_in_process
from tests.conftest import REPOSITORY, flat_config
from tests.end_to_end.faults import kill_tree, wait_for
from tests.end_to_end.processes import WARM_SUPERNODE, deployment

pytestmark = pytest.mark.slow

CLIENTS = 5
CHANGES: dict[str, Any] = {
    "num-server-rounds": 2,
    "min-clients": 3,
    "data.max-train-examples": 200,
    "data.max-test-examples": 80,
    "data.partition": "iid",
    "keep-checkpoints": 5,
    "round-timeout": 180,
}
SUMS = {"privacy.secure-sum": True, "privacy.weight-unit": 1, "privacy.min-trainers": 2}


def state(results: Path, server_round: int) -> dict[str, torch.Tensor]:
    return load_file(results / "checkpoints" / f"round-{server_round:05d}" / "state.safetensors")


def has_round(results: Path, number: int) -> bool:
    file = results / "metrics.jsonl"
    return file.is_file() and read_metrics(results)[-1]["round"] >= number


def test_a_node_killed_in_the_middle_costs_nothing_but_itself(tmp_path: Path) -> None:
    """Round 1 is that of plain sums; in round 2 a node dies, and the other four go on."""
    plain = run_in_process(
        flat_config(
            **CHANGES | {"output-dir": str(tmp_path), "run-name": "plain", "num-server-rounds": 1}
        ),
        CLIENTS,
    )
    results = tmp_path / "masked"
    changes = CHANGES | SUMS | {"output-dir": str(tmp_path), "run-name": "masked"}
    with deployment(tmp_path, CLIENTS, supernode=WARM_SUPERNODE) as flower:

        def kill() -> None:
            wait_for(lambda: has_round(results, 1), "round 1")
            kill_tree(flower.nodes[-1])

        killer = threading.Thread(target=kill)
        killer.start()
        outcome = flower.run(REPOSITORY, changes)
        killer.join()
        assert outcome.completed, flower.lines[-20:]
    flower.assert_nothing_left()
    lines = read_metrics(results)
    assert [line["status"] for line in lines] == ["ok"] * 3
    assert [line["num_clients"] for line in lines[1:]] == [5, 4]
    before, after, found = state(plain, 0), state(plain, 1), state(results, 1)
    open_ones = [name for name in found if not torch.equal(found[name], before[name])]
    assert lines[1]["secure_sum"]["closed_experts"] == 0 or len(open_ones) > len(found) / 2
    for name in open_ones:
        torch.testing.assert_close(found[name], after[name], rtol=1e-4, atol=1e-5)
