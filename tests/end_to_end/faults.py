"""A lab on loopback whose parts a test breaks: SuperLink, nodes, the network between them."""

from __future__ import annotations

import shutil
import subprocess
import time
import tomllib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import psutil
import tomli_w

from fedmoe_app import read_metrics, read_status
from fedmoe_app.config.names import LOOPBACK
from fedmoe_app.flower.fleet import fleet
from fedmoe_app.launch.connections import write_connection
from fedmoe_app.launch.environment import run_environment
from fedmoe_app.launch.flower import Outcome, Output, run_connected, wait_for_superlink
from fedmoe_app.launch.processes import ProcessGroup, free_port, program
from tests.conftest import REPOSITORY

PATIENCE = 240.0  # seconds; a busy machine starts processes slowly
HERE = Path(__file__).parent


def wait_for(condition: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.1)


def kill_tree(process: subprocess.Popen[str] | psutil.Process) -> None:
    """End a process and its descendants by SIGKILL, as a power cut would."""
    tree = [psutil.Process(process.pid)]
    tree += tree[0].children(recursive=True)
    for member in tree:
        with suppress(psutil.Error):
            member.kill()
    psutil.wait_procs(tree, timeout=10)


class Lab:
    """One SuperLink, its nodes, and runs of the app whose clients do what the test says."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.control = folder / "control"
        self.control.mkdir()
        self.lines: list[str] = []
        self.app = _copy_app(folder / "app")
        self.port = free_port()
        self.fleet_port = fleet().port_for_nodes(self.port, free_port([self.port]))
        self.connection = write_connection(folder / "flower", "lab", f"{LOOPBACK}:{self.port}")
        self.group = ProcessGroup(run_environment(folder / "flower"))
        self.superlink: subprocess.Popen[str] | None = None
        self.nodes: dict[int, subprocess.Popen[str]] = {}
        self._logs = [(folder / "run.log").open("a", encoding="utf-8")]
        self._pool = ThreadPoolExecutor(1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.group.stop()
        self._pool.shutdown()
        for log in self._logs:
            log.close()
        left = [" ".join(process.cmdline())[:120] for process in self.group.alive()]
        assert left == [], f"processes left behind: {left}"

    # -- parts ---------------------------------------------------------------------------------

    def start_superlink(self) -> None:
        """Start it, or start it again, with its database on the disk."""
        command = [program("flower-superlink"), "--insecure", "--host", LOOPBACK]
        command += ["--port", str(self.port), "--database", str(self.folder / "flower.db")]
        command += fleet().listen_options(LOOPBACK, self.port, self.fleet_port)
        self.superlink = self.group.start(command, self._log("superlink"))
        wait_for_superlink(self.superlink, self.port, self.folder / "superlink.log")

    def start_node(self, client: int, fleet_port: int | None = None) -> None:
        """Start a SuperNode, at a proxy's port or the SuperLink's, and wait for it."""
        taken = [self.port, self.fleet_port]
        command = [program("flower-supernode"), "--insecure", "--port", str(free_port(taken))]
        command += ["--superlink", f"{LOOPBACK}:{fleet_port or self.fleet_port}"]
        config = f'partition-id={client} control="{self.control}"'
        log = self._log(f"node-{client}")
        self.nodes[client] = self.group.start([*command, "--node-config", config], log)
        wait_for(lambda: "SuperNode ID:" in Path(log.name).read_text(), f"node {client}")

    def serverapp(self) -> psutil.Process:
        """Return the process of the ServerApp that runs now."""
        found = [
            process
            for process in self.group.alive()
            if any("flwr-serverapp" in part for part in process.cmdline())
        ]
        assert len(found) == 1, found
        return found[0]

    def _log(self, name: str) -> Any:
        self._logs.append((self.folder / f"{name}.log").open("a", encoding="utf-8"))
        return self._logs[-1]

    # -- what clients do -----------------------------------------------------------------------

    def tell(self, client: int, what: str) -> None:
        """Make a client ``wait``, ``wait-in-N`` or ``raise`` in the middle of its round."""
        (self.control / f"client-{client}").write_text(what)

    def release(self, client: int) -> None:
        (self.control / f"client-{client}").unlink()

    def wait_until_training(self, client: int, server_round: int) -> None:
        marker = self.control / f"client-{client}-round-{server_round}"

        def is_there() -> bool:
            assert marker.exists() or not self._run.done(), (self._run.result(), self.lines[-30:])
            return marker.exists()

        wait_for(is_there, f"client {client} in round {server_round}")

    def has_trained(self, client: int, server_round: int) -> bool:
        return (self.control / f"client-{client}-round-{server_round}").exists()

    # -- runs ----------------------------------------------------------------------------------

    @property
    def results(self) -> Path:
        return self.folder / "results" / "run"

    def run(self, **overrides: Any) -> Future[Outcome]:
        """Start a run in the background."""
        flat = {
            "output-dir": str(self.results.parent),
            "run-name": self.results.name,
            "wait-for-clients": 60.0,
            **overrides,
        }
        output = Output(self._logs[0], self.lines.append)
        self._run = self._pool.submit(run_connected, self.app, flat, self.connection, output)
        return self._run

    def finish(self, run: Future[Outcome]) -> list[dict[str, Any]]:
        """Wait for a run to complete; return its metrics lines."""
        outcome = run.result(timeout=PATIENCE)
        assert outcome.completed, (outcome, self.lines[-30:])
        assert read_status(self.results)["state"] == "completed"
        return self.metrics()

    def metrics(self) -> list[dict[str, Any]]:
        return read_metrics(self.results)

    def clients(self) -> list[list[int]]:
        """Return the clients whose replies were used, by round from 1."""
        return [[c["client"] for c in line["clients"]] for line in self.metrics()[1:]]


def _copy_app(app: Path) -> Path:
    """Copy the app, with the real app's run config."""
    shutil.copytree(HERE / "fault_app", app)
    table = tomllib.loads((app / "pyproject.toml").read_text())
    real = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    table["tool"]["flwr"]["app"]["config"] = real["tool"]["flwr"]["app"]["config"]
    (app / "pyproject.toml").write_text(tomli_w.dumps(table))
    return app
