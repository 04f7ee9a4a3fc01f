"""Whole runs of multiple choice and exact match in one process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedmoe_app import ConfigError, read_metrics, run_in_process
from tests.conftest import flat_config

pytestmark = pytest.mark.usefixtures("no_pictures")

SMALL = {
    "num-server-rounds": 1,
    "data.partition": "iid",
    "data.max-length": 32,
    "data.num-samples": 2,
    "data.max-new-tokens": 4,
}
PLACES = ("sea", "desert", "city", "forest", "sky")


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


def questions(path: Path, count: int) -> str:
    """Questions with three to five options."""
    return write(
        path,
        [
            {
                "question": f"Where is it wet, case {i}?",
                "choices": list(PLACES[: 3 + i % 3]),
                "answerKey": "ABC"[i % 3],
            }
            for i in range(count)
        ],
    )


def run(folder: Path, **overrides: Any) -> Path:
    return run_in_process(flat_config(**SMALL | {"output-dir": str(folder)} | overrides), 2)


def samples(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("preset", "scheme"), [("qwen3moe-tiny", "fedmoe"), ("switch-tiny", "fedavg")]
)
def test_multiple_choice(tmp_path: Path, preset: str, scheme: str) -> None:
    """ARC's shape trains, PIQA's evaluates."""
    goals = [{"goal": f"Dry {i}.", "sol1": "Swim.", "sol2": "Wait.", "label": 1} for i in range(6)]
    result = run(
        tmp_path / "out",
        **{
            "model.name": preset,
            "scheme": scheme,
            "data.task": "multiple-choice",
            "data.source": questions(tmp_path / "arc.jsonl", 24),
            "data.test-source": write(tmp_path / "piqa.jsonl", goals),
        },
    )
    first, last = read_metrics(result)
    assert last["metric"] == "accuracy" and last["status"] == "ok"
    assert last["loss"] < first["loss"]
    assert all(client["accuracy"] is not None for client in last["clients"])
    found = samples(result)
    assert [line["round"] for line in found] == [0, 0, 1, 1]
    assert {line["expected"] for line in found} == {"Wait."}
    assert {line["chosen"] for line in found} <= {"Swim.", "Wait."}
    assert found[0]["prompt"] == found[2]["prompt"] == "Question: Dry 0.\nAnswer:"


def test_exact_match(tmp_path: Path) -> None:
    sums = [{"instruction": f"Add 1 to {i}.", "response": f"#### {i + 1}"} for i in range(16)]
    source = write(tmp_path / "sums.jsonl", sums)
    result = run(
        tmp_path / "out",
        **{
            "data.task": "causal-lm",
            "data.metric": "exact-match",
            "data.source": source,
            "data.test-source": source,
            "data.max-test-examples": 4,
        },
    )
    last = read_metrics(result)[-1]
    assert last["metric"] == "exact match"
    assert 0 <= last["accuracy"] <= 1 and last["loss"] > 0
    assert [line["expected"].startswith("#### ") for line in samples(result)] == [True] * 4
    assert all(
        set(line) == {"round", "prompt", "expected", "generated"} for line in samples(result)
    )


def test_exact_match_beyond_the_context_stops_at_the_start(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", [{"instruction": "a", "response": "#### 1"}] * 4)
    changes = {"data.task": "causal-lm", "data.metric": "exact-match", "data.source": source}
    with pytest.raises(ConfigError, match="more than the 512 tokens"):
        run(tmp_path / "out", **changes, **{"data.max-new-tokens": 500})


def test_no_samples_where_none_are_wanted(tmp_path: Path) -> None:
    source = questions(tmp_path / "arc.jsonl", 12)
    data = {"data.task": "multiple-choice", "data.source": source, "data.test-source": source}
    result = run(tmp_path / "out", **data, **{"data.num-samples": 0, "train.max-steps": 1})
    assert not (result / "samples.jsonl").exists()
