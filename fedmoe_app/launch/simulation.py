"""The process of a simulation: it imports while its SuperLink starts, and then takes the run.

Flower starts ``flwr-simulation`` only when there is a run: SuperLink, SuperExec and simulation
import one after another, seconds each. ``fedmoe run`` starts this program beside the SuperLink. It
has Flower, Ray and PyTorch imported by the time the run is there, takes it as Flower's SuperExec
would, and becomes ``flwr-simulation``. Where that fails, such as with a release of Flower that is
made otherwise, it becomes Flower's SuperExec.

Nothing of this app is in memory then: the run's bundle brings its own copy.
"""

from __future__ import annotations

import argparse
import importlib
import os
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence

import psutil

from fedmoe_app.flower import superexec
from fedmoe_app.flower.words import NO_INSTALLATION
from fedmoe_app.launch.processes import ProcessGroup, program
from fedmoe_app.launch.warm import forget_app

_POLL_SECONDS = 0.1  # between two looks for the SuperLink, and for the run
# The rest, transformers above all, is imported when the run has begun, while Ray starts.
_MODULES = (*superexec.SIMULATION_MODULES, "torch")


def superlink_options(environment: Mapping[str, str]) -> list[str]:
    """Return what a SuperLink must be told so that it leaves its run to this program.

    Nothing where Flower is to install what an app depends on: its own programs do that, before
    anything is imported.
    """
    return ["--isolation", "process"] if environment.get(NO_INSTALLATION) == "1" else []


def start(group: ProcessGroup, address: str, superlink: int) -> None:
    """Start this program; it ends with the SuperLink.

    Args:
        group: that the process belongs to.
        address: ``HOST:PORT`` of the SuperLink.
        superlink: process id of the SuperLink.
    """
    # -P: the folder that the user is in may hold modules of any name.
    command = [sys.executable, "-P", "-m", __name__]
    command += ["--runtime-api-address", address, "--parent-pid", str(superlink)]
    group.start(command, subprocess.DEVNULL)  # what a simulation says goes through the SuperLink


def main(arguments: Sequence[str] | None = None) -> None:
    """Run as a program; see :func:`start`."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--runtime-api-address", required=True, metavar="HOST:PORT")
    parser.add_argument("--parent-pid", type=int, required=True, help="end with this process")
    given = parser.parse_args(arguments)
    address, superlink = given.runtime_api_address, given.parent_pid
    try:
        for name in _MODULES:
            importlib.import_module(name)
        token = take_run(address, superlink)
    except Exception:
        traceback.print_exc()
        command = superexec.fallback_command(address, superlink)
        os.execvp(program(command[0]), command)
    if token is not None:
        _become_simulation(
            [
                *superexec.task_arguments(address, None, superlink),
                *superexec.token_arguments(token),
            ]
        )


def take_run(address: str, superlink: int) -> str | None:
    """Wait for the run and return the token of whoever runs it; None if the SuperLink has ended."""
    host, _, port = address.rpartition(":")
    while not _listens(host, int(port)):
        if not psutil.pid_exists(superlink):
            return None
        time.sleep(_POLL_SECONDS)
    with superexec.Tasks(address, None, superexec.SIMULATION) as tasks:
        while psutil.pid_exists(superlink):
            if token := tasks.next_token():
                return token
            time.sleep(_POLL_SECONDS)
    return None


def _listens(host: str, port: int) -> bool:
    """Whether it does; Flower's client would wait longer and longer between two tries."""
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True


def _become_simulation(arguments: Sequence[str]) -> None:
    sys.argv = [superexec.SIMULATION_COMMAND, *arguments]
    run_simulation = superexec.run_simulation
    forget_app()
    run_simulation()


if __name__ == "__main__":
    main()
