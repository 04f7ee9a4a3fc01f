"""`make compose-demo` with a real engine: images, certificates, three nodes, a table, and an end.

On a machine without a registry, name a base image that is there, and where pip finds packages, by
the variables of docker/demo.sh: BASE_IMAGE, PIP_OPTIONS and TORCH.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from fedmoe_app.launching.processes import ProcessGroup
from fedmoe_app.report.log import read_metrics
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.slow

PROJECT = "fedmoe-test"
BASE_IMAGE = "python:3.11-slim-bookworm"


def docker(*arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["docker", *arguments], capture_output=True, text=True, timeout=timeout, check=False
    )


@pytest.fixture
def engine() -> None:
    """Skip where the demo cannot run, with the reason."""
    if shutil.which("docker") is None:
        pytest.skip("docker is not installed")
    if (info := docker("info", "--format", "{{.ServerVersion}}")).returncode:
        pytest.skip(f"no Docker engine answers: {info.stderr.strip()}")
    if docker("compose", "version").returncode and shutil.which("docker-compose") is None:
        pytest.skip("neither docker compose nor docker-compose is installed")
    base = os.environ.get("BASE_IMAGE", BASE_IMAGE)
    if docker("image", "inspect", base).returncode and docker("pull", base).returncode:
        pytest.skip(f"the base image {base} is not here and cannot be pulled; set BASE_IMAGE")


def of_the_project(*listing: str) -> list[str]:
    listed = docker(*listing, "--filter", f"label=com.docker.compose.project={PROJECT}")
    return listed.stdout.split()


def private_lines(keys: Path) -> list[str]:
    paths = [p for p in keys.iterdir() if p.suffix not in (".pub", ".crt")]
    lines = [line for path in paths for line in path.read_text().splitlines()]
    return [line for line in lines if len(line) > 16 and "-----" not in line]


def test_the_compose_demo_runs_and_cleans_up(engine: None, tmp_path: Path) -> None:
    demo = tmp_path / "demo"
    variables = {
        "DEMO": str(demo),
        "PROJECT": PROJECT,
        "FEDMOE_TAG": "test",
        "CONTROL_PORT": "18000",
    }
    with ProcessGroup({**os.environ, **variables}) as group:
        make = group.start(["make", "-C", str(REPOSITORY), "compose-demo"], subprocess.PIPE)
        output, _ = make.communicate(timeout=3000)
    log = demo / "containers.log"
    assert make.returncode == 0, (output[-3000:], log.read_text()[-3000:] if log.is_file() else "")

    lines = read_metrics(demo / "results" / "demo")
    assert [line["num_clients"] for line in lines] == [0, 3, 3]
    assert [line["failures"] for line in lines] == [[], [], []]
    assert re.search(r"^ +2 .* 3 +0 ", output, re.MULTILINE), output
    assert [of_the_project(*kind) for kind in (("ps", "-aq"), ("volume", "ls", "-q"))] == [[], []]

    secrets = private_lines(demo / "keys")
    assert len(secrets) > 6
    shown = log.read_text() + output
    assert [line for line in secrets if line in shown] == []
    assert_clean_images(secrets)


def assert_clean_images(secrets: list[str]) -> None:
    """Neither image holds a key or runs as root; torch is in that of the apps only."""
    probe = (
        "import importlib.util, os; print(os.getuid(), importlib.util.find_spec('torch') is None)"
    )
    for image, answer in {"flower": "49999 True", "app": "49999 False"}.items():
        asked = docker("run", "--rm", f"fedmoe/{image}:test", "python", "-c", probe)
        assert asked.stdout.strip() == answer, asked.stderr
        search = f"grep -rlF -e {secrets[0]} -e {secrets[-1]} /app /home /state /opt/*.txt /tmp"
        found = docker("run", "--rm", "--user", "0", f"fedmoe/{image}:test", "sh", "-c", search)
        assert found.stdout == ""
        assert docker("history", "--no-trunc", f"fedmoe/{image}:test").stdout.count("PRIVATE") == 0
