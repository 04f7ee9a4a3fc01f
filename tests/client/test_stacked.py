"""A client whose experts are trained as stacks, as on a GPU: the round it does one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fedmoe_app import ClientUpdate, RunConfig
from fedmoe_app.client import round as client_round
from fedmoe_app.client.round import train_client
from fedmoe_app.config.node import Node
from fedmoe_app.moe.layers import read_state
from fedmoe_app.moe.training.trainable import Trainables
from fedmoe_app.tasks.setup import load_setup, server_data
from fedmoe_app.wire.records import TrainTask
from tests.conftest import make_config
from tests.homes import home_with_cache


def trained(config: RunConfig) -> ClientUpdate:
    data = server_data(config.data)
    setup = load_setup(config, data.label_names)
    state = read_state(setup.model, setup.layers)
    task = TrainTask(
        1, state, data.label_names, data.fingerprint, base_fingerprint=setup.base_fingerprint
    )
    return train_client(config, Node(0, 0, 2, None), task)


@pytest.mark.parametrize(
    ("scheme", "train", "is_stacked"),
    [
        ("fedavg", "expert-lora", True),
        ("fedprox", "experts", True),  # its term reads single experts by their names
        ("fedalign", "experts", True),
        ("hfedmoe", "experts", False),  # freezes experts in a batch
    ],
)
def test_a_round_gives_what_it_gives_one_by_one(
    scheme: str, train: str, is_stacked: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FEDMOE_HOME", str(home_with_cache(tmp_path)))
    short = {"train.max-steps": 3, "data.max-train-examples": 240}
    config = make_config(**{"scheme": scheme, "model.train": train} | short)
    wanted = trained(config)
    found: list[bool] = []

    class Noted(Trainables):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            found.append(bool(self.stacks()))

    monkeypatch.setattr(client_round, "pays_on", lambda device: True)
    monkeypatch.setattr(client_round, "Trainables", Noted)
    update = trained(config)
    assert found == [is_stacked]
    assert update.metrics["train-loss"] == pytest.approx(wanted.metrics["train-loss"], rel=1e-4)
    assert update.routing.trained.equal(wanted.routing.trained)
    changes, others = dict(update.changes.named()), dict(wanted.changes.named())
    assert list(changes) == list(others)
    for key, change in others.items():
        assert (changes[key] - change).norm() <= 0.05 * change.norm() + 1e-6, key
        assert changes[key].dtype == torch.float32
