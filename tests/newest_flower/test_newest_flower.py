"""The newest Flower that the index has: a simulation, deployments, faults, each as with 1.39.

The tests themselves are those of 1.39; here they run in an environment of their own, which needs a
package index. ``FEDMOE_NEWEST_FLOWER`` may name one that is there already.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.newest_flower.environment import Environment, make

pytestmark = pytest.mark.newest_flower

END_TO_END = "tests/end_to_end/test_"
CHOSEN = {
    "simulation and deployment give the same model": (f"{END_TO_END}runs.py",),
    "TLS and node authentication": (f"{END_TO_END}security.py",),
    "a clock that is off, a node that is put out": (
        f"{END_TO_END}nodes.py",
        "-k",
        "clock or told_to_end or put_out",
    ),
    "a node that is killed": (
        f"{END_TO_END}faults.py::test_a_node_killed_while_it_trains_is_left_out",
    ),
    "a SuperLink that is killed": (
        f"{END_TO_END}faults.py::test_a_run_that_a_restarted_superlink_ended_is_resumed",
    ),
    "nodes behind a proxy": ("tests/newest_flower/test_one_port.py",),
    "a node's policy": (f"{END_TO_END}policy.py", "tests/launch/test_gate.py"),
    "the calls behind the adapter": (
        "tests/flower",
        "tests/launch/test_clock.py",
        "tests/launch/test_watched.py",
        "tests/launch/test_warm.py",
        "tests/privacy/test_member.py",
        "tests/server/test_transport.py",
    ),
}


@pytest.fixture(scope="module")
def newest(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    made = os.environ.get("FEDMOE_NEWEST_FLOWER")
    return Environment(Path(made)) if made else make(tmp_path_factory.mktemp("newest") / "venv")


def test_the_environment_has_another_line_of_releases(newest: Environment) -> None:
    script = "from fedmoe_app.flower.release import *; print(speaks_http(), caution())"
    assert newest.run("python", "-c", script).strip() == "True"


@pytest.mark.parametrize("name", CHOSEN)
def test_the_same_tests_pass(name: str, newest: Environment) -> None:
    print(newest.test(*CHOSEN[name]))


def test_certificates_prints_commands_of_that_line(newest: Environment, tmp_path: Path) -> None:
    options = ("--host", "lab1.example.org", "--nodes", "2")
    said = newest.run("fedmoe", "certificates", str(tmp_path / "keys"), *options)
    assert "--host '0.0.0.0' --port '8000'" in said
    assert "--superlink lab1.example.org:8000" in said
    assert "let a\n# proxy in front of it pass on /v1/fleet/ alone" in said
    assert "9092" not in said
