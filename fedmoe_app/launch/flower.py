"""Start Flower, run the app, learn how the run ended.

What Flower's programs read and say is in :mod:`fedmoe_app.flower.words`.
"""

from __future__ import annotations

import io
import json
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from http.client import HTTPConnection
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import tomli_w

from fedmoe_app.config.names import LOOPBACK
from fedmoe_app.flower.words import (
    COMPLETED,
    ENGINE_ERROR,
    ENGINE_FAILED,
    FAILED_WITH,
    KNOWN_KEY,
    STARTED,
    STOPPED,
)
from fedmoe_app.launch import simulation
from fedmoe_app.launch.app_folder import lean_copy
from fedmoe_app.launch.connections import Connection, LaunchError, write_connection
from fedmoe_app.launch.environment import run_environment
from fedmoe_app.launch.log_filter import COLOUR, LogFilter
from fedmoe_app.launch.processes import ProcessGroup, free_port, program
from fedmoe_app.results.events import PREFIX, AppDone, Event, from_line
from fedmoe_app.results.folder import nest
from fedmoe_app.shown.logs import output_line

if TYPE_CHECKING:
    from collections.abc import Iterator

OWN_CONNECTION = "fedmoe"
START_TIMEOUT = 60.0  # seconds

_BOX = re.compile(r"[╭╮╰╯│─]+")

Flat = Mapping[str, bool | float | int | str]


class SuperLinkLostError(LaunchError):
    """A run had begun, and then its SuperLink could not be reached any more."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended: Flower's run id, status (``finished:completed``, ...) and details.

    ``raised`` tells that the app itself ended the run, by an exception.
    """

    run_id: str
    status: str
    details: str
    raised: bool = field(default=False, compare=False)

    @property
    def completed(self) -> bool:
        """Whether the run came to its end without an error."""
        return self.status == COMPLETED

    @property
    def was_stopped(self) -> bool:
        """Whether somebody stopped the run."""
        return self.status == STOPPED


@dataclass(frozen=True)
class Simulation:
    """The simulated federation: number of nodes and what one of them may use."""

    num_clients: int
    cpus: int = 1
    gpus: float = 0.0

    def federation_config(self) -> str:
        """Return the value of ``flwr run --federation-config``."""
        return (
            f"num-supernodes={self.num_clients} client-resources-num-cpus={self.cpus} "
            f"client-resources-num-gpus={float(self.gpus)}"
        )


@dataclass(frozen=True)
class Output:
    """Where a run's output goes: its lines to ``log``, the readable ones to ``show``, too.

    Its events are told to ``hear``.
    """

    log: IO[str]
    show: Callable[[str], None]
    verbose: bool = False
    hear: Callable[[Event], None] = lambda event: None

    def write(self, text: str) -> None:
        """Add to the log; where its disk is full the log ends, and not the run."""
        with suppress(OSError):
            self.log.write(text)
            self.log.flush()


def open_log(path: Path) -> IO[str]:
    """Open a log of which nothing waits in memory: a full disk must not be an error at its end."""
    return io.TextIOWrapper(path.open("wb", buffering=0), encoding="utf-8", write_through=True)


def run_simulation(app: Path, overrides: Flat, simulation: Simulation, output: Output) -> Outcome:
    """Run the app on simulated nodes and an own SuperLink that ends with the run.

    Raises:
        LaunchError: when the SuperLink does not start or refuses the run.
    """
    with tempfile.TemporaryDirectory(prefix="fedmoe-") as folder:
        home = Path(folder)
        group = ProcessGroup(run_environment(home))
        with group, own_superlink(group, home) as connection:
            extra = ("--federation-config", simulation.federation_config())
            outcome = _run(group, app, connection, overrides, output, extra, alone=True)
            if outcome.completed:
                group.kill()  # Flower and Ray would take seconds to end, and hold nothing any more
            return outcome


def run_connected(app: Path, overrides: Flat, connection: Connection, output: Output) -> Outcome:
    """Run the app on the nodes of a SuperLink that is there; an interruption stops the run.

    Raises:
        LaunchError: when the SuperLink cannot be reached or refuses the run.
    """
    with ProcessGroup(run_environment(connection.flwr_home)) as group:
        return _run(group, app, connection, overrides, output)


@contextmanager
def own_superlink(group: ProcessGroup, home: Path) -> Iterator[Connection]:
    """Start a SuperLink for simulations on a free loopback port; yield the connection to it."""
    port = free_port()
    connection = write_connection(home, OWN_CONNECTION, f"{LOOPBACK}:{port}")
    with (home / "superlink.log").open("w+", encoding="utf-8") as log:
        command = [program("flower-superlink"), "--simulation", "--insecure"]
        command += ["--host", LOOPBACK, "--port", str(port)]
        leave_run = simulation.superlink_options(run_environment(home))
        process = group.start([*command, *leave_run], log)
        if leave_run:
            simulation.start(group, connection.address, process.pid)
        wait_for_superlink(process, port, home / "superlink.log")
        yield connection


def register_node(connection: Connection, public_key: Path, name: str) -> bool:
    """Let the node with this key join; tell whether that is new.

    Raises:
        LaunchError: when the SuperLink cannot be reached or refuses the key.
    """
    try:
        _flwr(
            *(connection, "supernode", "register", str(public_key), connection.name),
            *("--name", name),
        )
    except LaunchError as error:
        if KNOWN_KEY in str(error):
            return False
        raise
    return True


def wait_for_superlink(process: subprocess.Popen[str], port: int, log: Path) -> None:
    """Wait until the SuperLink's control API answers.

    Raises:
        LaunchError: when the process ends or does not answer within a minute.
    """
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise LaunchError(
                f"flower-superlink ended with code {process.returncode}: {last_lines(log)}"
            )
        if _answers(port):
            return
        time.sleep(0.1)
    raise LaunchError(
        f"flower-superlink did not answer on port {port} within {START_TIMEOUT:.0f} s: "
        f"{last_lines(log)}"
    )


def _answers(port: int) -> bool:
    # Not urllib, which would ask a proxy.
    connection = HTTPConnection(LOOPBACK, port, timeout=1)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def last_lines(log: Path, count: int = 5) -> str:
    """Return the last readable lines of a log as one paragraph."""
    readable = LogFilter()
    raw = log.read_text(encoding="utf-8", errors="replace").splitlines()
    lines = [line for text in raw if (line := readable(text))]
    return " ".join(_BOX.sub(" ", line).strip() for line in lines[-count:]).strip()


def _run(
    group: ProcessGroup,
    app: Path,
    connection: Connection,
    overrides: Flat,
    output: Output,
    extra: tuple[str, ...] = (),
    alone: bool = False,
) -> Outcome:
    """Run the app to its end.

    Args:
        group: that the process belongs to.
        app: folder of the Flower app.
        connection: to the SuperLink.
        overrides: run config over the app's own.
        output: where what it says goes.
        extra: options of ``flwr run``.
        alone: the SuperLink has no other run and ends with this one, so that nobody needs Flower's
            own end of it: what counts is that the ServerApp has done everything.
    """
    with (
        tempfile.TemporaryDirectory(prefix="fedmoe-app-") as folder,
        tempfile.NamedTemporaryFile("w", suffix=".toml", encoding="utf-8") as config,
    ):
        config.write(tomli_w.dumps(nest(overrides)))
        config.flush()
        options = ["--stream", "--run-config", config.name, *extra]
        lean = lean_copy(app, Path(folder))
        command = [program("flwr"), "run", str(lean), connection.name, *options]
        process = group.start(command, subprocess.PIPE)
        stream = _Stream(output, until_done=alone)
        try:
            stream.read(process)
        except KeyboardInterrupt:
            if stream.run_id:
                with suppress(LaunchError, subprocess.TimeoutExpired):
                    _flwr(connection, "stop", stream.run_id, connection.name)
            raise
    if stream.run_id is None:
        raise LaunchError(f"flwr run: {_complaint(stream.before)}")
    if stream.app_done:
        return Outcome(stream.run_id, COMPLETED, "")
    return stream.explain(_outcome(connection, stream.run_id))


class _Stream:
    """The output of ``flwr run``: the run's id, and the lines before it was known.

    Args:
        output: where the lines go.
        until_done: read no further than to the ServerApp's last event.
    """

    def __init__(self, output: Output, until_done: bool = False) -> None:
        self.run_id: str | None = None
        self.app_done = False
        self._until_done = until_done
        self.before: list[str] = []
        self._engine_error = ""
        self._output = output
        self._readable = LogFilter()

    def read(self, process: subprocess.Popen[str]) -> None:
        """Pass every line on until the process, or all that is wanted of it, ends."""
        assert process.stdout is not None
        for raw in process.stdout:
            self._look_for_id(raw)
            self._pass_on(raw)
            if self.app_done:
                return
        process.wait()

    def explain(self, outcome: Outcome) -> Outcome:
        """Put the cause into an outcome that says no more than that the simulation failed."""
        if outcome.details != ENGINE_FAILED or not self._engine_error:
            return outcome
        details = f"Ray, which runs the clients, failed: {self._engine_error}"
        return replace(outcome, details=details, raised=False)

    def _look_for_id(self, raw: str) -> None:
        if self.run_id is None:
            self.before.append(raw)
            self.run_id = started[1] if (started := STARTED.search(raw)) else None

    def _pass_on(self, raw: str) -> None:
        if raw.startswith(PREFIX):
            if (event := from_line(raw)) is not None:
                self._output.hear(event)
                self.app_done = self._until_done and isinstance(event, AppDone)
            return
        self._output.write(output_line(raw) + "\n")
        line = self._readable(raw)
        if found := ENGINE_ERROR.search(raw):
            self._engine_error = COLOUR.sub("", found[1]).strip()
        if self._output.verbose:
            self._output.show(raw.rstrip("\n"))
        elif line is not None:
            self._output.show(line)


def _outcome(connection: Connection, run_id: str) -> Outcome:
    """Ask for the status until the run is over: the log may end a moment before the run.

    Raises:
        SuperLinkLostError: when the SuperLink is gone and does not come back within a minute.
    """
    deadline = time.monotonic() + START_TIMEOUT
    while True:
        run = _ask_for(connection, run_id)
        if run["status"] != "unknown":
            deadline = time.monotonic() + START_TIMEOUT
        elif time.monotonic() >= deadline:
            raise SuperLinkLostError(
                f"the SuperLink at {connection.address} cannot be reached any more; a run ends "
                "with its SuperLink, but can be resumed from its result folder"
            )
        if run["status"].startswith("finished"):
            details = "" if run["status-details"] == "N/A" else run["status-details"]
            said = FAILED_WITH.sub("", details)
            return Outcome(run_id, run["status"], said, raised=said != details)
        time.sleep(1.0)


def _ask_for(connection: Connection, run_id: str) -> dict[str, str]:
    """Return what ``flwr ls`` tells of a run; "unknown" where nobody answers in time."""
    try:
        answer = _flwr(connection, "ls", connection.name, "--run-id", run_id, "--format", "json")
    except (LaunchError, subprocess.TimeoutExpired):  # a machine that stood still answers late
        answer = {}
    return (answer.get("runs") or [{"status": "unknown"}])[0]


def _flwr(connection: Connection, *arguments: str) -> dict[str, Any]:
    """Run a short ``flwr`` command; return the JSON object that it printed, if any."""
    done = subprocess.run(
        [program("flwr"), *arguments],
        env=run_environment(connection.flwr_home),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    if done.returncode != 0:
        complaint = _complaint((done.stdout + done.stderr).splitlines())
        raise LaunchError(f"flwr {arguments[0]}: {complaint}")
    with suppress(json.JSONDecodeError):
        return dict(json.loads(done.stdout))
    return {}


def _complaint(lines: list[str]) -> str:
    """Return what an unsuccessful ``flwr`` command said, as one paragraph."""
    readable = LogFilter()
    texts = [_BOX.sub(" ", line).strip() for raw in lines if (line := readable(raw))]
    return " ".join(" ".join(texts).split()) or "ended without a message"
