"""Nodes that are turned away, and nodes that two runs want: real SuperLinks and SuperNodes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from fedmoe_app import read_metrics, read_status
from fedmoe_app.deploy.certificates import create
from fedmoe_app.launch.clock import check_clock
from fedmoe_app.launch.processes import free_port, program
from tests.conftest import REPOSITORY
from tests.end_to_end.faults import Lab, wait_for
from tests.end_to_end.processes import CONNECTION, LOOPBACK, WARM_SUPERNODE, Keys, deployment
from tests.end_to_end.test_survival import CHANGES, pairs, run

pytestmark = pytest.mark.slow

# Python runs a module of this name when it starts: the node's clock is what a file says.
SHIFTED = """
import datetime, os, pathlib
from flwr.supercore import date

def now():
    shift = float(pathlib.Path(os.environ["CLOCK"]).read_text())
    return datetime.datetime.now(tz=datetime.UTC) + datetime.timedelta(seconds=shift)

date.now = now
"""


class ShiftedNode:
    """Starts `fedmoe supernode` with a clock that the test sets."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.clock, self.log = lab.folder / "clock", lab.folder / "shifted.log"
        (lab.folder / "python").mkdir()
        (lab.folder / "python" / "sitecustomize.py").write_text(SHIFTED)

    def start(self, seconds: float) -> subprocess.Popen[str]:
        self.clock.write_text(str(seconds))
        command = ["env", f"PYTHONPATH={self.lab.folder / 'python'}:{REPOSITORY}"]
        command += [f"CLOCK={self.clock}", program("fedmoe"), "supernode", "--insecure"]
        command += ["--superlink", f"{LOOPBACK}:{self.lab.fleet_port}"]
        command += ["--port", str(free_port([self.lab.port, self.lab.fleet_port]))]
        output = self.log.open("w")
        return self.lab.group.start([*command, "--node-config", "partition-id=0"], output)


def test_a_node_whose_clock_is_off_says_so_and_ends(tmp_path: Path) -> None:
    with Lab(tmp_path) as lab:
        lab.start_superlink()
        node = ShiftedNode(lab)
        process = node.start(1000)
        assert process.wait(timeout=120) == 75
        said = node.log.read_text()
        assert "error: this machine's clock is 17 min ahead of the SuperLink's" in said

        process = node.start(0)  # a good clock that is set wrongly while the node waits for work
        wait_for(lambda: "SuperNode ID:" in node.log.read_text(), "the node")
        node.clock.write_text("-600")
        assert process.wait(timeout=120) == 75
        assert "clock is 10 min behind the SuperLink's" in node.log.read_text()


def test_a_node_that_is_told_to_end_ends_well(tmp_path: Path) -> None:
    with Lab(tmp_path) as lab:
        lab.start_superlink()
        node = ShiftedNode(lab)
        process = node.start(0)
        wait_for(lambda: "SuperNode ID:" in node.log.read_text(), "the node")
        process.terminate()
        assert process.wait(timeout=60) == 0
        assert "error:" not in node.log.read_text()


def test_two_runs_on_the_same_nodes_both_complete(tmp_path: Path) -> None:
    """One waits, says for whom, and both are the run that they would have been alone.

    They start together, so that each may get one of the nodes first.
    """
    folders = tmp_path / "first", tmp_path / "second"
    with deployment(tmp_path, 2, supernode=WARM_SUPERNODE) as flower:
        runs = [run(flower.group, REPOSITORY, CONNECTION, f, *pairs(CHANGES)) for f in folders]
        for each in runs:
            assert each.finish(800) == 0, each.lines[-20:]
    for folder in folders:
        assert read_status(folder)["state"] == "completed"
        assert [line["status"] for line in read_metrics(folder)] == ["ok"] * 5
        assert [line["failures"] for line in read_metrics(folder)] == [[]] * 5
    lines = [line for each in runs for line in each.lines if ": busy with another run" in line]
    assert any("round 1 waits: client " in line for line in lines), [r.lines for r in runs]
    models = [(f / "model" / "model.safetensors").read_bytes() for f in folders]
    assert models[0] == models[1]


def test_a_node_that_is_put_out_says_so_and_ends(tmp_path: Path) -> None:
    """With TLS and a key of its own; Flower's program ends with code 0 and no word."""
    keys = tmp_path / "keys"
    create(keys, [LOOPBACK], 1, 1)
    with deployment(tmp_path, 1, keys=Keys(keys), supernode=WARM_SUPERNODE) as flower:
        assert check_clock(flower.fleet_address, keys / "ca.crt") is None
        log = tmp_path / "node-0.log"
        node_id = log.read_text().partition("SuperNode ID: ")[2].split()[0]
        command = [program("flwr"), "supernode", "unregister", node_id, CONNECTION]
        assert flower.group.start(command, subprocess.DEVNULL).wait(timeout=120) == 0
        assert flower.nodes[0].wait(timeout=120) == 76
        assert "error: the SuperLink turned this node away" in log.read_text()
