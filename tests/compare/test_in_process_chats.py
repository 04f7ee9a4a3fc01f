"""Whole runs on conversations and plain text, in one process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from fedmoe_app import read_metrics, run_in_process
from tests.conftest import flat_config
from tests.data import chat_templates as templates
from tests.data.chat_templates import messages

pytestmark = pytest.mark.usefixtures("no_pictures")

SMALL = {
    "num-server-rounds": 1,
    "data.task": "causal-lm",
    "data.partition": "iid",
    "data.max-length": 64,
    "data.num-samples": 2,
    "data.max-new-tokens": 4,
}


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def talks(count: int) -> list[dict[str, Any]]:
    return [
        {"messages": messages(("system", "Count."), f"Now {i}.", f"{i + 1}", "Go on", f"{i + 2}")}
        for i in range(count)
    ]


def run(folder: Path, **overrides: Any) -> Path:
    return run_in_process(flat_config(**SMALL | {"output-dir": str(folder)} | overrides), 2)


@pytest.mark.parametrize("scheme", ["fedmoe", "pflmoe"])
def test_conversations_by_a_template(tmp_path: Path, scheme: str) -> None:
    train = write(tmp_path / "train.jsonl", talks(24))
    result = run(
        tmp_path / "out",
        scheme=scheme,
        **{
            "data.source": train,
            "data.test-source": write(tmp_path / "test.jsonl", talks(3)),
            "data.chat-template": templates.CHATML,
        },
    )
    first, last = read_metrics(result)
    assert last["status"] == "ok" and last["loss"] < first["loss"]
    assert all(client["num_truncated"] > 0 for client in last["clients"])
    sample = json.loads((result / "samples.jsonl").read_text().splitlines()[0])
    assert sample["expected"].startswith("2") and "assistant\n" in sample["prompt"]
    tokenizer = AutoTokenizer.from_pretrained(result / "model")
    assert tokenizer.chat_template == templates.CHATML


def test_exact_match_of_conversations_on_an_encoder_decoder_model(tmp_path: Path) -> None:
    source = write(tmp_path / "train.jsonl", talks(12))
    result = run(
        tmp_path / "out",
        **{
            "model.name": "switch-tiny",
            "data.metric": "exact-match",
            "data.source": source,
            "data.test-source": source,
        },
    )
    last = read_metrics(result)[-1]
    assert last["status"] == "ok" and last["metric"] == "exact match"


def test_plain_text_of_nodes(tmp_path: Path) -> None:
    rows = [{"text": f"good day number {i}, and a good night"} for i in range(20)]
    nodes = [
        {"partition-id": i, "data-path": write(tmp_path / f"{i}.jsonl", rows)} for i in range(2)
    ]
    flat = flat_config(**SMALL | {"output-dir": str(tmp_path / "out"), "data.source": "nodes"})
    first, last = read_metrics(run_in_process(flat, 2, nodes))
    assert last["status"] == "ok" and last["loss"] is not None
    assert first["loss"] is None
