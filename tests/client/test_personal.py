"""PFL-MoE on a client: what trains on what, what is kept, and that the global copy is untouched."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fedmoe_app import ClientUpdate, ModelState, PFLMoE, RunConfig
from fedmoe_app.client.personal import OwnModel, own_model
from fedmoe_app.client.round import train_client
from fedmoe_app.config.node import Node
from fedmoe_app.moe.layers import read_state
from fedmoe_app.moe.state import Tensors
from fedmoe_app.tasks.setup import load_setup
from fedmoe_app.wire.records import TrainTask
from tests.conftest import make_config
from tests.homes import home_with_cache
from tests.toy import TOPICS, write_topics

SMALL = {"data.max-length": 12, "train.per-device-train-batch-size": 8, "data.source": "nodes"}
QUESTIONS = {"data.task": "causal-lm", "data.partition": "iid"}
FAMILIES = [
    ("qwen3moe-tiny", "sequence", {}),
    ("qwen3moe-tiny", "label-words", {}),
    ("switch-tiny", "label-words", {}),
    ("qwen3moe-tiny", "auto", QUESTIONS),
    ("switch-tiny", "auto", QUESTIONS),
]
KEY = "a" * 32


def write_questions(path: Path) -> Path:
    rows = [{"instruction": f"Count to {i}.", "response": f"One to {i}."} for i in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_topics(folder / "classification.jsonl", 10)
    write_questions(folder / "causal-lm.jsonl")
    return folder


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = home_with_cache(tmp_path)
    monkeypatch.setenv("FEDMOE_HOME", str(folder))
    yield folder


@dataclass
class Client:
    """A client with a file of its own."""

    config: RunConfig
    labels: tuple[str, ...]
    node: Node
    home: Path

    @property
    def received(self) -> ModelState:
        setup = load_setup(self.config, self.labels)
        return read_state(setup.model, setup.layers)

    def train(self, server_round: int, state: ModelState | None = None) -> ClientUpdate:
        task = TrainTask(server_round, state or self.received, self.labels, run_key=KEY)
        return train_client(self.config, self.node, task)

    def file(self, server_round: int) -> Path:
        return self.home / "clients" / KEY / "client-0" / f"round-{server_round}.safetensors"

    def kept(self, server_round: int) -> Tensors:
        return load_file(self.file(server_round))


def client(files: Path, home: Path, **overrides: Any) -> Client:
    config = make_config(**{"scheme": "pflmoe"} | SMALL | overrides)
    task = config.data.task
    labels = tuple(sorted(TOPICS)) if task == "classification" else ()
    node = Node(0, 0, None, str(files / f"{task}.jsonl"))
    return Client(config, labels, node, home)


def same(a: ModelState, b: ModelState) -> bool:
    left, right = dict(a.named()), dict(b.named())
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def equal(a: Tensors, b: Tensors) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize(("name", "head", "data"), FAMILIES)
def test_every_family_and_head_uploads_what_fedavg_does(
    name: str, head: str, data: dict[str, Any], files: Path, home: Path
) -> None:
    overrides = {"model.name": name, "model.head": head} | data
    ours = client(files, home, **overrides)
    update = ours.train(1)
    plain = client(files, home, **overrides, scheme="fedavg").train(1)
    assert same(update.changes, plain.changes)
    assert torch.equal(update.routing.trained, plain.routing.trained)
    assert torch.equal(update.routing.count, plain.routing.count)
    for metric in ("train-loss", "loss", "accuracy"):
        assert update.metrics[metric] == plain.metrics[metric]
    assert update.metrics["local-loss"] < update.metrics["loss"]
    assert update.metrics["local-loss"] != plain.metrics["local-loss"]
    assert 0 < update.metrics["mixing-gate"] < 1
    assert 0 <= update.metrics["personal-accuracy"] <= 1
    expected = {f"personal.{key}": t.shape for key, t in ours.received.named()}
    hidden = load_setup(ours.config, ours.labels).shape.hidden_size
    expected |= {"mixing-gate.weight": torch.Size([hidden]), "mixing-gate.bias": torch.Size([])}
    assert {key: t.shape for key, t in ours.kept(1).items()} == expected


def test_one_seed_gives_the_same_twice(files: Path, home: Path) -> None:
    ours = client(files, home)
    first = ours.train(1)
    kept = ours.kept(1)
    second = ours.train(1)
    assert first.metrics == second.metrics
    assert equal(kept, ours.kept(1))


@pytest.mark.parametrize("name", ["qwen3moe-tiny", "switch-tiny"])
def test_with_the_gate_at_one_the_personal_copy_trains_as_fedavg_does(
    name: str, files: Path, home: Path
) -> None:
    """Same batches, steps, optimiser and clipping: y = f(x; θ_i) leaves no other difference."""
    ours = client(files, home, **{"model.name": name})
    received = dict(ours.received.named())
    ours.train(1)
    start = {f"personal.{key}": tensor for key, tensor in received.items()}
    gate = {"mixing-gate.weight": torch.zeros(64), "mixing-gate.bias": torch.tensor(1e4)}
    save_file(start | gate, ours.file(1))
    update = ours.train(2)
    assert update.metrics["mixing-gate"] == 1
    assert update.metrics["local-accuracy"] == update.metrics["personal-accuracy"]
    kept = ours.kept(2)
    for key, change in update.changes.named():
        assert torch.equal(kept[f"personal.{key}"] - received[key], change), key
    untrained = received.keys() - dict(update.changes.named()).keys()
    assert all(torch.equal(kept[f"personal.{key}"], received[key]) for key in untrained)


@pytest.mark.parametrize("joint", [False, True])
def test_the_next_round_starts_from_what_was_kept(joint: bool, files: Path, home: Path) -> None:
    ours = client(files, home, **{"pflmoe.joint": joint})
    ours.train(1)
    second = ours.train(2)
    assert second.metrics["kept-round"] == 1
    kept = ours.kept(2)
    ours.file(1).unlink()
    ours.file(2).unlink()
    lost = ours.train(2)
    assert lost.metrics["kept-round"] == 0
    assert not equal(kept, ours.kept(2))
    assert lost.metrics["local-loss"] > second.metrics["local-loss"]


def test_kept_values_are_the_start(files: Path, home: Path) -> None:
    """With steps too small to show, what is kept is what was kept before."""
    tiny = {"train.learning-rate": 1e-30, "pflmoe.gate-learning-rate": 1e-30}
    ours = client(files, home, **tiny)
    ours.train(1)
    kept = {k: torch.full_like(t, 0.25) for k, t in ours.kept(1).items()}
    save_file(kept, ours.file(1))
    ours.train(2)
    assert equal(kept, ours.kept(2))
    ours.file(1).unlink()
    ours.file(2).unlink()
    ours.train(2)
    start = {f"personal.{key}": tensor for key, tensor in ours.received.named()}
    start |= {"mixing-gate.weight": torch.zeros(64), "mixing-gate.bias": torch.tensor(0.0)}
    lost = ours.kept(2)
    assert all(torch.allclose(lost[key], start[key], atol=1e-20, rtol=0) for key in start)


def test_joint_training_changes_the_global_copy(files: Path, home: Path) -> None:
    ours = client(files, home, **{"pflmoe.joint": True})
    update = ours.train(1)
    plain = client(files, home, scheme="fedavg").train(1)
    assert not same(update.changes, plain.changes)
    assert update.changes.gates.keys() == plain.changes.gates.keys()
    assert update.routing.count.sum() == plain.routing.count.sum()  # the global copy's only
    assert update.metrics["local-loss"] < update.metrics["loss"]
    gate = ours.kept(1)["mixing-gate.bias"]
    assert gate.isfinite()


@pytest.mark.parametrize("name", ["qwen3moe-tiny", "switch-tiny"])
def test_two_copies_that_start_alike_train_alike_if_joint(
    name: str, files: Path, home: Path
) -> None:
    """At g = 1/2 both get the same gradient, and equal logits give the gate none."""
    ours = client(files, home, **{"pflmoe.joint": True, "model.name": name})
    update = ours.train(1)
    received, kept = dict(ours.received.named()), ours.kept(1)
    assert kept["mixing-gate.bias"] == 0
    for key, change in update.changes.named():
        found = kept[f"personal.{key}"] - received[key]
        assert torch.allclose(found, change, atol=1e-6), key


def test_a_client_without_test_examples_tells_the_gate_only(files: Path, home: Path) -> None:
    metrics = client(files, home, **{"data.local-test-fraction": 0.0}).train(1).metrics
    assert 0 < metrics["mixing-gate"] < 1
    assert not {"local-loss", "local-accuracy", "personal-accuracy"} & metrics.keys()


def test_a_copy_that_diverged_leaves_what_was_kept_before(
    files: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = client(files, home)
    ours.train(1)
    monkeypatch.setattr(OwnModel, "is_finite", lambda own: False)
    assert ours.train(2).metrics["state-stored"] == 0
    assert ours.file(1).exists()
    assert not ours.file(2).exists()


def test_a_kept_copy_that_is_not_finite_counts_as_lost(files: Path, home: Path) -> None:
    ours = client(files, home)
    ours.train(1)
    save_file(ours.kept(1) | {"mixing-gate.bias": torch.tensor(torch.nan)}, ours.file(1))
    metrics = ours.train(2).metrics
    assert metrics["kept-round"] == 0
    assert math.isfinite(metrics["mixing-gate"])
    assert ours.file(2).exists()


def test_the_model_is_given_back_plain_and_training_leaves_no_gradient(home: Path) -> None:
    config = make_config()
    setup = load_setup(config, ["a", "b"])
    own = own_model(setup, PFLMoE(), {})
    assert own is not None
    rows: list[Any] = [{"input_ids": [1, 5 + i % 7, 2], "labels": i % 2} for i in range(16)]
    before = {k: t.clone() for k, t in setup.model.state_dict().items()}
    own.train(setup.model, rows, config.train, seed=1)
    assert equal(before, setup.model.state_dict())
    assert not equal(before, own.model.state_dict())
    for model in (setup.model, own.model):
        assert all(p.grad is None for p in model.parameters())
        assert not model.training
        assert "_fedmoe_trainables" not in vars(model)


@pytest.mark.parametrize("joint", [False, True])
def test_gradient_checkpointing_changes_nothing(joint: bool, files: Path, home: Path) -> None:
    overrides = {"pflmoe.joint": joint}
    ours = client(files, home, **overrides)
    update = ours.train(1)
    kept = ours.kept(1)
    checked = client(files, home, **overrides, **{"train.gradient-checkpointing": True}).train(1)
    again = ours.kept(1)
    assert all(torch.allclose(kept[key], again[key], atol=1e-5) for key in kept)
    assert torch.equal(update.routing.count, checked.routing.count)


def test_without_a_personal_part_there_is_no_copy(home: Path) -> None:
    assert own_model(load_setup(make_config(), ["a", "b"]), None, {}) is None
