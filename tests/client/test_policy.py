"""What a node's policy asks of every task that reads the node's rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedmoe_app import ModelState
from fedmoe_app.cli.commands.superexec import superexec
from fedmoe_app.client.round import (
    evaluate_client,
    measure_for_client,
    prepare_round,
    train_client,
)
from fedmoe_app.client.timing import Stopwatch
from fedmoe_app.config.node import Node
from fedmoe_app.config.policy import Policy, RefusedError, node_policy
from fedmoe_app.config.schema import RunConfig
from fedmoe_app.data.sources import load_node_file
from fedmoe_app.wire.records import TrainTask
from tests.conftest import make_config
from tests.toy import TOPICS, write_topics


@pytest.mark.parametrize("columns", [["topic"], ["question", "choices"], []])
def test_columns_that_a_run_guesses_are_asked_for_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, columns: list[str]
) -> None:
    """Multiple choice recognises question, choices and answer without a word of the run."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "a", "choices": ["b", "c"], "answer": 0}\n')
    use_policy(tmp_path, monkeypatch, f"columns = {columns}")
    config = make_config(
        **{"data.source": "nodes", "data.task": "multiple-choice", "data.partition": "iid"}
    )
    with pytest.raises(RefusedError, match="column that the run would read") as refusal:
        load_node_file(rows, config.data, ())
    assert "answer" not in str(refusal.value)
    use_policy(tmp_path, monkeypatch, 'columns = ["question", "choices", "answer"]')
    assert len(load_node_file(rows, config.data, ())) == 1


def test_a_column_that_need_not_be_there_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"instruction": "say", "response": "yes", "context": "secret"}\n')
    config = make_config(
        **{"data.source": "nodes", "data.task": "causal-lm", "data.partition": "iid"}
    )
    assert "secret" in str(load_node_file(rows, config.data, ())[0])
    use_policy(tmp_path, monkeypatch, 'columns = ["instruction", "response"]')
    with pytest.raises(RefusedError):
        load_node_file(rows, config.data, ())
    named = {"data.instruction-field": "instruction", "data.response-field": "response"}
    config = make_config(
        **{"data.source": "nodes", "data.task": "causal-lm", "data.partition": "iid", **named}
    )
    assert "secret" not in str(load_node_file(rows, config.data, ())[0])


def of_nodes(task: str, **keys: str) -> RunConfig:
    return make_config(
        **{"data.source": "nodes", "data.task": task, "data.partition": "iid", **keys}
    )


def use_policy(folder: Path, monkeypatch: pytest.MonkeyPatch, lines: str) -> None:
    policy = folder / "policy.toml"
    policy.write_text(f"apps = []\n{lines}\n")
    policy.chmod(0o600)
    monkeypatch.setenv("FEDMOE_POLICY", str(policy))


def test_a_superexec_by_itself_hands_the_policy_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a container of its own it once had none, and max-epsilon was never asked."""
    use_policy(tmp_path, monkeypatch, "min-examples = 7")
    monkeypatch.setattr("fedmoe_app.config.policy.DEFAULT_PATH", tmp_path / "policy.toml")
    monkeypatch.delenv("FEDMOE_POLICY")
    assert node_policy() is None
    monkeypatch.setenv("FEDMOE_POLICY", "")  # so that it is put back
    found: list[Policy | None] = []
    monkeypatch.setattr("fedmoe_app.launch.warm.start", lambda *_: found.append(node_policy()))
    superexec("supernode:9094")
    assert found[0] is not None and found[0].min_examples == 7


@pytest.mark.parametrize("work", [train_client, measure_for_client, evaluate_client])
def test_a_node_with_too_few_examples_takes_part_in_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: object
) -> None:
    rows = tmp_path / "rows.jsonl"
    use_policy(tmp_path, monkeypatch, "min-examples = 1000")
    write_topics(rows, 4)
    task = TrainTask(1, ModelState(), label_names=tuple(TOPICS))
    with pytest.raises(RefusedError, match="more examples than this node has"):
        work(make_config(**{"data.source": "nodes"}), Node(0, 0, None, str(rows)), task)  # type: ignore[operator]


def test_a_score_leaves_only_where_the_policy_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that needs no scores is let in, and its server could ask for one all the same."""
    rows = write_topics(tmp_path / "rows.jsonl", 4)
    use_policy(tmp_path, monkeypatch, 'may-leave = ["update", "num-examples", "metrics"]')
    task = TrainTask(1, ModelState(), label_names=tuple(TOPICS))
    with pytest.raises(RefusedError, match="does not allow scores to leave"):
        evaluate_client(make_config(), Node(0, 0, None, str(rows)), task)


@pytest.mark.parametrize(
    ("scheme", "joint", "limit"),
    [("fedavg", False, 3), ("pflmoe", False, 6), ("pflmoe", True, 6)],
)
def test_steps_of_a_personal_copy_count_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str, joint: bool, limit: int
) -> None:
    """3 steps a round, and PFL-MoE's second training takes as many again."""
    rows = write_topics(tmp_path / "rows.jsonl", 4)
    keys: dict[str, Any] = {"scheme": scheme, "train.max-steps": 3, "data.source": "nodes"}
    keys |= {"pflmoe.joint": joint, "train.num-train-epochs": 9}
    config, node = make_config(**keys), Node(0, 0, None, str(rows))
    task = TrainTask(1, ModelState(), label_names=tuple(TOPICS))
    use_policy(tmp_path, monkeypatch, f"max-local-steps = {limit}")
    prepare_round(config, node, task, Stopwatch())
    use_policy(tmp_path, monkeypatch, f"max-local-steps = {limit - 1}")
    with pytest.raises(RefusedError, match="train.max-steps = 3") as refusal:
        prepare_round(config, node, task, Stopwatch())
    assert f"at most {limit - 1} (max-local-steps)" in str(refusal.value)
    assert ("scheme = 'pflmoe'" in str(refusal.value)) == (scheme == "pflmoe")
