"""Flower's own programs, typed through ``fedmoe``: in the environment of this app's runs."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Sequence
from types import FrameType

from fedmoe_app.flower.words import LOCAL_PORT
from fedmoe_app.launch.environment import flwr_home, local_port, run_environment
from fedmoe_app.launch.flower_release import check_release
from fedmoe_app.launch.processes import program


def run_flower(name: str, arguments: Sequence[str]) -> int:
    """Run one of Flower's programs to its end and return its exit code.

    Ctrl-C reaches it by itself, as it is in the same terminal; SIGTERM and SIGHUP are passed on.

    Args:
        name: of the program, such as ``flwr``.
        arguments: all of them are its own.

    Raises:
        LaunchError: Flower is too old.
    """
    check_release()
    home = flwr_home()
    environment = run_environment(home)
    # A SuperLink of another checkout keeps that one's environment.
    environment.setdefault(LOCAL_PORT, str(local_port(home)))
    process = subprocess.Popen([program(name), *arguments], env=environment)

    def pass_on(number: int, _: FrameType | None) -> None:
        process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGHUP)}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
