"""Several hosts on one machine: network namespaces with addresses of their own, on one switch."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.end_to_end.processes import Host

SUBNET = "10.187.64"
# A lab far away over a bad line.
NETEM = "delay 60ms 15ms loss 2% rate 20mbit"
# What stands in for it on a kernel without netem: the same rate and losses, no delay.
RATE = "rate 20mbit burst 32kb latency 400ms"
LOSS = "-m statistic --mode random --probability 0.02 -j DROP"


def skip_without_namespaces() -> None:
    """Skip the test, with the reason, where no namespaces can be made."""
    if shutil.which("ip") is None:
        pytest.skip("network namespaces need the program ip (iproute2)")
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    probe = f"fedmoe{os.getpid()}p"
    made = _try(f"ip netns add {probe}")
    if made:
        pytest.skip(f"network namespaces cannot be made: {made}")
    _run(f"ip netns del {probe}")


@contextmanager
def separate_hosts(count: int) -> Iterator[list[Host]]:
    """Make ``count`` hosts that reach one another and nothing else; remove all of it at the end."""
    prefix = f"fm{os.getpid() % 100000}"
    switch = f"{prefix}s"
    with ExitStack() as stack:
        _namespace(stack, switch)
        _run(f"ip -n {switch} link add switch type bridge")
        _run(f"ip -n {switch} link set switch up")
        hosts = []
        for index in range(count):
            name, address = f"{prefix}h{index}", f"{SUBNET}.{index + 1}"
            _namespace(stack, name)
            _run(f"ip link add eth0 netns {name} type veth peer name port{index} netns {switch}")
            _run(f"ip -n {switch} link set port{index} master switch up")
            _run(f"ip -n {name} address add {address}/24 dev eth0")
            _run(f"ip -n {name} link set eth0 up")
            hosts.append(Host(address, ("ip", "netns", "exec", name)))
        yield hosts


def worsen(host: Host) -> str:
    """Make a host's line slow and lossy, as far as the kernel can; tell what was done."""
    inside = " ".join(host.prefix)
    missing = _try(f"{inside} tc qdisc add dev eth0 root netem {NETEM}")
    if not missing:
        return f"netem {NETEM}"
    done = [f"no netem here ({missing})"]
    if not _try(f"{inside} tc qdisc add dev eth0 root tbf {RATE}"):
        done.append(f"tbf {RATE}")
    if not any(_try(f"{inside} iptables -A {chain} {LOSS}") for chain in ("INPUT", "OUTPUT")):
        done.append(f"iptables {LOSS}")
    return "; ".join(done)


def _namespace(stack: ExitStack, name: str) -> None:
    _run(f"ip netns add {name}")
    stack.callback(_try, f"ip netns del {name}")
    _run(f"ip -n {name} link set lo up")


def _run(command: str) -> None:
    complaint = _try(command)
    assert not complaint, f"{command}: {complaint}"


def _try(command: str) -> str:
    """Run a command; return what it complained about, the empty text if it succeeded."""
    try:
        done = subprocess.run(command.split(), capture_output=True, text=True, check=False)
    except OSError as error:
        return str(error)
    complaint = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
    return complaint if done.returncode else ""
