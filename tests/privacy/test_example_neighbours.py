"""Privacy of examples: no row decides whether, or in what way, a node replies.

Neighbours are files with and without one row. What a node answers must be of the same kind for
both: the same names, shapes and counts, or the same refusal.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from fedmoe_app import ClientUpdate, ConfigError, parse_run_config
from fedmoe_app.client.round import train_client
from fedmoe_app.config.node import Node
from fedmoe_app.config.policy import Policy, RefusedError
from fedmoe_app.config.schema import RunConfig
from fedmoe_app.moe.layers import read_state
from fedmoe_app.tasks.classification import SequenceClassification
from fedmoe_app.tasks.setup import load_setup
from fedmoe_app.wire.records import TrainTask
from tests.conftest import flat_config
from tests.privacy.test_example_runs import DP
from tests.toy import TOPICS, write_topics

NAMES = tuple(TOPICS)
KEYS = {
    **DP,
    "data.source": "nodes",
    "data.test-source": "test.jsonl",
    "data.label-names": ", ".join(NAMES),
    "data.max-length": 12,
    "train.max-steps": 2,
    "train.num-train-epochs": 1,
}
GOOD = {"text": "one more", "label": NAMES[0]}


def config(**keys: Any) -> RunConfig:
    return parse_run_config(KEYS | keys)


def reply(path: Path, run: RunConfig | None = None) -> ClientUpdate:
    run = run or config()
    setup = load_setup(run, NAMES)
    state = read_state(setup.model, setup.layers)
    task = TrainTask(1, state, NAMES, base_fingerprint=setup.base_fingerprint, run_key="ab" * 16)
    return train_client(run, Node(0, 0, None, str(path)), task)


def kind(update: ClientUpdate) -> Mapping[str, Any]:
    """All that a reply says but for the noised values themselves."""
    return {
        "changes": {name: tuple(t.shape) for name, t in update.changes.named()},
        "finite": all(bool(t.isfinite().all()) for _, t in update.changes.named()),
        "num_examples": update.num_examples,
        "num_partitions": update.num_partitions,
        "metrics": update.metrics,
        "statistics": update.statistics,
        "routing": {
            name: None if t is None else t.tolist() for name, t in vars(update.routing).items()
        },
        "placement": update.placement,
    }


@pytest.fixture
def rows(tmp_path: Path) -> list[str]:
    write_topics(tmp_path / "topics.jsonl", 4)
    return (tmp_path / "topics.jsonl").read_text().splitlines(keepends=True)


@pytest.mark.parametrize(
    "row",
    [
        json.dumps(GOOD),
        json.dumps({"text": "of no class that the run names", "label": "another"}),
        json.dumps({"text": "no label"}),
        json.dumps({"text": "", "label": NAMES[0]}),
        json.dumps({"text": "far too long " * 10_000, "label": NAMES[0]}),
        json.dumps({"text": ["no", "text"], "label": NAMES[0]}),
        '{"text": "broken off',
    ],
    ids=["good", "unknown", "unlabelled", "empty", "long", "list", "broken"],
)
def test_a_row_more_gives_the_same_kind_of_reply(tmp_path: Path, rows: list[str], row: str) -> None:
    without, with_it = tmp_path / "without.jsonl", tmp_path / "with.jsonl"
    without.write_text("".join(rows))
    with_it.write_text("".join([*rows[:3], f"{row}\n", *rows[3:]]))
    found = kind(reply(with_it))
    assert found == kind(reply(without))
    assert found["finite"]


@pytest.mark.parametrize("first", [json.dumps(GOOD), '{"text": "broken off'])
def test_the_first_row_of_all_is_no_exception(tmp_path: Path, rows: list[str], first: str) -> None:
    """An empty file answers by noise alone, like one of a row and like all others."""
    none, one, many = (tmp_path / f"{name}.jsonl" for name in ("none", "one", "many"))
    none.write_text("")
    one.write_text(f"{first}\n")
    many.write_text("".join(rows))
    assert kind(reply(none)) == kind(reply(one)) == kind(reply(many))


def test_a_pass_that_fails_adds_nothing_and_ends_nothing(
    tmp_path: Path, rows: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for want of memory, which one long text takes and the others do not."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(rows))
    expected = kind(reply(path))
    plain = SequenceClassification.loss

    def loss(self: Any, model: Any, batch: Any) -> torch.Tensor:
        if int(batch.labels[0]) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(self, model, batch)

    monkeypatch.setattr(SequenceClassification, "loss", loss)
    assert kind(reply(path)) == expected


def test_too_few_examples_for_a_policy_is_no_answer(
    tmp_path: Path, rows: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether there is one example more must not decide: the run is refused in any case."""
    policy = tmp_path / "policy.toml"
    policy.write_text(f"apps = []\nmin-examples = {len(rows)}\n")
    policy.chmod(0o600)
    monkeypatch.setenv("FEDMOE_POLICY", str(policy))
    said = []
    for number in (len(rows), len(rows) - 1):
        path = tmp_path / f"{number}.jsonl"
        path.write_text("".join(rows[:number]))
        with pytest.raises(RefusedError, match="does not allow privacy.example-dp = ") as refusal:
            reply(path)
        said.append(str(refusal.value))
    assert said[0] == said[1]


def test_a_policy_refuses_before_rows_are_counted() -> None:
    policy = Policy.model_validate({"apps": [], "min-examples": 2})
    (found,) = policy.refusals(flat_config(**DP))
    assert found.startswith("privacy.example-dp = 'True' (min-examples would tell")
    with pytest.raises(ValueError, match="max-epsilon with min-examples = 2"):
        Policy.model_validate({"apps": [], "min-examples": 2, "max-epsilon": 1.0})


@pytest.mark.parametrize(
    ("keys", "key"),
    [
        (
            {"data.task": "multiple-choice", "data.answer-kind": "index"},
            "question-field",
        ),
        (
            {
                "data.task": "multiple-choice",
                "data.answer-kind": "index",
                "data.question-field": "q",
                "data.options-field": "o",
            },
            "answer-field",
        ),
        ({"data.task": "causal-lm", "data.row-format": "messages"}, "messages-field"),
        ({"data.task": "causal-lm", "data.row-format": "instruction"}, "instruction-field"),
    ],
)
def test_columns_that_rows_would_decide_must_be_named(keys: dict[str, Any], key: str) -> None:
    own = {"data.partition": "iid", "data.label-names": ""} | keys
    with pytest.raises(ConfigError, match=f'data.{key} = "": which columns'):
        config(**own)
