"""bfloat16, checkpointing, accumulation, clipping and a schedule together, in every family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fedmoe_app import ClientUpdate
from fedmoe_app.client.round import train_client
from fedmoe_app.config.node import Node
from fedmoe_app.moe.layers import read_state
from fedmoe_app.tasks.setup import load_setup, server_data
from fedmoe_app.wire.records import TrainTask
from tests.bases import save_base
from tests.conftest import make_config
from tests.moe.families import NAMES

ROWS = [{"instruction": f"number {i}", "response": f"{i} good day"} for i in range(22)]


def second_round(folder: Path, **overrides: Any) -> ClientUpdate:
    """Let a client with 10 examples train in round 2 of 4."""
    config = make_config(
        **{
            "model.name": str(folder),
            "model.dtype": "bfloat16",
            "model.lora-rank": 2,
            "num-server-rounds": 4,
            "data.source": str(folder / "rows.jsonl"),
            "data.task": "causal-lm",
            "data.partition": "iid",
            "data.max-length": 16,
            "train.per-device-train-batch-size": 2,
            "train.gradient-accumulation-steps": 2,
            "train.lr-scheduler-type": "cosine",
            "train.warmup-steps": 0.5,
            "train.max-grad-norm": 0.5,
        }
        | overrides
    )
    data = server_data(config.data)
    setup = load_setup(config, data.label_names)
    assert {p.dtype for p in setup.model.parameters()} <= {torch.bfloat16, torch.float32}
    assert setup.model.dtype == torch.bfloat16
    state = read_state(setup.model, setup.layers)
    fingerprint = setup.base_fingerprint
    task = TrainTask(2, state, data.label_names, data.fingerprint, base_fingerprint=fingerprint)
    return train_client(config, Node(0, 0, 2, None), task)


@pytest.mark.parametrize("mode", ["experts", pytest.param("expert-lora", marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", NAMES)
def test_they_work_together_and_checkpointing_changes_nothing(
    family: str, mode: str, tmp_path: Path
) -> None:
    save_base(tmp_path, family)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    updates = [
        second_round(
            tmp_path, **{"model.train": mode, "train.gradient-checkpointing": checkpointing}
        )
        for checkpointing in (False, True)
    ]
    plain, checkpointed = (dict(update.changes.named()) for update in updates)
    assert updates[0].num_examples == 10
    assert updates[0].metrics["num-steps"] == 3  # 4, 4 and 2 examples
    experts = [t for tensors in updates[0].changes.experts.values() for t in tensors.values()]
    assert any(change.any() for change in experts)
    assert plain.keys() == checkpointed.keys()
    assert all(torch.equal(change, checkpointed[key]) for key, change in plain.items())
    assert torch.equal(updates[0].routing.count, updates[1].routing.count)
