"""``fedmoe supernode``: Flower's SuperNode beside a SuperExec that need not import torch each time.

The process becomes ``flower-supernode --isolation process`` with the given arguments, so that it is
watched, stopped and logged like one, except that it says why it ends
(:mod:`fedmoe_app.launch.watched`); the SuperExec (:mod:`fedmoe_app.launch.warm`) ends with
it. With ``--isolation process`` among the arguments it is the SuperNode alone: the SuperExec runs
elsewhere, as ``fedmoe superexec``.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from fedmoe_app.config.hosts import check_address
from fedmoe_app.config.policy import VARIABLE, policy_path, read_policy
from fedmoe_app.flower.supernode import PORT
from fedmoe_app.launch.connections import LaunchError
from fedmoe_app.launch.environment import set_default_environment
from fedmoe_app.launch.flower_release import check_release
from fedmoe_app.launch.watched import CLOCK_IS_OFF, clock_fault
from fedmoe_app.shown.terminal import say

_REFUSED = {
    "--superexec-auth-secret-file": "start flower-supernode and flower-superexec for it",
    "--allow-runtime-dependency-installation": "use the installed environment, or flower-supernode",
}


def become_supernode(arguments: Sequence[str]) -> NoReturn:
    """Start the SuperExec, then replace this process by the SuperNode.

    A clock that the SuperLink does not accept ends it before that, with code 75.

    Raises:
        LaunchError: an argument that the two together cannot have, or Flower is too old.
        ConfigError: a policy that cannot be used, or a ``--superlink`` that is no HOST:PORT.
    """
    check_release()
    arguments = use_policy(arguments)
    check_superlink(arguments)
    command = superexec_command(arguments, os.getpid())
    set_default_environment()
    if fault := clock_fault(arguments):
        say(f"error: {fault}", file=sys.stderr)
        sys.exit(CLOCK_IS_OFF)
    if command is not None:
        subprocess.Popen(command)
    supernode = [sys.executable, "-m", "fedmoe_app.launch.watched"]
    os.execv(sys.executable, [*supernode, *arguments, "--isolation", "process"])


def check_superlink(arguments: Sequence[str]) -> None:
    """Refuse an address that no library can look up; without one it is Flower's default.

    Raises:
        ConfigError: with the value and what is expected.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--superlink")
    parser.add_argument("--grpc-adapter", action="store_true")
    found, _ = parser.parse_known_args(list(arguments))
    if found.superlink is not None and not found.grpc_adapter:
        check_address(found.superlink, "--superlink")


def use_policy(arguments: Sequence[str]) -> list[str]:
    """Take ``--policy FILE`` out of the arguments, for this process and those that it starts.

    Raises:
        ConfigError: the policy, given or found, cannot be used.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--policy", type=Path)
    found, rest = parser.parse_known_args(list(arguments))
    path = policy_path(found.policy)
    if path is not None:
        read_policy(path)
        os.environ[VARIABLE] = str(path.expanduser().absolute())
    return rest


def superexec_command(arguments: Sequence[str], parent: int) -> list[str] | None:
    """Return the command of the SuperExec for a SuperNode with these arguments.

    None with ``--isolation process``: it is started by itself.

    Raises:
        LaunchError: see above.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--isolation")
    isolation = parser.parse_known_args(list(arguments))[0].isolation
    if isolation == "process":
        return None
    _refuse(arguments, isolation)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", default=str(PORT))
    parser.add_argument("--ssl-ca-certfile", type=Path)
    found, _ = parser.parse_known_args(list(arguments))
    host = f"[{found.host}]" if ":" in found.host else found.host
    command = [sys.executable, "-m", "fedmoe_app.launch.warm"]
    command += ["--runtime-api-address", f"{_reachable(host)}:{found.port}"]
    if found.ssl_ca_certfile is not None:
        command += ["--root-certificates", str(found.ssl_ca_certfile.expanduser().absolute())]
    return [*command, "--parent-pid", str(parent)]


def _refuse(arguments: Sequence[str], isolation: str | None) -> None:
    for name, way_out in _REFUSED.items():
        if any(given.partition("=")[0] == name for given in arguments):
            raise LaunchError(f"fedmoe supernode: {name} cannot be given; {way_out}")
    if isolation is not None:
        raise LaunchError(
            f"fedmoe supernode: --isolation {isolation} cannot be given; leave it out, or give "
            "--isolation process and start `fedmoe superexec` beside it"
        )


def _reachable(host: str) -> str:
    """Return an address to connect to; a server that listens everywhere has no such one."""
    return {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host)
