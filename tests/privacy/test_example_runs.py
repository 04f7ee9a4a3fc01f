"""Whole runs with privacy of single examples: what leaves, what is spent, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedmoe_app import ConfigError, parse_run_config, read_metrics, run_in_process
from fedmoe_app.client.round import evaluate_client
from fedmoe_app.config.node import Node
from fedmoe_app.config.policy import Policy
from fedmoe_app.moe.state import ModelState
from fedmoe_app.privacy.accountant import epsilon
from fedmoe_app.privacy.node_ledger import NodeLedger
from fedmoe_app.server.rounds import RunFailedError
from fedmoe_app.wire.records import TrainTask
from tests.conftest import flat_config
from tests.privacy.conftest import short_run
from tests.toy import TOPICS

DP = {
    "privacy.example-dp": True,
    "privacy.example-noise": 1.0,
    "privacy.example-rate": 0.2,
    "model.train": "expert-lora",
    "model.lora-rank": 2,
}
CLIENTS = [{"partition-id": i, "num-partitions": 2} for i in range(2)]


def run(folder: Path, **overrides: Any) -> Path:
    return run_in_process(short_run(folder, **DP | overrides), 2, CLIENTS)


def test_nothing_but_changes_leaves_and_each_round_is_spent(tmp_path: Path, home: Path) -> None:
    results = run(tmp_path)
    lines = read_metrics(results)
    assert [line["status"] for line in lines] == ["ok"] * 3
    for client in (client for line in lines[1:] for client in line["clients"]):
        assert client["num_examples"] == 1
        told = {key for key, value in client.items() if value not in (None, 0, 0.0)}
        assert not told & {"accuracy", "local_accuracy", "loss", "train_loss", "num_steps"}
    spent = epsilon(0.2, 1.0, 2 * 2, 1e-5)
    for client in range(2):
        name = f"what runs name, client {client}"
        assert NodeLedger().epsilon(name, 1e-5) == pytest.approx(spent)
    assert f"spend epsilon {spent:.3g} at delta 1e-05" in (results / "log.jsonl").read_text()
    # A second run adds to it, and the file outlives what runs keep.
    run(tmp_path, seed=7)
    assert NodeLedger().epsilon(name, 1e-5) == pytest.approx(epsilon(0.2, 1.0, 8, 1e-5))
    assert (
        json.loads((home / "node" / "privacy.json").read_text())["data_sets"][name]["rounds"] == 4
    )


def test_noise_is_worked_out_from_epsilon_and_a_scheme_of_weights_goes_along(
    tmp_path: Path,
) -> None:
    keys = {"privacy.example-noise": 0.0, "privacy.example-epsilon": 4.0, "scheme": "fedprox"}
    run(tmp_path, **keys)
    assert NodeLedger().epsilon("what runs name, client 0", 1e-5) == pytest.approx(4, rel=1e-2)


def test_a_policy_refuses_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text(f"apps = []\nmax-epsilon = {epsilon(0.2, 1.0, 1, 1e-5)}\n")
    policy.chmod(0o600)
    monkeypatch.setenv("FEDMOE_POLICY", str(policy))
    with pytest.raises(RunFailedError, match="does not allow to spend as much epsilon"):
        run(tmp_path)  # a round has two steps, and one would fit
    assert not (home / "node" / "privacy.json").exists()


def test_a_policy_with_a_budget_takes_no_run_without_noise() -> None:
    policy = Policy.model_validate({"apps": [], "max-epsilon": 8.0})
    plain, noised = flat_config(), flat_config(**DP)
    assert list(policy.refusals(plain)) == ["privacy.example-dp = 'False'"]
    assert list(policy.refusals(noised)) == []
    # And less leaves: a node that lets out updates alone takes such runs.
    only = Policy.model_validate({"apps": [], "may-leave": ["update"]})
    assert list(only.refusals(noised)) == [] != list(only.refusals(plain))


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"model.train": "all"}, 'model.train = "all": the noise grows'),
        ({"train.max-steps": 0}, "set train.max-steps"),
        ({"privacy.example-noise": 0.0}, "give one of them"),
        ({"privacy.secure-sum": True}, "not combined; choose one"),
        ({"keep-best": "loss"}, "set data.validation-source"),
        ({"data.source": "nodes", "data.label-names": "a, b"}, "set data.test-source"),
        ({"privacy.example-rate": 0.0}, "example-rate"),
    ],
)
def test_what_would_undo_it_is_refused(keys: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        parse_run_config({**DP, "train.max-steps": 2, **keys})


@pytest.mark.parametrize(
    ("scheme", "part"),
    [
        ("fedmoe", "MostUsed chooses experts by the client's examples"),
        ("fcmoe", "no plain training"),
        ("fedntd", "reads more than one example at a time"),
        ("flame", "which may read the histogram"),
        ("scaffold", "reads more than one example|numbers that have no noise"),
        ("qfedavg", "numbers that have no noise"),
        ("pflmoe", "no plain training"),
    ],
)
def test_schemes_that_tell_more_are_refused(tmp_path: Path, scheme: str, part: str) -> None:
    args = '{"population": 2}' if scheme == "scaffold" else ""
    with pytest.raises(ConfigError, match=part):
        run(tmp_path, scheme=scheme, **{"scheme-args": args})


def test_a_node_gives_no_score() -> None:
    config = parse_run_config({**DP, "train.max-steps": 2})
    with pytest.raises(ConfigError, match="no score of this node's rows leaves it"):
        evaluate_client(config, Node(0, 0, 2, None), TrainTask(1, ModelState(), tuple(TOPICS)))
