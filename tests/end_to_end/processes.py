"""A real Flower deployment on loopback: one SuperLink and some SuperNodes, as processes."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from fedmoe_app.launching.connections import Connection, write_connection
from fedmoe_app.launching.environment import LOOPBACK, run_environment
from fedmoe_app.launching.flower import (
    Flat,
    Outcome,
    Output,
    last_lines,
    run_connected,
    wait_for_superlink,
)
from fedmoe_app.launching.processes import ProcessGroup, free_port, program

NODE_TIMEOUT = 60.0  # seconds
CONNECTED = "SuperNode ID:"
FLOWER_SUPERNODE = ("flower-supernode",)
WARM_SUPERNODE = ("fedmoe", "supernode")

NodeConfig = Callable[[int], str]


@dataclass
class Deployment:
    """What runs, and the log lines of the runs so far."""

    group: ProcessGroup
    folder: Path
    connection: Connection
    nodes: list[subprocess.Popen[str]]
    lines: list[str] = field(default_factory=list)

    def run(self, app: Path, overrides: Flat) -> Outcome:
        """Run the app by ``flwr run APP CONNECTION --stream``; its log goes to ``lines``."""
        with (self.folder / "run.log").open("a", encoding="utf-8") as log:
            output = Output(log, self.lines.append)
            return run_connected(app, overrides, self.connection, output)

    def assert_nothing_left(self) -> None:
        """Fail when a process of this deployment is alive; call it after the ``with`` block."""
        left = [" ".join(process.cmdline())[:120] for process in self.group.alive()]
        assert left == [], f"processes left behind: {left}"


def numbered(num_nodes: int) -> NodeConfig:
    """Return the node config of a simulation: partition-id and num-partitions."""
    return lambda index: f"partition-id={index} num-partitions={num_nodes}"


@contextmanager
def deployment(
    folder: Path,
    num_nodes: int,
    node_config: NodeConfig | None = None,
    supernode: Sequence[str] = FLOWER_SUPERNODE,
) -> Iterator[Deployment]:
    """Start a SuperLink and ``num_nodes`` SuperNodes, wait for them, and end exactly these."""
    home = folder / "flower"
    ports = _free_ports(2 + num_nodes)
    connection = write_connection(home, "loopback", f"{LOOPBACK}:{ports[0]}")
    group = ProcessGroup(run_environment(home))
    with ExitStack() as stack:
        stack.enter_context(group)
        log = stack.enter_context((folder / "superlink.log").open("w"))
        superlink = _start_superlink(group, ports[0], ports[1], log)
        wait_for_superlink(superlink, ports[0], folder / "superlink.log")
        nodes = []
        for index in range(num_nodes):
            log = stack.enter_context((folder / f"node-{index}.log").open("w"))
            config = (node_config or numbered(num_nodes))(index)
            nodes.append(
                _start_supernode(group, supernode, ports[1], ports[2 + index], config, log)
            )
        for index, node in enumerate(nodes):
            _wait_for_node(node, folder / f"node-{index}.log")
        yield Deployment(group, folder, connection, nodes)


def _free_ports(count: int) -> list[int]:
    ports: list[int] = []
    for _ in range(count):
        ports.append(free_port(ports))
    return ports


def _start_superlink(
    group: ProcessGroup, port: int, fleet_port: int, log: IO[str]
) -> subprocess.Popen[str]:
    command = [program("flower-superlink"), "--insecure", "--host", LOOPBACK, "--port", str(port)]
    return group.start([*command, "--fleet-api-address", f"{LOOPBACK}:{fleet_port}"], log)


def _start_supernode(
    group: ProcessGroup,
    supernode: Sequence[str],
    fleet_port: int,
    port: int,
    node_config: str,
    log: IO[str],
) -> subprocess.Popen[str]:
    command = [program(supernode[0]), *supernode[1:], "--insecure", "--port", str(port)]
    address = f"{LOOPBACK}:{fleet_port}"
    return group.start([*command, "--superlink", address, "--node-config", node_config], log)


def _wait_for_node(node: subprocess.Popen[str], log: Path) -> None:
    deadline = time.monotonic() + NODE_TIMEOUT
    while CONNECTED not in log.read_text(encoding="utf-8", errors="replace"):
        assert node.poll() is None, f"SuperNode ended: {last_lines(log)}"
        assert time.monotonic() < deadline, f"SuperNode did not connect: {last_lines(log)}"
        time.sleep(0.1)
