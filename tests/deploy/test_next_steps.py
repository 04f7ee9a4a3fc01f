"""What ``fedmoe certificates`` prints is a shell script: each part is run as it is printed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from flwr.common.config import parse_config_args

from fedmoe_app import parse_run_config
from fedmoe_app.config.overrides import read_overrides
from tests.conftest import flat_config
from tests.deploy.typed import fedmoe

NOTE_ARGUMENTS = """#!{python}
import json, sys
with open({log!r}, "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
"""


class Shell:
    """Runs printed commands; Flower's and this app's programs only note their arguments."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "arguments"
        folder.mkdir()
        for name in ("fedmoe",):
            (folder / name).write_text(
                NOTE_ARGUMENTS.format(python=sys.executable, log=str(self.log))
            )
            (folder / name).chmod(0o755)

    def run(self, commands: str) -> list[str]:
        """Run them, and return the arguments of the one program among them."""
        path = f"{self.folder}:/usr/bin:/bin"
        subprocess.run(["bash", "-eu", "-c", commands], check=True, env={"PATH": path})
        (line,) = self.log.read_text().splitlines()
        self.log.unlink()
        return json.loads(line)


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path / "programs")


def printed(keys: Path, *options: str) -> list[str]:
    """The parts of the script: SuperLink, registration, node, run."""
    output = fedmoe("certificates", keys, *options)
    parts = re.split(r"^(?=# )", output, flags=re.MULTILINE)[1:]
    assert len(parts) == 4
    return parts


def value_of(option: str, arguments: list[str]) -> str:
    return arguments[arguments.index(option) + 1]


def node_config(arguments: list[str]) -> dict[str, Any]:
    return parse_config_args([value_of("--node-config", arguments)])


@pytest.mark.parametrize("name", ["keys", "my keys", "it's $HOME"])
def test_each_part_runs_as_it_is_printed(
    name: str,
    tmp_path: Path,
    flwr_home: Path,
    shell: Shell,
) -> None:
    keys = tmp_path / name
    superlink, register, node, run = printed(keys, "--host", "lab1.example.org", "--nodes", "3")
    arguments = shell.run(superlink)
    for option in ("--ssl-ca-certfile", "--ssl-certfile", "--ssl-keyfile"):
        assert Path(value_of(option, arguments)).is_relative_to(keys)
        assert Path(value_of(option, arguments)).is_file()

    assert shell.run(register) == ["register", str(keys), "lab"]
    connection = tomllib.loads((flwr_home / "config.toml").read_text())["superlink"]["lab"]
    assert connection["root-certificates"] == str(keys / "ca.crt")

    arguments = shell.run(node)
    assert value_of("--superlink", arguments) == "lab1.example.org:9092"
    assert value_of("--auth-supernode-private-key", arguments) == "node-0"
    assert node_config(arguments) == {"partition-id": 0, "data-path": "/data/train.jsonl"}

    arguments = shell.run(run)
    assert arguments[:3] == ["run", ".", "lab"]
    config = parse_run_config(flat_config() | read_overrides([value_of("-c", arguments)]))
    assert (config.data.source, config.data.label_names) == ("nodes", "negative,positive")


def test_another_node_is_another_first_line(
    tmp_path: Path,
    flwr_home: Path,
    shell: Shell,
) -> None:
    node = printed(tmp_path / "keys", "--host", "lab1", "--nodes", "3")[2]
    changed = re.sub(r"^N=0 DATA=.*$", "N=2 DATA='/my data/a.jsonl'", node, flags=re.MULTILINE)
    arguments = shell.run(changed)
    assert value_of("--auth-supernode-private-key", arguments) == "node-2"
    assert value_of("--port", arguments) == "9096"  # so that three nodes fit on one machine
    assert node_config(arguments) == {"partition-id": 2, "data-path": "/my data/a.jsonl"}


@pytest.mark.parametrize(
    ("hosts", "address", "listens"),
    [
        (["192.0.2.7", "lab1"], "192.0.2.7:9092", "0.0.0.0:9092"),
        (["2001:db8::7"], "[2001:db8::7]:9092", "[::]:9092"),
        (["*.lab.example.org", "lab1"], "lab1:9092", "0.0.0.0:9092"),
        (["*.lab.example.org"], "superlink.lab.example.org:9092", "0.0.0.0:9092"),
    ],
)
def test_the_address_is_one_that_can_be_reached(
    hosts: list[str],
    address: str,
    listens: str,
    tmp_path: Path,
    flwr_home: Path,
    shell: Shell,
) -> None:
    options = [word for host in hosts for word in ("--host", host)]
    superlink, _, node, _ = printed(tmp_path / "keys", *options, "--nodes", "1")
    assert value_of("--fleet-api-address", shell.run(superlink)) == listens
    assert value_of("--superlink", shell.run(node)) == address


def test_a_single_node_is_enough_for_its_run(
    tmp_path: Path,
    flwr_home: Path,
    shell: Shell,
) -> None:
    run = printed(tmp_path / "keys", "--host", "lab1", "--nodes", "1")[3]
    config = parse_run_config(flat_config() | read_overrides([value_of("-c", shell.run(run))]))
    assert config.min_clients == 1


def test_a_connection_that_is_there_is_left_alone(
    tmp_path: Path,
    flwr_home: Path,
    shell: Shell,
) -> None:
    options = ("--host", "lab1", "--nodes", "2")
    written = fedmoe("certificates", tmp_path / "a", *options, "--connection", "lab")
    assert "config.toml <<" not in written
    _, register, _, run = printed(tmp_path / "b", *options)
    assert shell.run(register)[2] == shell.run(run)[2] == "lab-2"
    table = tomllib.loads((flwr_home / "config.toml").read_text())["superlink"]
    assert [table[name]["root-certificates"] for name in ("lab", "lab-2")] == [
        str(tmp_path / "a" / "ca.crt"),
        str(tmp_path / "b" / "ca.crt"),
    ]
