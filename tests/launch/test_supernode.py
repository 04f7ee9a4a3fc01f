"""The SuperExec that goes with a SuperNode's arguments."""

from __future__ import annotations

import sys

import pytest

from fedmoe_app.launch.connections import LaunchError
from fedmoe_app.launch.supernode import superexec_command


def address(*arguments: str) -> str:
    command = superexec_command(arguments, 7)
    assert command is not None
    assert command[:3] == [sys.executable, "-m", "fedmoe_app.launch.warm"]
    assert command[-2:] == ["--parent-pid", "7"]
    return command[command.index("--runtime-api-address") + 1]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--insecure", "--superlink", "host:9092"], "127.0.0.1:9094"),
        (["--port", "9200", "--node-config", "partition-id=0"], "127.0.0.1:9200"),
        (["--port=9200", "--host", "10.0.0.5"], "10.0.0.5:9200"),
        (["--host", "0.0.0.0"], "127.0.0.1:9094"),
        (["--host", "::"], "[::1]:9094"),
    ],
)
def test_it_looks_where_the_supernode_listens(arguments: list[str], expected: str) -> None:
    assert address(*arguments) == expected


def test_the_node_alone_has_none() -> None:
    for arguments in (["--isolation", "process"], ["--isolation=process", "--port", "9200"]):
        secret = ["--superexec-auth-secret-file", "secret"]  # is for whoever runs the messages
        assert superexec_command([*arguments, *secret], 7) is None


def test_the_superlinks_certificates_are_not_those_of_the_runtime_api() -> None:
    command = superexec_command(["--root-certificates", "ca.crt"], 7)
    assert command is not None and "--root-certificates" not in command
    command = superexec_command(["--ssl-ca-certfile", "/etc/runtime-ca.crt"], 7)
    assert command is not None
    assert command[command.index("--root-certificates") + 1] == "/etc/runtime-ca.crt"


@pytest.mark.parametrize(
    "argument",
    [
        "--isolation=subprocess",
        "--superexec-auth-secret-file",
        "--allow-runtime-dependency-installation",
    ],
)
def test_arguments_that_it_cannot_serve_are_refused(argument: str) -> None:
    with pytest.raises(LaunchError, match=argument.partition("=")[0]):
        superexec_command(["--insecure", argument], 7)
