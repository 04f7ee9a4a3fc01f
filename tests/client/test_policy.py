"""What a node's policy asks of every task that reads the node's rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedmoe_app import ModelState
from fedmoe_app.client.round import evaluate_client, measure_for_client, train_client
from fedmoe_app.config.node import Node
from fedmoe_app.config.policy import RefusedError
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
