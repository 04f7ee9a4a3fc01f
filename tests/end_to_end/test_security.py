"""Who must not get in is refused, and the run goes on with those that may; nothing is leaked."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from fedmoe_app import read_metrics
from fedmoe_app.deploy.certificates import create
from fedmoe_app.flower.fleet import fleet
from fedmoe_app.launch.connections import LaunchError, write_connection
from fedmoe_app.launch.environment import run_environment
from fedmoe_app.launch.flower import register_node
from fedmoe_app.launch.processes import ProcessGroup, free_port, program
from tests.end_to_end.processes import (
    CONNECTED,
    SERVING,
    Deployment,
    Keys,
    deployment,
    numbered,
    start_superlink,
    start_supernode,
    wait_for_line,
)

pytestmark = pytest.mark.slow

PATIENCE = 90.0  # seconds that an intruder is given; it usually ends long before


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys") / "certificates"
    create(folder, ["localhost"], num_nodes=2, days=1)
    return folder


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates and a node key of somebody else."""
    folder = tmp_path_factory.mktemp("stranger") / "certificates"
    create(folder, ["localhost"], num_nodes=1, days=1)
    return folder


@pytest.fixture(scope="module")
def flower(keys: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Two nodes that are let in, over TLS; it must end with nothing left."""
    folder = tmp_path_factory.mktemp("deployment")
    with deployment(folder, 2, keys=Keys(keys)) as running:
        yield running
    running.assert_nothing_left()


@contextmanager
def intruder(flower: Deployment, options: list[str], log: Path) -> Iterator[subprocess.Popen[str]]:
    """One more node with these options; ended when the ``with`` block is left."""
    with ProcessGroup(run_environment(flower.connection.flwr_home)) as group, log.open("w") as file:
        options = [*options, "--port", str(free_port())]
        yield start_supernode(group, flower.fleet_address, options, numbered(3)(2), file)


def attempt(flower: Deployment, options: list[str], log: Path) -> str:
    """Let an intruder try for a while, or until it gives up; return its log."""
    with intruder(flower, options, log) as node:
        deadline = time.monotonic() + PATIENCE
        while node.poll() is None and time.monotonic() < deadline:
            time.sleep(0.2)
    return log.read_text()


def online(flower: Deployment) -> int:
    command = [program("flwr"), "supernode", "list", flower.connection.name, "--format", "json"]
    environment = run_environment(flower.connection.flwr_home)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return sum(node["status"] == "online" for node in json.loads(done.stdout)["nodes"])


def with_key(authority: Path, key: Path) -> list[str]:
    return ["--root-certificates", str(authority), "--auth-supernode-private-key", str(key)]


def ed25519_key(path: Path) -> Path:
    key = ed25519.Ed25519PrivateKey.generate()
    openssh = serialization.PrivateFormat.OpenSSH
    encryption = serialization.NoEncryption()
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, openssh, encryption))
    return path


def test_a_node_that_may_not_join_is_refused_with_the_reason(
    flower: Deployment, keys: Path, stranger: Path, tmp_path: Path
) -> None:
    ca, node = keys / "ca.crt", keys / "node-0"
    attempts = {
        "unregistered": (with_key(ca, stranger / "node-0"), "Failed to activate SuperNode"),
        "without a key": (["--root-certificates", str(ca)], "All SuperNodes must be registered"),
        "wrong kind of key": (with_key(ca, ed25519_key(tmp_path / "key")), "Unable to parse the"),
        "foreign certificate": (with_key(stranger / "ca.crt", node), "CERTIFICATE_VERIFY_FAILED"),
        "key in plain text": (["--insecure", *with_key(ca, node)[2:]], "requires a secure TLS"),
    }
    for name, (options, reason) in attempts.items():
        log = attempt(flower, options, tmp_path / f"{name}.log")
        assert CONNECTED not in log, name
        assert reason in log, (name, log)
    assert online(flower) == 2


def test_the_run_goes_on_without_one_who_speaks_plain_text(
    flower: Deployment, echo_app: Path, tmp_path: Path
) -> None:
    overrides = {"num-server-rounds": 2, "min-clients": 2, "output-dir": str(tmp_path)}
    with intruder(flower, ["--insecure"], tmp_path / "plain.log") as plain:
        while "Connection attempt failed" not in (tmp_path / "plain.log").read_text():
            assert plain.poll() is None
            time.sleep(0.2)
        outcome = flower.run(echo_app, overrides | {"run-name": "one"})
        assert plain.poll() is None  # it is still trying
    assert outcome.completed, outcome
    clients = [[c["client"] for c in line["clients"]] for line in read_metrics(tmp_path / "one")]
    assert clients == [[], [0, 1], [0, 1]]
    assert CONNECTED not in (tmp_path / "plain.log").read_text()


def test_the_control_api_speaks_tls_only_and_proves_who_it_is(
    flower: Deployment, keys: Path, stranger: Path, tmp_path: Path
) -> None:
    address = flower.connection.address
    for name, authority in {"plain": None, "foreign": stranger / "ca.crt"}.items():
        connection = write_connection(tmp_path / name, name, address, authority)
        with pytest.raises(LaunchError, match="Connection to the SuperLink is unavailable"):
            register_node(connection, stranger / "node-0.pub", "stranger")
    known = flower.connection
    assert register_node(known, keys / "node-0.pub", "node-0") is False


def test_a_superlink_whose_certificate_has_expired_gets_no_node(tmp_path: Path) -> None:
    keys, log = tmp_path / "keys", tmp_path / "superlink.log"
    create(keys, ["localhost"], 1, days=30, now=datetime.now(UTC) - timedelta(days=60))
    connection = write_connection(tmp_path / "home", "old", "127.0.0.1:1", keys / "ca.crt")
    port, own = free_port(), free_port()
    with ProcessGroup(run_environment(connection.flwr_home)) as group, log.open("w") as file:
        superlink = start_superlink(group, port, own, file, Keys(keys))
        wait_for_line(superlink, log, SERVING)
        address = f"127.0.0.1:{fleet().port_for_nodes(port, own)}"
        old = Deployment(group, tmp_path, connection, [], address)
        options = with_key(keys / "ca.crt", keys / "node-0")
        node = attempt(old, options, tmp_path / "node.log")
        current = write_connection(tmp_path / "now", "now", f"127.0.0.1:{port}", keys / "ca.crt")
        with pytest.raises(LaunchError, match="unavailable"):
            register_node(current, keys / "node-0.pub", "node-0")
    assert CONNECTED not in node
    assert "certificate has expired" in node
    old.assert_nothing_left()
