"""The client list: written by fedmoe register, read by a run; fingerprints as OpenSSH's."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from flwr.proto.node_pb2 import NodeInfo

from fedmoe_app import ConfigError
from fedmoe_app.deploy.authority import make_node_key
from fedmoe_app.server.client_list import add_to_client_list, fingerprint, read_client_list


@pytest.fixture
def keys(tmp_path: Path) -> list[Path]:
    files = [tmp_path / f"node-{i}.pub" for i in range(3)]
    for file in files:
        file.write_bytes(make_node_key(file.stem).public)
    return files


def pem(file: Path) -> bytes:
    """The key as Flower hands it over."""
    return serialization.load_ssh_public_key(file.read_bytes()).public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def test_what_is_written_is_read_and_finds_flowers_nodes(keys: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "clients.toml"
    add_to_client_list(path, {7: keys[0]})
    add_to_client_list(path, {0: keys[1], 7: keys[0]})
    found = read_client_list(path)
    assert found.by_key == {fingerprint(keys[1]): 0, fingerprint(keys[0]): 7}
    nodes = [NodeInfo(node_id=100 + i, public_key=pem(file)) for i, file in enumerate(keys)]
    nodes += [NodeInfo(node_id=200), NodeInfo(node_id=201, public_key=b"no key")]
    assert found.clients(nodes) == {100: 7, 101: 0}


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs ssh-keygen")
def test_the_fingerprint_is_that_of_ssh_keygen(keys: list[Path]) -> None:
    command = ["ssh-keygen", "-lf", str(keys[0])]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert fingerprint(keys[0]) in shown.split()


def test_a_number_or_key_that_is_taken_is_refused_and_nothing_changed(
    keys: list[Path], tmp_path: Path
) -> None:
    path = tmp_path / "clients.toml"
    add_to_client_list(path, {0: keys[0]})
    before = path.read_text()
    with pytest.raises(ConfigError, match="client 0 for node-1.pub: another key has it"):
        add_to_client_list(path, {1: keys[2], 0: keys[1]})
    with pytest.raises(ConfigError, match="client 5 for node-0.pub: the key is client 0's"):
        add_to_client_list(path, {5: keys[0]})
    assert path.read_text() == before


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "no table"),
        ("[clients]\n", "lists nobody"),
        ("clients = 3", "no table"),
        ("[clients]\nx = 1", "'x' is no client's number"),
        ("[clients]\n-1 = 'SHA256:a'", "'-1' is no client's number"),
        ("[clients]\n1000000000 = 'SHA256:a'", "is no client's number"),
        ("[clients]\n0 = 12", "client 0: give the fingerprint"),
        ("[clients]\n0 = 'MD5:a'", "client 0: give the fingerprint"),
        ("[clients]\n0 = 'SHA256:a'\n1 = 'SHA256:a'", "behind two numbers"),
        ("[clients", "Expected"),
    ],
)
def test_a_broken_list_stops_the_run(text: str, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "clients.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=complaint):
        read_client_list(path)


def test_a_missing_list_or_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_client_list(tmp_path / "clients.toml")
    (tmp_path / "node-0.pub").write_text("ecdsa-sha2-nistp384 ???")
    with pytest.raises(ConfigError, match="node-0.pub: not a public key of OpenSSH"):
        fingerprint(tmp_path / "node-0.pub")
