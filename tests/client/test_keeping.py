"""Whatever is wrong with what a client keeps costs it its memory, never the round."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fedmoe_app import (
    Client,
    FCMoE,
    FedAlignMoE,
    FedAvg,
    Keeps,
    LocalStep,
    ModelShape,
    ModelState,
    Scheme,
    Trained,
    WeightTerm,
)
from fedmoe_app.client.parts import ClientParts
from fedmoe_app.client.state import Keeping, is_acceptable
from fedmoe_app.client.store import RoundStore
from fedmoe_app.moe.layers import read_state
from fedmoe_app.schemes.faults import PartError
from fedmoe_app.tasks.setup import Setup, load_setup
from fedmoe_app.wire.records import MAX_CHANGE, TrainTask
from tests.conftest import make_config
from tests.homes import home_with_cache, kept_files
from tests.toy import plan_of


@pytest.fixture
def setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setup:
    monkeypatch.setenv("FEDMOE_HOME", str(home_with_cache(tmp_path)))
    return load_setup(make_config(), ["a", "b"])


def task_of(setup: Setup, server_round: int) -> TrainTask:
    return TrainTask(server_round, read_state(setup.model, setup.layers))


def changes_of(setup: Setup, value: float) -> ModelState:
    changes = read_state(setup.model, setup.layers)
    for _, tensor in changes.named():
        tensor.fill_(0.01)
    next(iter(changes.gates[1].values()))[0, 0] = value
    return changes


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -2 * MAX_CHANGE])
def test_what_the_server_would_refuse_is_not_kept(
    setup: Setup, tmp_path: Path, value: float
) -> None:
    for server_round, found in ((1, 0.5), (2, value)):
        keeping = Keeping(
            ClientParts(plan_of(FedAlignMoE())), task_of(setup, server_round), client=3
        )
        keeping.store(changes_of(setup, found), None)
        assert keeping.metrics()["state-stored"] == (server_round == 1)
    assert kept_files(tmp_path / "home") == ["client-3/round-1.safetensors"]
    assert not is_acceptable(changes_of(setup, value))
    assert is_acceptable(changes_of(setup, MAX_CHANGE))


@pytest.mark.parametrize(
    "wrong",
    [
        {"layers.0.gate.weight": torch.zeros(2, 2)},  # of another model
        {"layers.0.gate.strange": torch.zeros(8, 64)},
        {"layers.0.gate.weight": torch.full((8, 64), torch.nan)},
    ],
    ids=["shape", "name", "nan"],
)
def test_a_file_that_does_not_fit_counts_as_lost(
    setup: Setup, wrong: dict[str, torch.Tensor]
) -> None:
    task = task_of(setup, 2)
    RoundStore(task.run_key, 3).save(1, wrong)
    keeping = Keeping(ClientParts(plan_of(FedAlignMoE())), task, client=3)
    started, own = keeping.start(setup)
    assert own is None
    assert started is task.state
    assert keeping.metrics()["kept-round"] == 0
    for key, tensor in read_state(setup.model, setup.layers).named():
        assert torch.equal(tensor, dict(task.state.named())[key]), key


def test_a_change_of_an_unknown_expert_counts_as_lost(setup: Setup) -> None:
    task = task_of(setup, 2)
    name = "layers.0.experts.99.down_proj"
    kept = {f"change.{name}": torch.ones(2, 2), f"start.{name}": torch.ones(2, 2)}
    RoundStore(task.run_key, 3).save(1, kept)
    keeping = Keeping(ClientParts(plan_of(FCMoE())), task, client=3)
    assert keeping.start(setup)[0] is task.state
    assert keeping.kept.server_round == 0


def test_a_full_disk_costs_the_memory_not_the_round(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RoundStore, "save", full)
    keeping = Keeping(ClientParts(plan_of(FedAlignMoE())), task_of(setup, 1), client=3)
    with caplog.at_level("WARNING", logger="fedmoe"):
        keeping.store(changes_of(setup, 0.5), None)
    assert keeping.metrics()["state-stored"] == 0
    assert "make room there, or set FEDMOE_HOME" in caplog.text


def test_a_scheme_that_keeps_nothing_writes_and_says_nothing(setup: Setup, tmp_path: Path) -> None:
    keeping = Keeping(ClientParts(plan_of(FedAvg())), task_of(setup, 1), client=3)
    keeping.store(changes_of(setup, 0.5), None)
    assert keeping.metrics() == {}
    assert kept_files(tmp_path / "home") == []


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (None, r"Forgets\.keep: returned None: must be a dict of tensors by name"),
        ({"seen": 3}, r"Forgets\.keep: it holds 3 under 'seen': must be tensors by name"),
    ],
)
def test_a_part_that_keeps_no_tensors_is_named(found: Any, message: str) -> None:
    class Forgets(WeightTerm, Keeps):
        def loss(self, step: LocalStep) -> None:
            return None

        def keep(self, done: Trained) -> Any:
            return found

    class Own(Scheme):
        def client(self, model: ModelShape) -> Client:
            return Client(terms=(Forgets(),))

    with pytest.raises(PartError, match=message):
        ClientParts(plan_of(Own())).keep(ModelState(), ModelState())
