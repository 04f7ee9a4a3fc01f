"""After a real run with faults, no log and no result holds a data row or a piece of a key."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedmoe_app import read_metrics
from fedmoe_app.deploy.certificates import create
from tests.conftest import REPOSITORY
from tests.end_to_end.processes import Keys, deployment

pytestmark = pytest.mark.slow

ROW = "Mrs Sentinel of ward seven"
SERVER_ROW = "Mr Watchman of the gate"
# What node N brings: one good file and two that are broken where a row could be quoted.
NODES = 3
LABELS = "calm,angry"


def good_lines(text: str, count: int = 40) -> str:
    labels = LABELS.split(",")
    rows = ({"text": f"{text} {n}", "label": labels[n % 2]} for n in range(count))
    return "\n".join(json.dumps(row) for row in rows) + "\n"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "test.jsonl").write_text(good_lines(SERVER_ROW))
    (folder / "node-0.jsonl").write_text(good_lines(ROW))
    (folder / "node-1.csv").write_text(f"{ROW},calm\n" * 5)  # no header
    (folder / "node-2.jsonl").write_text(good_lines(ROW) + json.dumps({"text": ROW, "label": ROW}))
    return folder


def secrets_of(keys: Path) -> Iterator[str]:
    """Every line of every private file that is not a frame around it."""
    for path in (keys / "ca.key", keys / "server.key", keys / "superexec.secret"):
        yield from path.read_text().splitlines()
    for node in range(NODES):
        yield from (keys / f"node-{node}").read_text().splitlines()


def test_no_log_and_no_result_holds_rows_or_keys(data: Path, tmp_path: Path) -> None:
    keys, files = tmp_path / "keys", sorted(data.glob("node-*"))
    create(keys, ["localhost"], NODES, days=1)
    overrides = {
        "num-server-rounds": 1,
        "min-clients": 1,
        "output-dir": str(tmp_path),
        "run-name": "run",
        "data.source": "nodes",
        "data.test-source": str(data / "test.jsonl"),
        "data.label-names": LABELS,
    }

    def node_config(index: int) -> str:
        return f'partition-id={index} data-path="{files[index]}"'

    with deployment(tmp_path, NODES, node_config, Keys(keys)) as flower:
        outcome = flower.run(REPOSITORY, overrides)
    assert outcome.completed, (outcome, flower.lines[-20:])
    failures = json.dumps(read_metrics(tmp_path / "run")[-1]["failures"])
    assert "client 1" in failures and "no such column" in failures
    assert "client 2" in failures and "its label is not one of" in failures

    looked_at = [*tmp_path.glob("*.log"), *(p for p in (tmp_path / "run").rglob("*.*"))]
    assert {"superlink.log", "run.log", "node-0.log", "metrics.jsonl"} <= {
        path.name for path in looked_at
    }
    words = ["Sentinel", "Watchman", "PRIVATE KEY"]
    words += [line for line in secrets_of(keys) if len(line) > 16 and "-----" not in line]
    assert len(words) > 3 + 2 * NODES
    for path in looked_at:
        text = path.read_bytes().decode("utf-8", errors="replace")
        assert [word for word in words if word in text] == [], path
