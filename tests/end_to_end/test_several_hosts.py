"""A SuperLink and its nodes on hosts of their own, TLS and registered keys, one line bad."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fedmoe_app import read_metrics, run_in_process
from fedmoe_app.deploy.certificates import create
from tests.conftest import REPOSITORY, flat_config
from tests.end_to_end.namespaces import separate_hosts, skip_without_namespaces, worsen
from tests.end_to_end.processes import CONNECTION, Keys, deployment

pytestmark = pytest.mark.slow

CLIENTS = 2
CHANGES = {
    "num-server-rounds": 1,
    "min-clients": CLIENTS,
    "data.max-train-examples": 200,
    "data.max-test-examples": 80,
}


def namespaces() -> set[str]:
    listed = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True)
    return {line.split()[0] for line in listed.stdout.splitlines()}


def test_hosts_with_a_bad_line_give_the_same_model(tmp_path: Path) -> None:
    """`fedmoe run` on the SuperLink's host; the model equals that of a run in one process."""
    skip_without_namespaces()
    before = namespaces()
    with separate_hosts(1 + CLIENTS) as hosts:
        print("line of the last node:", worsen(hosts[-1]))
        create(tmp_path / "keys", [hosts[0].address], CLIENTS, days=1)
        with deployment(tmp_path, CLIENTS, keys=Keys(tmp_path / "keys"), hosts=hosts) as flower:
            command = [*hosts[0].prefix, sys.executable, "-m", "fedmoe_app.cli.main", "run"]
            command += [str(REPOSITORY), CONNECTION, "--output", str(tmp_path), "--name", "run"]
            command += ["-c", " ".join(f"{key}={value}" for key, value in CHANGES.items())]
            run = flower.group.start(command, subprocess.PIPE)
            output, _ = run.communicate(timeout=600)
            assert run.returncode == 0, output
        flower.assert_nothing_left()
        lost = packets_dropped(hosts[-1].prefix)
    assert namespaces() == before
    print("packets of it that were dropped:", lost)
    expected = run_in_process(
        flat_config(**CHANGES, **{"output-dir": str(tmp_path), "run-name": "in-process"}), CLIENTS
    )
    assert_same_model(tmp_path / "run", expected)


def packets_dropped(prefix: tuple[str, ...]) -> str:
    """Return what tc counted; only for those who read the test's output."""
    done = subprocess.run(
        [*prefix, "tc", "-s", "qdisc", "show", "dev", "eth0"], capture_output=True, text=True
    )
    return next((line.strip() for line in done.stdout.splitlines() if "dropped" in line), "?")


def assert_same_model(folder: Path, expected: Path) -> None:
    weights, other = (load_file(f / "model" / "model.safetensors") for f in (folder, expected))
    assert weights.keys() == other.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, other[name], atol=1e-5, rtol=1e-4, msg=name)
    last = read_metrics(folder)[-1]
    assert (last["status"], last["num_clients"], last["failures"]) == ("ok", CLIENTS, [])


def test_hosts_are_removed_after_an_error() -> None:
    skip_without_namespaces()
    before = namespaces()
    with pytest.raises(RuntimeError, match="broken"), separate_hosts(2):
        assert len(namespaces() - before) == 3
        raise RuntimeError("broken")
    assert namespaces() == before
