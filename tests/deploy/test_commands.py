"""``fedmoe certificates``, ``register`` and ``health`` as they are typed."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from flwr.supercore.grpc_health import run_health_server_grpc_no_tls
from typer.testing import CliRunner

from fedmoe_app import ConfigError
from fedmoe_app.cli.main import app
from fedmoe_app.launch import flower
from fedmoe_app.launch.connections import Connection, LaunchError
from fedmoe_app.launch.processes import free_port
from fedmoe_app.server.client_list import fingerprint, read_client_list
from tests.deploy.typed import fedmoe


def test_certificates_prints_the_files_and_what_comes_next(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    output = fedmoe("certificates", keys, "--host", "lab1", "--host", "192.0.2.7", "--nodes", "2")
    lines = output.splitlines()
    assert lines[:2] == [str(keys / "ca.crt"), str(keys / "ca.key")]
    assert f"fedmoe register {keys} lab" in output
    assert "fedmoe supernode --superlink lab1:9092" in output
    assert "PRIVATE" not in output
    assert fedmoe("certificates", keys, "--add", "--nodes", "1").splitlines() == [
        str(keys / "node-2"),
        str(keys / "node-2.pub"),
    ]


def test_certificates_writes_the_connection_and_keeps_the_others(
    tmp_path: Path, flwr_home: Path
) -> None:
    flwr_home.mkdir()
    (flwr_home / "config.toml").write_text('# mine\n[superlink]\ndefault = "local"\n')
    options = ("--host", "lab1", "--nodes", "1", "--connection", "lab")
    fedmoe("certificates", tmp_path / "keys", *options)
    text = (flwr_home / "config.toml").read_text()
    assert text.startswith("# mine\n")
    assert tomllib.loads(text)["superlink"] == {
        "default": "local",
        "lab": {
            "address": "127.0.0.1:8000",
            "root-certificates": str(tmp_path / "keys" / "ca.crt"),
        },
    }
    with pytest.raises(LaunchError, match="'lab': .*config.toml has one already"):
        fedmoe("certificates", tmp_path / "more", *options)
    assert not (tmp_path / "more").exists()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--nodes", "1"), "--host"),
        (("--host", "lab1"), "--nodes"),
        (("--add",), "--add: give --nodes, --host or both"),
    ],
)
def test_certificates_says_what_is_missing(
    options: tuple[str, ...], complaint: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        fedmoe("certificates", tmp_path / "keys", *options)
    assert not (tmp_path / "keys").exists()


def test_register_goes_through_the_nodes_in_order(
    tmp_path: Path, flwr_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--host", "lab1", "--nodes", "11", "--connection", "lab")
    fedmoe("certificates", tmp_path / "keys", *options)

    def answer(connection: Connection, *arguments: str) -> dict[str, object]:
        if arguments[-1] == "node-1":
            raise LaunchError("flwr supernode: Error Public key already in use while registering")
        return {}

    monkeypatch.setattr(flower, "_flwr", answer)
    lines = fedmoe("register", tmp_path / "keys", "lab").splitlines()
    assert lines[:3] == [
        "node-0: registered",
        "node-1: was registered before",
        "node-2: registered",
    ]
    assert [line.split(":")[0] for line in lines] == [f"node-{n}" for n in range(11)]


def test_register_writes_the_client_list(
    tmp_path: Path, flwr_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = tmp_path / "keys"
    fedmoe("certificates", keys, "--host", "lab1", "--nodes", "2", "--connection", "lab")
    monkeypatch.setattr(flower, "_flwr", lambda connection, *arguments: {})
    lines = fedmoe("register", keys, "lab", "--client", "5", "--client", "0").splitlines()
    assert lines[:4] == [
        *("node-0: registered", "node-1: registered"),
        *("client 5 = node-0", "client 0 = node-1"),
    ]
    path = keys / "clients.toml"
    assert lines[4] == (
        f"{path}: 2 clients; a run takes nobody else with -c 'client-list=\"{path}\"'"
    )
    listed = {fingerprint(keys / "node-0.pub"): 5, fingerprint(keys / "node-1.pub"): 0}
    assert read_client_list(path).by_key == listed
    fedmoe("certificates", keys, "--add", "--nodes", "1")
    other = tmp_path / "other.toml"
    output = fedmoe(
        *("register", keys / "node-2.pub", "lab", "--client", "7", "--client-list", other)
    )
    assert output.startswith("node-2: registered\nclient 7 = node-2\n")
    assert read_client_list(other).by_key == {fingerprint(keys / "node-2.pub"): 7}


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--client", "1"), r"--client: 1 numbers for 2 keys \(node-0, node-1\)"),
        (("--client", "1", "--client", "1"), "--client: 1 is given twice"),
        (("--client", "1", "--client", "-1"), "--client -1: must be 0 to 999999999"),
        (("--client-list", "x.toml"), "--client-list x.toml: give --client, too"),
    ],
)
def test_numbers_that_cannot_be_listed_register_nobody(
    options: tuple[str, ...],
    complaint: str,
    tmp_path: Path,
    flwr_home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keys = tmp_path / "keys"
    fedmoe("certificates", keys, "--host", "lab1", "--nodes", "2", "--connection", "lab")
    monkeypatch.setattr(flower, "_flwr", lambda *arguments: pytest.fail("registered"))
    with pytest.raises(ConfigError, match=complaint):
        fedmoe("register", keys, "lab", *options)
    assert not (keys / "clients.toml").exists()


def test_register_needs_keys_and_a_superlink(tmp_path: Path, flwr_home: Path) -> None:
    with pytest.raises(LaunchError, match="connection 'lab': not in"):
        fedmoe("register", tmp_path, "lab")
    options = ("--host", "lab1", "--nodes", "1", "--connection", "lab")
    fedmoe("certificates", tmp_path / "keys", *options)
    with pytest.raises(ConfigError, match="holds no public key node-N.pub"):
        fedmoe("register", tmp_path, "lab")


def test_health_asks_flowers_health_server() -> None:
    address = f"127.0.0.1:{free_port()}"
    server = run_health_server_grpc_no_tls(address)
    try:
        assert fedmoe("health", address) == f"{address}: serving\n"
    finally:
        server.stop(grace=0)
    result = CliRunner().invoke(app, ["health", f"127.0.0.1:{free_port()}"])
    assert result.exit_code == 1
    assert "not serving" in result.output
