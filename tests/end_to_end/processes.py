"""A real Flower deployment on loopback: one SuperLink and some SuperNodes, as processes."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from fedmoe_app.config.names import LOOPBACK
from fedmoe_app.flower.fleet import fleet
from fedmoe_app.launch.connections import Connection, write_connection
from fedmoe_app.launch.environment import run_environment
from fedmoe_app.launch.flower import Flat, Outcome, Output, last_lines, run_connected
from fedmoe_app.launch.processes import ProcessGroup, free_port, program

NODE_TIMEOUT = 240.0  # seconds; a busy machine starts processes slowly
CONNECTED = "SuperNode ID:"
SERVING = "Uvicorn running on"
CONNECTION = "loopback"
FLOWER_SUPERNODE = ("flower-supernode",)
WARM_SUPERNODE = ("fedmoe", "supernode")

NodeConfig = Callable[[int], str]


@dataclass(frozen=True)
class Host:
    """Where a process runs: its address, and what its commands begin with (``ip netns exec``)."""

    address: str = LOOPBACK
    prefix: tuple[str, ...] = ()


@dataclass(frozen=True)
class Keys:
    """A folder of ``fedmoe certificates``, or None for a deployment without TLS."""

    folder: Path | None = None

    @property
    def authority(self) -> Path | None:
        return self.folder and self.folder / "ca.crt"

    def superlink_options(self) -> list[str]:
        if self.folder is None:
            return ["--insecure"]
        options = ["--ssl-ca-certfile", "ca.crt", "--ssl-certfile", "server.crt"]
        options += ["--ssl-keyfile", "server.key"]
        paths = [o if o.startswith("-") else str(self.folder / o) for o in options]
        return [*paths, "--enable-supernode-auth"]

    def supernode_options(self, index: int) -> list[str]:
        if self.folder is None:
            return ["--insecure"]
        key = str(self.folder / f"node-{index}")
        certificate = str(self.folder / "ca.crt")
        return ["--root-certificates", certificate, "--auth-supernode-private-key", key]


@dataclass
class Deployment:
    """What runs, and the log lines of the runs so far."""

    group: ProcessGroup
    folder: Path
    connection: Connection
    nodes: list[subprocess.Popen[str]]
    fleet_address: str = ""
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
    keys: Keys = Keys(),
    hosts: Sequence[Host] = (),
    supernode: Sequence[str] = FLOWER_SUPERNODE,
) -> Iterator[Deployment]:
    """Start a SuperLink and ``num_nodes`` SuperNodes, wait for them, and end exactly these.

    With ``keys``, TLS is on and the nodes are registered. ``hosts`` are those of the SuperLink and
    of each node, by default all the loopback address.
    """
    home = folder / "flower"
    hosts = hosts or [Host()] * (1 + num_nodes)
    ports = _free_ports(2 + num_nodes)
    connection = write_connection(
        home, CONNECTION, f"{hosts[0].address}:{ports[0]}", keys.authority
    )
    fleet_address = f"{hosts[0].address}:{fleet().port_for_nodes(ports[0], ports[1])}"
    group = ProcessGroup(run_environment(home))
    with ExitStack() as stack:
        stack.enter_context(group)
        log = stack.enter_context((folder / "superlink.log").open("w"))
        superlink = start_superlink(group, ports[0], ports[1], log, keys, hosts[0])
        wait_for_line(superlink, folder / "superlink.log", SERVING)
        if keys.folder:
            register(group, keys.folder, hosts[0])
        nodes = []
        for index in range(num_nodes):
            log = stack.enter_context((folder / f"node-{index}.log").open("w"))
            options = [*keys.supernode_options(index), "--port", str(ports[2 + index])]
            config = (node_config or numbered(num_nodes))(index)
            nodes.append(
                start_supernode(
                    group, fleet_address, options, config, log, hosts[1 + index], supernode
                )
            )
        for index, node in enumerate(nodes):
            wait_for_line(node, folder / f"node-{index}.log", CONNECTED)
        yield Deployment(group, folder, connection, nodes, fleet_address)


def register(group: ProcessGroup, keys: Path, host: Host) -> None:
    """Register the nodes of a folder by ``fedmoe register``, on the SuperLink's machine."""
    command = [*host.prefix, sys.executable, "-m", "fedmoe_app.cli.main", "register"]
    process = group.start([*command, str(keys), CONNECTION], subprocess.PIPE)
    output, _ = process.communicate(timeout=NODE_TIMEOUT)
    assert process.returncode == 0, output


def _free_ports(count: int) -> list[int]:
    ports: list[int] = []
    for _ in range(count):
        ports.append(free_port(ports))
    return ports


def start_superlink(
    group: ProcessGroup, port: int, fleet_port: int, log: IO[str], keys: Keys, host: Host = Host()
) -> subprocess.Popen[str]:
    command = [*host.prefix, program("flower-superlink"), *keys.superlink_options()]
    command += ["--host", host.address, "--port", str(port)]
    return group.start(command + fleet().listen_options(host.address, port, fleet_port), log)


def start_supernode(
    group: ProcessGroup,
    fleet_address: str,
    options: Sequence[str],
    node_config: str,
    log: IO[str],
    host: Host = Host(),
    supernode: Sequence[str] = FLOWER_SUPERNODE,
) -> subprocess.Popen[str]:
    """Start a SuperNode; ``options`` are those of TLS, keys and its own port."""
    command = [*host.prefix, program(supernode[0]), *supernode[1:], *options]
    return group.start([*command, "--superlink", fleet_address, "--node-config", node_config], log)


def wait_for_line(process: subprocess.Popen[str], log: Path, text: str) -> None:
    """Wait until ``text`` stands in the log; fail when the process ends or a minute is over."""
    deadline = time.monotonic() + NODE_TIMEOUT
    while text not in log.read_text(encoding="utf-8", errors="replace"):
        assert process.poll() is None, f"{log.stem} ended: {last_lines(log)}"
        assert time.monotonic() < deadline, f"{log.stem}: no {text!r} in {last_lines(log)}"
        time.sleep(0.1)
