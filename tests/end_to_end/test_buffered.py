"""Buffered rounds over gRPC: they do not wait for a slow node."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from fedmoe_app import read_metrics
from tests.end_to_end.conftest import HERE, REPOSITORY
from tests.end_to_end.processes import deployment

pytestmark = pytest.mark.slow
SLOW, DELAY = 2, 900  # the third node, seconds
CHANGES: dict[str, Any] = {
    "num-server-rounds": 2,
    "rounds": "buffered",
    "buffer-size": 2,
    "data.max-train-examples": 300,
    "data.max-test-examples": 100,
    "run-name": "run",
}


@pytest.fixture
def slow_app(tmp_path: Path) -> Path:
    app = Path(shutil.copytree(HERE / "slow_app", tmp_path / "app"))
    table = tomllib.loads((app / "pyproject.toml").read_text())
    real = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    table["tool"]["flwr"]["app"]["config"] = real["tool"]["flwr"]["app"]["config"]
    (app / "pyproject.toml").write_text(tomli_w.dumps(table))
    return app


def test_rounds_do_not_wait_for_a_slow_node(slow_app: Path, tmp_path: Path) -> None:
    def node_config(index: int) -> str:
        delay = DELAY if index == SLOW else 0
        return f"partition-id={index} num-partitions=3 delay={delay}"

    with deployment(tmp_path, 3, node_config) as flower:
        outcome = flower.run(slow_app, CHANGES | {"output-dir": str(tmp_path)})
    assert outcome.completed, (outcome, flower.lines[-20:])
    flower.assert_nothing_left()
    lines = read_metrics(tmp_path / "run")
    for line in lines[1:]:
        assert [client["client"] for client in line["clients"]] == [0, 1]
        assert [client["staleness"] for client in line["clients"]] == [0, 0]
        assert line["seconds"]["train"] < DELAY
