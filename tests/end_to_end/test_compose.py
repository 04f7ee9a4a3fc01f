"""The compose files with a real engine: `make compose-demo`, and the files of several machines.

On a machine without a registry, name a base image that is there, and where pip finds packages, by
the variables of docker/demo.sh: BASE_IMAGE, PIP_OPTIONS and TORCH.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from ipaddress import ip_network
from pathlib import Path

import pytest

from fedmoe_app import read_metrics
from fedmoe_app.launch.processes import ProcessGroup, free_port
from tests.bases import save_base
from tests.conftest import REPOSITORY
from tests.end_to_end.test_leaks import LABELS, good_lines

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


class Side:
    """One machine's compose file with its settings; its project is taken down in the end."""

    def __init__(self, kind: str, settings: Mapping[str, object], folder: Path) -> None:
        env_file = folder / f"{kind}.env"
        settings = {**settings, "COMPOSE_PROJECT_NAME": f"fedmoe-test-{kind}"}
        env_file.write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
        v2 = docker("compose", "version").returncode == 0
        self._command = ["docker", "compose"] if v2 else ["docker-compose"]
        self._command += ["--env-file", str(env_file)]
        self._command += ["-f", str(REPOSITORY / "docker" / f"compose.{kind}.yaml")]

    def __call__(self, *arguments: str, timeout: float = 600) -> str:
        done = subprocess.run(
            [*self._command, *arguments],
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**os.environ, "FEDMOE_TAG": "test"},
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    @contextmanager
    def up(self) -> Iterator[None]:
        try:
            self("up", "--detach", "--no-build")
            yield
        finally:
            self("--profile", "tools", "down", "--volumes", "--timeout", "10")


def own_by_the_containers(folder: Path) -> str:
    """Give the folder to the containers' user; return its numbers."""
    if os.getuid():
        return f"{os.getuid()}:{os.getgid()}"
    subprocess.run(["chown", "-R", "49999:49999", str(folder)], check=True)
    return "49999:49999"


def make_keys(folder: Path, user: str, host: str) -> None:
    """Run `fedmoe certificates` in a container; lay the public keys beside and the node's apart."""
    made = docker(
        *("run", "--rm", "--user", user, "-v", f"{folder}:/lab", "fedmoe/flower:test"),
        *("fedmoe", "certificates", "/lab/keys", "--host", host, "--nodes", "2"),
    )
    assert made.returncode == 0, made.stderr
    for path, names in (("keys/public", ["node-0.pub"]), ("node-keys", ["ca.crt", "node-0"])):
        (folder / path).mkdir()
        for name in names:
            shutil.copy(folder / "keys" / name, folder / path)


def test_a_server_and_a_node_each_of_a_file_of_its_own(engine: None, tmp_path: Path) -> None:
    for name in ("results", "data", "models"):
        (tmp_path / name).mkdir()
    (tmp_path / "data" / "train.jsonl").write_text(good_lines("Some text of the node"))
    save_base(tmp_path / "models" / "tiny", "Qwen3Moe")
    # Two projects share no network: the node reaches the port that the server's machine publishes.
    listed = docker("network", "inspect", "bridge", "--format", "{{json .IPAM.Config}}")
    gateway = str(next(ip_network(json.loads(listed.stdout)[0]["Subnet"]).hosts()))
    user, fleet = own_by_the_containers(tmp_path), free_port()
    common = {"RUN_AS": user, "DATA": tmp_path / "data", "MODELS": tmp_path / "models"}
    own = {"KEYS": tmp_path / "keys", "RESULTS": tmp_path / "results", "FLEET_PORT": fleet}
    lab = Side("server", common | own | {"CONTROL_PORT": free_port([fleet])}, tmp_path)
    config = "'partition-id=0 data-path=\"/data/train.jsonl\"'"
    own = {"KEYS": tmp_path / "node-keys", "NODE": 0, "SUPERLINK": f"{gateway}:{fleet}"}
    node = Side("node", common | own | {"NODE_CONFIG": config}, tmp_path)
    lab("build", "superlink", "server-app", timeout=3000)
    make_keys(tmp_path, user, gateway)
    own_by_the_containers(tmp_path)
    with lab.up(), node.up():
        assert "node-0: registered" in lab("run", "--rm", "-T", "register")
        wait_for_node(lab)
        output = lab(
            *("run", "--rm", "-T", "cli", "fedmoe", "run", "/app", "lab", "--rounds", "1"),
            *("--output", "/state/results", "--name", "apart", "-c", 'model.name="/models/tiny"'),
            *("-c", f"data.source='nodes' data.label-names='{LABELS}' min-clients=1"),
            timeout=1800,
        )
        assert "apart" in lab("run", "--rm", "-T", "cli", "fedmoe", "status")
    assert re.search(r"^ +1 .* 1 +0 ", output, re.MULTILINE), output
    assert read_metrics(tmp_path / "results" / "apart")[-1]["num_clients"] == 1


def wait_for_node(lab: Side) -> None:
    """Wait until the SuperLink has a node that is there, as it says itself."""
    deadline = time.monotonic() + 300
    while "online" not in lab("run", "--rm", "-T", "cli", "flwr", "supernode", "list", "lab"):
        assert time.monotonic() < deadline
        time.sleep(5)
