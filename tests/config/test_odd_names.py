"""Names that no codec, disk or resolver takes are refused where they come in, with a way out."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fedmoe_app import ConfigError, DataError
from fedmoe_app.cli import main
from fedmoe_app.config.hosts import check_address, is_host
from fedmoe_app.config.lists import file_names
from fedmoe_app.data.sources import load_node_file, load_text_data
from fedmoe_app.deploy.certificates import check_hosts
from fedmoe_app.launch.supernode import check_superlink
from tests.conftest import make_config

LONG_LABEL = "a" * 64 + ".de"
LONG_NAME = "a." * 130 + "de"
# Python's idna codec raises UnicodeError at all of these, or makes another name of them.
ODD = ["xn--\udcff", "ü..de", "ü.de", "a..de", LONG_LABEL, LONG_NAME, "\x00", "", ".", "-a.de"]


@pytest.mark.parametrize("host", ODD)
def test_an_odd_host_is_no_host(host: str) -> None:
    assert not is_host(host)
    with pytest.raises(ConfigError, match="must be a DNS name") as refusal:
        check_hosts([host])
    assert repr(host) in str(refusal.value)
    with pytest.raises(ConfigError, match=r"--superlink .*: must be HOST:PORT") as refusal:
        check_superlink([f"--superlink={host}:9092", "--insecure"])
    assert repr(f"{host}:9092") in str(refusal.value)
    assert "xn--..." in str(refusal.value)


@pytest.mark.parametrize(
    "address",
    [
        "http://lab1.example.org:9092",
        "http://ü..de/",
        "lab1.example.org",
        "lab1.example.org:",
        "lab1.example.org:0",
        "lab1.example.org:65536",
        "lab1.example.org:90a",
        "lab1.example.org:٩",
        "2001:db8::7:9092",
        "[192.0.2.7]:9092",
        "[xn--\udcff]:9092",
        "300.0.0.1:9092",
    ],
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="from 1 to 65535"):
        check_address(address, "--superlink")


@pytest.mark.parametrize(
    "address",
    [
        "lab1.example.org:9092",
        "superlink:9092",
        "my_node-1:9094",
        "xn--mnchen-3ya.de:9092",
        "127.0.0.1:9092",
        "[::1]:9094",
        "[2001:db8::7]:1",
        "localhost:65535",
    ],
)
def test_what_is_an_address_is_taken(address: str) -> None:
    assert check_address(address, "--superlink") == address
    check_superlink(["--insecure", f"--superlink={address}"])


@pytest.mark.parametrize(
    ("command", "option"),
    [
        (["doctor", "--superlink"], "--superlink"),
        (["health"], "HOST:PORT"),
        (["superexec", "--runtime-api-address"], "--runtime-api-address"),
    ],
)
def test_commands_say_which_address_is_wrong(
    command: list[str],
    option: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["fedmoe", *command, "ü..de:9092"])
    with pytest.raises(SystemExit) as end:
        main.main()
    assert end.value.code not in (0, None)
    said = " ".join((shown := capsys.readouterr()).err.split() + shown.out.split())
    assert option in said
    assert "must be HOST:PORT" in said


@pytest.mark.parametrize(
    "name", ["punycode", "idna", "undefined", "unicode_escape", "raw_unicode_escape", "\x00", "ü.."]
)
def test_what_is_no_encoding_of_files_is_refused(name: str) -> None:
    """punycode and idna raise in the middle of a file, at text that is good, and name no place."""
    with pytest.raises(ConfigError, match=r"data.encoding = .*: no encoding of text; .*utf-8"):
        make_config(**{"data.encoding": name})


@pytest.mark.parametrize("kind", ["auto", "glob", "folder"])
@pytest.mark.parametrize(
    "name",
    ["http://ü..de/", "http://ü..de/x.csv", "https://" + LONG_LABEL, "owner/ü..", "http://[::1"],
)
def test_an_odd_source_is_named(name: str, kind: str) -> None:
    keys = {"data.source": name, "data.source-kind": kind, "data.partition": "iid"}
    with pytest.raises(DataError) as error:
        load_text_data(make_config(**keys).data)
    assert name.removesuffix("/") in str(error.value).replace("http:/ü", "http://ü")


@pytest.mark.parametrize("key", ["data.source", "model.name"])
def test_half_a_character_is_no_name(key: str) -> None:
    with pytest.raises(ConfigError, match=rf'{key} = "xn--'):
        make_config(**{key: "xn--\udcff"})


@pytest.mark.parametrize("name", ["a" * 300, "a" * 300 + ".csv", "/" + "a/" * 2100, "ü" * 200])
def test_a_name_longer_than_any_is_refused(name: str, tmp_path: Path) -> None:
    """The operating system's own error came out of the middle of a run."""
    with pytest.raises(DataError, match=r'data.source = "[aü/]+…": a name of \d+ bytes, .* 255'):
        file_names(name)
    with pytest.raises(ConfigError, match=r"model.name = .*: a name of \d+ bytes"):
        make_config(**{"model.name": name})
    with pytest.raises(DataError, match="a name of"):
        load_node_file(name, make_config().data, ("a", "b"))
    kept = "a" * 255
    assert file_names(f"{tmp_path}/{kept}, b.csv") == (f"{tmp_path}/{kept}", "b.csv")


def test_a_file_on_the_disk_with_an_odd_name_is_read(tmp_path: Path) -> None:
    """What the disk takes is a name, be its bytes no UTF-8."""
    for name in ("xn--\udcff.csv", "ü..de.csv"):
        path = tmp_path / name
        path.write_text("text,label\nhello,a\n")
        config = make_config(**{"data.source": "nodes", "data.partition": "iid"}).data
        assert len(load_node_file(path, config, ("a", "b"))) == 1
