"""PFL-MoE in whole runs: the global model is FedAvg's, the clients' own models are theirs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedmoe_app import ConfigError, PersonalCopy, PFLMoE, make_scheme, read_metrics
from tests.compare.test_in_process import run
from tests.conftest import make_config
from tests.homes import home_with_topics, kept_files
from tests.toy import plan_of


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with home_with_topics(tmp_path_factory.mktemp("pflmoe")) as folder:
        yield folder


def run_small(home: Path, name: str, **overrides: Any) -> Path:
    data = {
        "data.source": str(home / "train.jsonl"),
        "data.test-source": str(home / "test.jsonl"),
        "data.alpha": 0.1,
    }
    return run(home / name, **data | overrides)


@pytest.fixture(scope="module")
def runs(home: Path) -> dict[str, Path]:
    return {
        "fedavg": run_small(home, "fedavg"),
        "pflmoe": run_small(home, "pflmoe", scheme="pflmoe"),
        "joint": run_small(home, "joint", scheme="pflmoe", **{"pflmoe.joint": True}),
    }


def of_clients(folder: Path, name: str, server_round: int = 2) -> list[Any]:
    return [client[name] for client in read_metrics(folder)[server_round]["clients"]]


def global_part(folder: Path) -> list[Any]:
    names = ("round", "status", "loss", "accuracy", "train_loss", "routing", "diagnostics")
    of_client = ("loss", "accuracy", "train_loss", "num_steps", "experts_sent")
    return [
        [line[name] for name in names] + [[c[n] for n in of_client] for c in line["clients"]]
        for line in read_metrics(folder)
    ]


def test_the_global_model_is_bit_for_bit_that_of_fedavg(runs: dict[str, Path]) -> None:
    ours, plain = runs["pflmoe"] / "model", runs["fedavg"] / "model"
    weights = "model.safetensors"
    assert (ours / weights).read_bytes() == (plain / weights).read_bytes()
    assert global_part(runs["pflmoe"]) == global_part(runs["fedavg"])


def test_with_joint_it_is_another(runs: dict[str, Path]) -> None:
    assert global_part(runs["joint"]) != global_part(runs["fedavg"])
    lines = read_metrics(runs["joint"])
    assert lines[2]["loss"] < lines[0]["loss"]


@pytest.mark.parametrize("name", ["pflmoe", "joint"])
def test_the_local_score_is_that_of_the_mixture(name: str, runs: dict[str, Path]) -> None:
    assert all(0 < gate < 1 for gate in of_clients(runs[name], "mixing_gate"))
    assert None not in of_clients(runs[name], "personal_accuracy")
    assert of_clients(runs[name], "local_loss") != of_clients(runs["fedavg"], "local_loss")
    pairs = zip(of_clients(runs[name], "local_loss"), of_clients(runs[name], "loss"), strict=True)
    assert all(after < before for after, before in pairs)


def test_schemes_without_a_copy_have_no_gate(runs: dict[str, Path]) -> None:
    assert of_clients(runs["fedavg"], "mixing_gate") == [None] * 3


def test_what_is_kept_goes_on_and_is_dropped_at_the_end(runs: dict[str, Path], home: Path) -> None:
    assert of_clients(runs["pflmoe"], "kept_round", 1) == [0] * 3
    assert of_clients(runs["pflmoe"], "kept_round", 2) == [1] * 3
    assert of_clients(runs["pflmoe"], "state_lost", 2) == [False] * 3
    assert kept_files(home) == []


def test_the_table_sets_the_parameters() -> None:
    config = make_config(
        **{"scheme": "pflmoe", "pflmoe.joint": True, "pflmoe.gate-learning-rate": 0.5}
    )
    scheme = make_scheme(config)
    assert scheme == PFLMoE(joint=True, gate_learning_rate=0.5)
    assert plan_of(scheme).keeps_state
    assert plan_of(scheme).client.personal == PersonalCopy(True, 0.5)


def test_a_learning_rate_of_zero_is_refused() -> None:
    with pytest.raises(ConfigError, match="pflmoe.gate-learning-rate"):
        make_config(**{"pflmoe.gate-learning-rate": 0.0})
