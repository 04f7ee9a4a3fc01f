"""A node with a policy, over real gRPC: it takes what its owner allows and says what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk

from fedmoe_app import read_metrics
from fedmoe_app.launch.gate import digest_of, log_path
from tests.conftest import REPOSITORY, flat_config
from tests.end_to_end.processes import WARM_SUPERNODE, deployment

pytestmark = pytest.mark.slow

SMALL = {
    "num-server-rounds": 1,
    "min-clients": 2,
    "max-failed-rounds": 1,
    "data.max-train-examples": 64,
    "data.max-test-examples": 16,
}


def test_only_allowed_runs_reach_a_node(tmp_path: Path, fedmoe_home: Path) -> None:
    policy = tmp_path / "policy.toml"
    digest = digest_of(build_fab_from_disk(REPOSITORY))
    policy.write_text(f'apps = ["{digest}"]\nschemes = ["fedavg"]\nmin-examples = 2\n')
    policy.chmod(0o600)
    supernode = (*WARM_SUPERNODE, "--policy", str(policy))
    with deployment(tmp_path, 2, supernode=supernode) as flower:
        refused = flower.run(REPOSITORY, overrides(tmp_path, "refused", scheme="fcmoe"))
        assert not refused.completed
        assert "this node's policy does not allow scheme = 'fcmoe'" in "\n".join(flower.lines)
        taken = flower.run(REPOSITORY, overrides(tmp_path, "taken", scheme="fedavg"))
        assert taken.completed, "\n".join(flower.lines[-20:])
    flower.assert_nothing_left()
    assert len(read_metrics(tmp_path / "taken")[-1]["clients"]) == 2
    asked = [json.loads(line) for line in log_path().read_text().splitlines()]
    answers = [(line["config"]["scheme"], line["taken"]) for line in asked]
    assert set(answers) == {("fcmoe", False), ("fedavg", True)}
    said = (tmp_path / "node-0.log").read_text()
    assert f"policy: {policy}" in said


def overrides(folder: Path, name: str, **keys: object) -> dict[str, object]:
    changed = SMALL | {"output-dir": str(folder), "run-name": name} | keys
    return {key: flat_config(**changed)[key] for key in changed}
