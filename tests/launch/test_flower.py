"""The launcher against programs that behave like Flower's; real Flower is in end_to_end/."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedmoe_app.launch import flower
from fedmoe_app.launch.connections import Connection, LaunchError, find_connection, write_connection
from fedmoe_app.launch.flower import (
    Outcome,
    Output,
    Simulation,
    last_lines,
    open_log,
    own_superlink,
    run_connected,
    run_simulation,
)
from fedmoe_app.launch.processes import ProcessGroup
from fedmoe_app.results.events import AppDone, Event, to_line

# `flwr run` prints its arguments and the run config that it was given; `flwr ls` the status.
FLWR = """
import json, pathlib, sys
command, *rest = sys.argv[1:]
if command == "run":
    for line in {before!r}:
        print(line)
    print(json.dumps(rest))
    print(json.dumps(pathlib.Path(rest[rest.index("--run-config") + 1]).read_text()))
    sys.exit({code})
if command == "ls":
    print(json.dumps({{"runs": [{{"status": {status!r}, "status-details": {details!r}}}]}}))
"""
STARTED = ["Using SuperLink: x", "Successfully started run 42", "INFO :      round 1"]


class Fakes:
    """Stand-ins for Flower's programs, by name."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        monkeypatch.setattr(flower, "program", lambda name: str(folder / name))

    def write(self, name: str, code: str) -> None:
        (self.folder / name).write_text(f"#!{sys.executable}\n{code}")
        (self.folder / name).chmod(0o755)

    def flwr(
        self, before: list[str], status: str = "", details: str = "N/A", code: int = 0
    ) -> None:
        self.write("flwr", FLWR.format(before=before, status=status, details=details, code=code))


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fakes:
    return Fakes(tmp_path, monkeypatch)


def run(tmp_path: Path, verbose: bool = False) -> tuple[Outcome, list[str], str]:
    log, shown = io.StringIO(), []
    connection = Connection(tmp_path, "lab", "host:8000")
    overrides = {"seed": 7, "data.alpha": 0.5}
    outcome = run_connected(
        Path("/the/app"), overrides, connection, Output(log, shown.append, verbose)
    )
    return outcome, shown, log.getvalue()


def test_a_completed_run(fakes: Fakes, tmp_path: Path) -> None:
    fakes.flwr(STARTED, "finished:completed")
    outcome, shown, log = run(tmp_path)
    assert outcome == Outcome("42", "finished:completed", "")
    assert outcome.completed
    assert shown[0] == "round 1"
    assert json.loads(shown[1])[:3] == ["/the/app", "lab", "--stream"]
    assert json.loads(shown[2]) == "seed = 7\n\n[data]\nalpha = 0.5\n"
    assert log.startswith("Using SuperLink: x\n")


def test_verbose_shows_every_line(fakes: Fakes, tmp_path: Path) -> None:
    fakes.flwr(STARTED, "finished:completed")
    assert run(tmp_path, verbose=True)[1][:3] == STARTED


def test_exit_code_zero_of_a_failed_run_is_not_believed(fakes: Fakes, tmp_path: Path) -> None:
    fakes.flwr(STARTED, "finished:failed", "Simulation failed with exception: no data")
    outcome, _, _ = run(tmp_path)
    assert outcome == Outcome("42", "finished:failed", "no data")
    assert not outcome.completed


def test_a_refused_run_tells_what_flwr_said(fakes: Fakes, tmp_path: Path) -> None:
    box = ["╭─ Error ─────╮", "│ No SuperLink │", "│ answers.     │", "╰──────────────╯"]
    fakes.flwr(box, code=1)
    with pytest.raises(LaunchError, match=r"^flwr run: Error No SuperLink answers\."):
        run(tmp_path)


def test_an_interruption_stops_the_run_at_the_superlink(fakes: Fakes, tmp_path: Path) -> None:
    stopped = tmp_path / "stopped"
    fakes.write(
        "flwr",
        "import pathlib, sys, time\n"
        f"if sys.argv[1] == 'stop': pathlib.Path({str(stopped)!r}).write_text(sys.argv[2])\n"
        "else: print('Successfully started run 42', flush=True); time.sleep(60)\n",
    )

    def interrupt(_: str) -> None:
        raise KeyboardInterrupt

    connection = Connection(tmp_path, "lab")
    output = Output(io.StringIO(), interrupt, verbose=True)
    with pytest.raises(KeyboardInterrupt):
        run_connected(Path(), {}, connection, output)
    assert stopped.read_text() == "42"


def test_a_superlink_that_ends_at_once_is_reported(fakes: Fakes, tmp_path: Path) -> None:
    fakes.write("flower-superlink", "import sys; print('ERROR :     no port'); sys.exit(3)")
    with (
        pytest.raises(LaunchError, match="ended with code 3: error: no port"),
        ProcessGroup(os.environ) as group,
        own_superlink(group, tmp_path),
    ):
        pytest.fail("it is not running")


def test_a_superlink_that_does_not_answer_is_reported(
    fakes: Fakes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flower, "START_TIMEOUT", 0.3)
    fakes.write("flower-superlink", "import time; time.sleep(60)")
    with (
        pytest.raises(LaunchError, match="did not answer on port"),
        ProcessGroup(os.environ) as group,
        own_superlink(group, tmp_path),
    ):
        pytest.fail("it does not answer")
    assert group.alive() == []


# Answers that it is there, until it is ended.
SUPERLINK = """
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
class There(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
port = int(sys.argv[sys.argv.index("--port") + 1])
HTTPServer(("127.0.0.1", port), There).serve_forever()
"""


@pytest.mark.parametrize("done", [True, False])
def test_a_simulation_is_over_when_the_app_has_done_everything(
    done: bool, fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flower would take seconds more; without the app's word its status counts, as ever."""
    monkeypatch.setenv("FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION", "0")  # no other process
    fakes.write("flower-superlink", SUPERLINK)
    lasting = "import sys, time; print(chr(10).join({!r}), flush=True); time.sleep(600)"
    if done:
        fakes.write("flwr", lasting.format([*STARTED, to_line(AppDone())]))
    else:
        fakes.flwr(STARTED, "finished:failed", "Simulation failed with exception: no data")
    shown, heard = list[str](), list[Event]()
    output = Output(io.StringIO(), shown.append, hear=heard.append)
    outcome = run_simulation(Path("/the/app"), {}, Simulation(2), output)
    assert shown[0] == "round 1"
    assert heard == [AppDone()] * done
    assert outcome == (
        Outcome("42", "finished:completed", "")
        if done
        else Outcome("42", "finished:failed", "no data")
    )


def test_simulation_config_has_the_types_that_flower_wants() -> None:
    parse = pytest.importorskip("flwr.common.config").parse_config_args
    text = Simulation(3, cpus=2, gpus=0.0).federation_config()
    assert parse([text]) == {
        "num-supernodes": 3,
        "client-resources-num-cpus": 2,
        "client-resources-num-gpus": 0.0,
    }


def test_a_connection_is_found_in_flwr_home_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flwr"))
    write_connection(tmp_path / "user" / ".flwr", "lab", "far:1")
    write_connection(tmp_path / "user" / ".flwr", "other", "far:2")
    assert find_connection("other") == Connection(tmp_path / "user" / ".flwr", "other", "far:2")
    write_connection(tmp_path / "flwr", "other", "127.0.0.1:3")
    assert find_connection("other").address == "127.0.0.1:3"
    with pytest.raises(LaunchError, match=r"'nowhere': not in .*; connections there: other, other"):
        find_connection("nowhere")


@pytest.mark.parametrize(
    ("address", "is_local"),
    [
        ("127.0.0.1:8000", True),
        ("localhost:8000", True),
        (":local:", True),
        ("10.0.0.1:8000", False),
        ("localhost.example.org:8000", False),
        ("", False),
    ],
)
def test_local_connections(address: str, is_local: bool) -> None:
    assert Connection(Path(), "x", address).is_local is is_local


def test_last_lines_are_readable(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("one\n\x1b[92mINFO \x1b[0m:      two\n\nERROR :     three\n")
    assert last_lines(tmp_path / "log", 2) == "two error: three"


def test_the_installed_flower_has_the_options_that_are_used() -> None:
    """A later Flower that drops an option is noticed here."""
    from fedmoe_app.launch.processes import program

    environment = dict(os.environ) | {"COLUMNS": "200", "FLWR_DISABLE_UPDATE_CHECK": "1"}

    def help_of(*command: str) -> str:
        done = subprocess.run(
            [program(command[0]), *command[1:], "--help"],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
        )
        return done.stdout

    run_help = help_of("flwr", "run")
    assert all(name in run_help for name in ("--stream", "--run-config", "--federation-config"))
    assert "--run-id" in help_of("flwr", "ls")
    superlink_help = help_of("flower-superlink")
    used = ("--simulation", "--insecure", "--host", "--port", "--fleet-api-address")
    assert all(name in superlink_help for name in used)


def test_a_superlink_that_is_gone_is_waited_for_and_then_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`flwr ls` exits 0 then, without a run in what it prints."""
    finished = {"runs": [{"status": "finished:failed", "status-details": "N/A"}]}
    answers = [{"success": False}, {"success": False}, finished]
    monkeypatch.setattr(flower, "_flwr", lambda *_: answers.pop(0) if answers else {})
    monkeypatch.setattr(flower.time, "sleep", lambda seconds: None)
    connection = write_connection(tmp_path, "lab", "127.0.0.1:1")
    assert flower._outcome(connection, "7") == Outcome("7", "finished:failed", "")
    monkeypatch.setattr(flower, "START_TIMEOUT", 0.0)
    with pytest.raises(LaunchError, match=r"127\.0\.0\.1:1 cannot be reached .* can be resumed"):
        flower._outcome(connection, "7")


def test_why_a_simulation_did_not_start_is_told(fakes: Fakes, tmp_path: Path) -> None:
    """Flower's own status says no more than that there was an error; its log says which."""
    cause = "AF_UNIX path length cannot exceed 107 bytes: /a/long/path"
    lines = [*STARTED, f"\x1b[91mERROR \x1b[0m:     An exception occured!! {cause}", "Traceback"]
    failed = "Simulation failed with exception: An error was encountered. Ending simulation."
    fakes.flwr(lines, "finished:failed", failed)
    outcome, _, _ = run(tmp_path)
    assert outcome.details == f"Ray, which runs the clients, failed: {cause}"
    assert not outcome.raised  # not the app


def test_an_exception_of_the_app_is_told_from_other_ends(fakes: Fakes, tmp_path: Path) -> None:
    fakes.flwr(STARTED, "finished:failed", "ServerApp failed with exception: no data")
    assert run(tmp_path)[0].raised
    fakes.flwr(STARTED, "finished:failed", "No heartbeat received from the task")
    assert not run(tmp_path)[0].raised


def test_a_full_disk_ends_the_log_and_not_the_run(fakes: Fakes) -> None:
    fakes.flwr(STARTED, "finished:completed")
    shown: list[str] = []
    with open_log(Path("/dev/full")) as log:
        output = Output(log, shown.append)
        outcome = run_connected(Path("/app"), {}, Connection(fakes.folder, "lab"), output)
    assert outcome.completed
    assert shown[0] == "round 1"
