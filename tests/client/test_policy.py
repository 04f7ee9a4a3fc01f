"""What a node's policy asks of every task that reads the node's rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedmoe_app import ModelState
from fedmoe_app.client.round import evaluate_client, measure_for_client, train_client
from fedmoe_app.config.node import Node
from fedmoe_app.config.policy import RefusedError
from fedmoe_app.wire.records import TrainTask
from tests.conftest import make_config
from tests.toy import TOPICS, write_topics


@pytest.mark.parametrize("work", [train_client, measure_for_client, evaluate_client])
def test_a_node_with_too_few_examples_takes_part_in_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: object
) -> None:
    policy, rows = tmp_path / "policy.toml", tmp_path / "rows.jsonl"
    policy.write_text("apps = []\nmin-examples = 1000\n")
    policy.chmod(0o600)
    write_topics(rows, 4)
    monkeypatch.setenv("FEDMOE_POLICY", str(policy))
    task = TrainTask(1, ModelState(), label_names=tuple(TOPICS))
    with pytest.raises(RefusedError, match="more examples than this node has"):
        work(make_config(**{"data.source": "nodes"}), Node(0, 0, None, str(rows)), task)  # type: ignore[operator]
