"""The folder of certificates and keys: what is in it, who may read it, that nothing is lost."""

from __future__ import annotations

import os
import stat
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError
from flwr.cli.supernode.register import try_load_public_key
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from fedmoe_app import ConfigError
from fedmoe_app.deploy import certificates
from fedmoe_app.deploy.certificates import create, extend, node_names

HOSTS = ["lab1.example.org", "192.0.2.7"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    create(tmp_path / "keys", HOSTS, num_nodes=2, days=30)
    return tmp_path / "keys"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def verify(folder: Path, name: x509.GeneralName, when: datetime, authority: Path) -> None:
    """Check the server's certificate as a TLS client does."""
    builder = PolicyBuilder().store(Store([certificate(authority / "ca.crt")])).time(when)
    verifier = builder.build_server_verifier(name)  # type: ignore[arg-type]
    verifier.verify(certificate(folder / "server.crt"), [])


def test_only_certificates_and_public_keys_can_be_read_by_others(tmp_path: Path) -> None:
    before = os.umask(0)  # the most careless one
    try:
        made = create(tmp_path / "keys", HOSTS, num_nodes=2, days=30)
        made += extend(tmp_path / "keys", [], num_nodes=1, days=30)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in made}
    public = {"ca.crt", "server.crt", "node-0.pub", "node-1.pub", "node-2.pub"}
    private = {"ca.key", "server.key", "superexec.secret", "node-0", "node-1", "node-2"}
    assert modes == dict.fromkeys(public, 0o644) | dict.fromkeys(private, 0o600)
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700
    assert os.listdir(tmp_path) == ["keys"]


@pytest.mark.parametrize(
    "name",
    [
        x509.DNSName("lab1.example.org"),
        x509.IPAddress(ip_address("192.0.2.7")),
        x509.DNSName("localhost"),
        x509.IPAddress(ip_address("127.0.0.1")),
    ],
)
def test_clients_accept_the_servers_names(folder: Path, name: x509.GeneralName) -> None:
    now = datetime.now(UTC)
    verify(folder, name, now, folder)
    verify(folder, name, now + timedelta(days=29), folder)
    with pytest.raises(VerificationError):
        verify(folder, name, now + timedelta(days=31), folder)


def test_clients_refuse_other_names_and_another_authority(folder: Path, tmp_path: Path) -> None:
    now = datetime.now(UTC)
    create(tmp_path / "other", HOSTS, num_nodes=1, days=30)
    for name in (x509.DNSName("lab2.example.org"), x509.IPAddress(ip_address("192.0.2.8"))):
        with pytest.raises(VerificationError):
            verify(folder, name, now, folder)
    with pytest.raises(VerificationError):
        verify(folder, x509.DNSName("localhost"), now, tmp_path / "other")


def test_flower_reads_the_node_keys(folder: Path) -> None:
    for name in ("node-0", "node-1"):
        private = serialization.load_ssh_private_key((folder / name).read_bytes(), None)
        assert isinstance(private, ec.EllipticCurvePrivateKey)
        assert private.curve.name == "secp384r1"
        registered = try_load_public_key(folder / f"{name}.pub")
        assert registered == public_key_to_bytes(private.public_key())
    assert (folder / "node-0").read_bytes() != (folder / "node-1").read_bytes()
    assert len((folder / "superexec.secret").read_bytes()) == 64


@pytest.mark.parametrize("name", ["ca.crt", "node-0", "notes.txt"])
def test_a_folder_with_a_file_in_it_is_left_alone(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(ConfigError, match=f"{name}: is there already, and nothing is overwritten"):
        create(tmp_path, HOSTS, num_nodes=1, days=1)
    assert contents(tmp_path) == {name: b"mine"}


def test_an_empty_folder_is_taken_and_a_file_is_not(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir(mode=0o755)
    create(tmp_path / "empty", HOSTS, num_nodes=1, days=1)
    assert stat.S_IMODE((tmp_path / "empty").stat().st_mode) == 0o700
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="file: is a file; name a folder"):
        create(tmp_path / "file", HOSTS, num_nodes=1, days=1)


def test_a_full_disk_leaves_nothing_behind(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, write = contents(folder), certificates._write

    def full(path: Path, data: bytes) -> None:
        if path.name in ("server.key", "node-2.pub"):
            raise OSError(28, "No space left on device")
        write(path, data)

    monkeypatch.setattr(certificates, "_write", full)
    with pytest.raises(OSError, match="No space left"):
        create(tmp_path / "new", HOSTS, num_nodes=1, days=1)
    with pytest.raises(OSError, match="No space left"):
        extend(folder, [], num_nodes=1, days=1)
    assert os.listdir(tmp_path) == ["keys"]
    assert contents(folder) == before


def test_nodes_are_added_after_the_last_one(folder: Path) -> None:
    before = contents(folder)
    (folder / "node-0").unlink()  # taken to its machine
    (folder / "node-0.pub").unlink()
    made = extend(folder, [], num_nodes=2, days=1)
    assert [path.name for path in made] == ["node-2", "node-2.pub", "node-3", "node-3.pub"]
    assert node_names(folder) == ["node-1", "node-2", "node-3"]
    after = contents(folder)
    assert all(after[name] == before[name] for name in before if not name.startswith("node-0"))


def test_a_server_certificate_is_renewed_by_the_same_authority(folder: Path) -> None:
    with pytest.raises(ConfigError, match="server.crt: is there already"):
        extend(folder, ["lab2"], num_nodes=1, days=1)
    assert node_names(folder) == ["node-0", "node-1"]  # all or nothing
    for name in ("server.crt", "server.key"):
        (folder / name).rename(folder / f"old-{name}")
    extend(folder, ["lab2"], num_nodes=0, days=1)
    verify(folder, x509.DNSName("lab2"), datetime.now(UTC), folder)


def test_a_server_certificate_never_outlives_its_authority(folder: Path) -> None:
    for name in ("server.crt", "server.key"):
        (folder / name).unlink()
    extend(folder, ["lab2"], num_nodes=0, days=20000)
    ends = certificate(folder / "ca.crt").not_valid_after_utc
    assert certificate(folder / "server.crt").not_valid_after_utc == ends


def test_only_a_folder_with_its_authority_is_extended(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="holds no ca.crt to extend"):
        extend(tmp_path / "empty", [], num_nodes=1, days=1)
    create(tmp_path / "other", HOSTS, num_nodes=1, days=1)
    (folder / "ca.key").write_bytes((tmp_path / "other" / "ca.key").read_bytes())
    with pytest.raises(ConfigError, match=r"ca\.key: is not the key of ca\.crt"):
        extend(folder, ["lab2"], num_nodes=0, days=1)


@pytest.mark.parametrize(
    "host", ["lab1:9092", "https://lab1", "", "192.0.2", "a b", "-lab", "a" * 64]
)
def test_a_host_that_is_no_name_or_address_is_refused(host: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must be a DNS name"):
        create(tmp_path / "keys", [host], num_nodes=1, days=1)
    assert not (tmp_path / "keys").exists()


def test_long_and_wildcard_names_are_taken(tmp_path: Path) -> None:
    long = ".".join(["a" * 60, "b" * 60, "lab"])
    create(tmp_path / "keys", [long, "*.lab.example.org", "2001:db8::7"], num_nodes=1, days=1)
    for name in (x509.DNSName(long), x509.DNSName("x.lab.example.org")):
        verify(tmp_path / "keys", name, datetime.now(UTC), tmp_path / "keys")
    address = x509.IPAddress(ip_address("2001:db8::7"))
    verify(tmp_path / "keys", address, datetime.now(UTC), tmp_path / "keys")
