"""Whole runs with privacy of single examples: what leaves, what is spent, what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from fedmoe_app import ConfigError, parse_run_config, read_metrics, run_in_process
from fedmoe_app.client.round import choose_for_client, evaluate_client
from fedmoe_app.client_app import name_errors
from fedmoe_app.config.node import Node
from fedmoe_app.config.policy import Policy, RefusedError
from fedmoe_app.moe.state import ModelState
from fedmoe_app.privacy.accountant import epsilon
from fedmoe_app.privacy.example_level import ExampleLevel
from fedmoe_app.privacy.node_ledger import NodeLedger
from fedmoe_app.report.facts import summary
from fedmoe_app.report.settings import read_settings
from fedmoe_app.results.table import write_rounds
from fedmoe_app.results.trackers import scalars
from fedmoe_app.server.resume import check_same_config
from fedmoe_app.server.rounds import RunFailedError
from fedmoe_app.tasks.setup import client_data
from fedmoe_app.wire.records import TrainTask
from tests.conftest import flat_config
from tests.privacy.conftest import short_run
from tests.toy import TOPICS, write_topics

DP = {
    "privacy.example-dp": True,
    "privacy.example-noise": 1.0,
    "privacy.example-rate": 0.2,
    "model.train": "expert-lora",
    "model.lora-rank": 2,
}
IID = {"data.partition": "iid"}
CLIENTS = [{"partition-id": i, "num-partitions": 2} for i in range(2)]


def run(folder: Path, **overrides: Any) -> Path:
    return run_in_process(short_run(folder, **DP | overrides), 2, CLIENTS)


def test_nothing_but_changes_leaves_and_each_round_is_spent(tmp_path: Path, home: Path) -> None:
    results = run(tmp_path)
    lines = read_metrics(results)
    assert [line["status"] for line in lines] == ["ok"] * 3
    for client in (client for line in lines[1:] for client in line["clients"]):
        assert client["num_examples"] is None
        told = {key for key, value in client.items() if value not in (None, 0, 0.0)}
        assert not told & {"accuracy", "local_accuracy", "loss", "train_loss", "num_steps"}
    spent = epsilon(0.2, 1.0, 2 * 2, 1e-5)
    for client in range(2):
        name = f"what runs name, client {client}"
        assert NodeLedger().epsilon(name, 1e-5) == pytest.approx(spent)
    log = (results / "log.jsonl").read_text()
    assert f"spend epsilon {spent:.3g} at delta 1e-05" in log
    # A reply's line says what came and why there is no more of it; no number stands for none.
    replies = [json.loads(line) for line in log.splitlines() if '"event": "reply"' in line]
    assert len(replies) == 4
    for reply in replies:
        assert "changes with noise came" in reply["message"]
        assert "stay on the node (privacy.example-dp)" in reply["message"]
        assert not re.search(r"loss \d|\d examples", reply["message"])
    assert [line["train_loss"] for line in lines] == [None] * 3
    # By the run's settings the server knows what each node has spent at most.
    assert "example_privacy" not in lines[0]
    for line, rounds in zip(lines[1:], (1, 2), strict=True):
        found = line["example_privacy"]
        assert found["epsilon"] == pytest.approx(epsilon(0.2, 1.0, rounds * 2, 1e-5), abs=1e-4)
        assert (found["delta"], found["rounds"], found["steps"]) == (1e-5, rounds, 2)
    card = (results / "model" / "README.md").read_text()
    assert f"at most ({spent:.3g}, 1e-05)-differentially private with respect to one" in card
    assert "no differential privacy" not in card
    assert "| training examples | not told |" in card
    facts = {fact.name: fact for fact in summary(read_settings(results), lines, "accuracy")}
    assert facts["privacy of examples"].value == f"ε ≤ {spent:.3g}"
    assert "epsilon a node" in write_rounds(lines, "markdown")
    assert scalars(lines[2])["privacy/epsilon_of_examples_at_most"] == pytest.approx(
        spent, abs=1e-4
    )
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
    results = run(tmp_path, **keys)
    assert NodeLedger().epsilon("what runs name, client 0", 1e-5) == pytest.approx(4, rel=1e-2)
    # More rounds after a resume would have taken more noise in those that are done.
    more = short_run(tmp_path, **DP | keys | {"num-server-rounds": 3})
    with pytest.raises(ConfigError, match="num-server-rounds = 2, now 3"):
        check_same_config(results, more)


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
        ({"data.task": "multiple-choice", **IID}, "data.answer-kind = .auto."),
        ({"data.task": "causal-lm", **IID}, "data.row-format = .auto."),
    ],
)
def test_what_would_undo_it_is_refused(keys: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        parse_run_config({**DP, "train.max-steps": 2, **keys})


def test_noise_that_spends_more_than_the_epsilon_beside_it_is_refused() -> None:
    keys = {"train.max-steps": 2, "num-server-rounds": 3, "privacy.example-epsilon": 1.0}
    with pytest.raises(ConfigError, match=r"example-noise = 1 spends epsilon .* more than"):
        ExampleLevel.of(parse_run_config({**DP, **keys}))
    level = ExampleLevel.of(parse_run_config({**DP, **keys, "privacy.example-noise": 9.0}))
    assert level is not None
    assert level.noise == 9


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


@pytest.mark.parametrize(
    ("keys", "key"),
    [
        (DP, "example-dp"),
        ({"privacy.secure-sum": True, "min-clients": 3}, "secure-sum"),
        ({"privacy.dp": "fixed", "privacy.dp-noise": 1.0, "privacy.dp-clients": 9}, "dp"),
    ],
)
def test_a_node_gives_no_score_and_no_choice_whatever_it_is_asked(
    keys: dict[str, Any], key: str
) -> None:
    config = parse_run_config({**keys, "train.max-steps": 2})
    task = TrainTask(1, ModelState(), tuple(TOPICS))
    with pytest.raises(ConfigError, match=rf"privacy.{key} = .*: no score of this node's rows"):
        evaluate_client(config, Node(0, 0, 2, None), task)
    with pytest.raises(ConfigError, match=rf"privacy.{key} = .*: which experts fit"):
        choose_for_client(config, Node(0, 0, 2, None), task)


def test_one_row_more_changes_no_other_row_that_is_trained_on(tmp_path: Path) -> None:
    """A hold-out drawn by number of rows would exchange a fifth of them."""
    more, fewer = tmp_path / "more.jsonl", tmp_path / "fewer.jsonl"
    write_topics(more, 12)
    rows = more.read_text().splitlines(keepends=True)
    fewer.write_text("".join(rows[:20] + rows[21:]))
    config = parse_run_config({**DP, "train.max-steps": 2})
    found = [
        client_data(config, Node(0, 0, None, str(path)), tuple(TOPICS), "")
        for path in (more, fewer)
    ]
    texts = [list(data.train["text"]) for data in found]
    assert len(texts[0]) == len(rows)
    assert texts[1] == texts[0][:20] + texts[0][21:]
    assert [data.test for data in found] == [None, None]


def test_an_error_of_a_row_stays_on_the_node(tmp_path: Path) -> None:
    """Which row has a class that a run does not name would tell all classes, a row a run."""
    node = Node(3, 3, None, str(write_topics(tmp_path / "rows.jsonl", 12)))
    names = (*list(TOPICS)[:-1], "another")
    summed = {"privacy.secure-sum": True, "min-clients": 3}
    for keys, told in ((summed, "reason stays in this node's log"), ({}, "row 37")):
        config = parse_run_config({**keys, "train.max-steps": 2})
        promised = config.privacy.promised
        with pytest.raises(RuntimeError, match=told) as caught, name_errors(3, promised):
            client_data(config, node, names, "")
        assert ("row" in str(caught.value).split()) == (not keys)
    with pytest.raises(RuntimeError, match="does not allow scores"), name_errors(3, "so"):
        raise RefusedError("this node's policy does not allow scores to leave the node")
    # With privacy of examples that it failed would be an answer, too: such rows are left out.
    config = parse_run_config({**DP, "train.max-steps": 2})
    assert len(client_data(config, node, names, "").train) == 12 * (len(TOPICS) - 1)
