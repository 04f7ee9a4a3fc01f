"""The real app over real Flower: the same global model in process, simulated and over gRPC."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fedmoe_app import read_metrics, run_in_process
from fedmoe_app.launch.environment import run_environment
from fedmoe_app.launch.processes import ProcessGroup
from tests.conftest import REPOSITORY, flat_config
from tests.end_to_end.processes import FLOWER_SUPERNODE, WARM_SUPERNODE, deployment

pytestmark = pytest.mark.deployment

CLIENTS = 3
CHANGES: dict[str, Any] = {
    "num-server-rounds": 2,
    "min-clients": CLIENTS,
    "data.max-train-examples": 480,
    "data.max-test-examples": 200,
}


def overrides(folder: Path, name: str) -> dict[str, Any]:
    return CHANGES | {"output-dir": str(folder), "run-name": name}


@pytest.fixture(scope="module")
def in_process(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run in this process, which the others must equal."""
    folder = tmp_path_factory.mktemp("in-process")
    return run_in_process(flat_config(**overrides(folder, "run")), CLIENTS)


def assert_same_run(folder: Path, expected: Path) -> None:
    """Same rounds and clients; same global model and accuracy within float tolerance."""
    weights, other = (load_file(f / "model" / "model.safetensors") for f in (folder, expected))
    assert weights.keys() == other.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, other[name], atol=1e-5, rtol=1e-4, msg=name)
    for line, same in zip(read_metrics(folder), read_metrics(expected), strict=True):
        assert line["status"] == "ok"
        assert line["failures"] == []
        assert line["accuracy"] == pytest.approx(same["accuracy"], abs=0.011)
        assert [c["client"] for c in line["clients"]] == [c["client"] for c in same["clients"]]
        assert line["bytes_up"] == same["bytes_up"]


def test_the_simulation_gives_the_same_model(in_process: Path, tmp_path: Path) -> None:
    """`fedmoe run` from another folder, as a user types it."""
    pairs = [f"{key}={value}" for key, value in CHANGES.items()]
    command = [sys.executable, "-m", "fedmoe_app.cli.main", "run", str(REPOSITORY)]
    command += ["--clients", str(CLIENTS), "--output", str(tmp_path), "--name", "run"]
    with ProcessGroup(run_environment(tmp_path / "flwr")) as group:
        run = group.start([*command, "-c", " ".join(pairs)], subprocess.PIPE)
        output, _ = run.communicate(timeout=300)
        assert run.returncode == 0, output
        assert group.alive() == []
    assert output.splitlines()[-1] == f"results: {tmp_path / 'run'}"
    assert "round 2/2: 3 clients train" in output
    assert_same_run(tmp_path / "run", in_process)


@pytest.mark.parametrize(
    "supernode", [pytest.param(FLOWER_SUPERNODE, marks=pytest.mark.slow), WARM_SUPERNODE], ids=str
)
def test_three_nodes_over_grpc_give_the_same_model(
    supernode: tuple[str, ...], in_process: Path, tmp_path: Path
) -> None:
    with deployment(tmp_path, CLIENTS, supernode=supernode) as flower:
        outcome = flower.run(REPOSITORY, overrides(tmp_path, "run"))
    assert outcome.completed, (outcome, flower.lines[-20:])
    flower.assert_nothing_left()
    assert_same_run(tmp_path / "run", in_process)
