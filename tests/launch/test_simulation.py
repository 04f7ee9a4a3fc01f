"""The process that takes a simulation's run; a whole run with it is in end_to_end/."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from flwr.proto.runtime_pb2 import AcquireTaskRequest, AcquireTaskResponse
from flwr.proto.task_pb2 import Task

from fedmoe_app.launch import simulation
from fedmoe_app.launch.environment import default_environment
from fedmoe_app.launch.processes import free_port
from fedmoe_app.launch.simulation import main, superlink_options, take_run


@contextmanager
def superlink(answers: list[AcquireTaskResponse]) -> Iterator[tuple[str, list[list[str]]]]:
    """Serve these answers to whoever asks for a task; yield the address, and what was asked."""
    asked: list[list[str]] = []

    class Runtime(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            asked.append(list(AcquireTaskRequest.FromString(body).supported_task_types))
            answer = answers.pop(0).SerializeToString()
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Runtime)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def ended() -> int:
    """Return the process id of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_it_asks_for_a_run_until_there_is_one() -> None:
    there = AcquireTaskResponse(task=Task(task_id=1), token="token")
    with superlink([AcquireTaskResponse(), there]) as (address, asked):
        assert take_run(address, os.getpid()) == "token"
    assert asked == [["flwr-simulation"], ["flwr-simulation"]]


def test_it_ends_with_a_superlink_that_never_answered() -> None:
    assert take_run(f"127.0.0.1:{free_port()}", ended()) is None


def test_it_ends_with_a_superlink_that_had_no_run() -> None:
    with superlink([]) as (address, asked):
        assert take_run(address, ended()) is None
    assert asked == []


def test_flowers_own_program_does_it_where_this_one_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as with a release in which a module has another name."""

    class Replaced(Exception):
        """In place of the process' end."""

    def replace(path: str, command: list[str]) -> None:
        raise Replaced(command)

    monkeypatch.setattr(simulation, "_MODULES", ("flwr.no_such_module",))
    monkeypatch.setattr(os, "execvp", replace)
    with pytest.raises(Replaced) as replaced:
        main(["--runtime-api-address", "127.0.0.1:9", "--parent-pid", "7"])
    (command,) = replaced.value.args
    assert command[0] == "flower-superexec"
    assert command[1:] == [
        "--insecure", "--runtime-api-address", "127.0.0.1:9", "--parent-pid", "7"
    ]  # fmt: skip


def test_where_flower_installs_dependencies_it_starts_its_own_programs() -> None:
    environment = default_environment()
    assert superlink_options(environment) == ["--isolation", "process"]
    name = "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"
    assert superlink_options(environment | {name: "0"}) == []
