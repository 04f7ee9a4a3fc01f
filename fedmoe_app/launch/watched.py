"""Flower's SuperNode, in this process, whose end is explained and has an exit code of its own.

``flower-supernode`` exits with code 0 when the SuperLink turns it away, for a clock that is off or
a key that is not registered any more, and says nothing; a service manager would leave it so. And
where the thread that sends its heartbeats has died, it goes on for ever as a node that the
SuperLink counts as gone. Here both end the process with a reason and a code that is not 0. Facts of
Flower 1.39.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from fedmoe_app.config.errors import ConfigError
from fedmoe_app.config.policy import policy_path, read_policy
from fedmoe_app.launch.clock import ClockFault, UnreachableError, check_clock
from fedmoe_app.launch.connections import LaunchError
from fedmoe_app.launch.gate import install
from fedmoe_app.shown.terminal import say

CLOCK_IS_OFF = 75  # EX_TEMPFAIL of sysexits.h: try again later
TURNED_AWAY = 76  # EX_PROTOCOL
LOST_HEARTBEAT = 74  # EX_IOERR
NO_GATE = 78  # EX_CONFIG
_LAST_LOOK = 1.5  # seconds; Flower ends the process 5 s after it began to end
_PROGRAM = "flower-supernode"


def clock_fault(arguments: Sequence[str], seconds: float = 4.0) -> ClockFault | None:
    """Return why the SuperLink of a SuperNode with these arguments does not accept its clock.

    None also where it cannot be asked: whether it is there is the SuperNode's business.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--superlink", default="127.0.0.1:9092")
    parser.add_argument("--root-certificates", type=Path)
    parser.add_argument("--insecure", action="store_true")
    parser.add_argument("--grpc-adapter", action="store_true")
    found, _ = parser.parse_known_args(list(arguments))
    if found.grpc_adapter:
        return None
    with suppress(UnreachableError, OSError, ValueError):
        return check_clock(found.superlink, found.root_certificates, found.insecure, seconds)
    return None


def run_supernode(arguments: Sequence[str]) -> NoReturn:
    """Run Flower's SuperNode until it ends, and end this process with a reason."""
    from flwr.supernode.cli import flower_supernode

    _install_gate()
    heartbeat = _WatchedHeartbeat()
    sys.argv = [_PROGRAM, *arguments]
    try:
        flower_supernode()
        code, refusal = 0, ""
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        refusal = _refusal_in(end)
    if heartbeat.lost:
        _leave(LOST_HEARTBEAT, f"its heartbeats to the SuperLink ended: {heartbeat.lost}")
    if code == 0:
        _explain(arguments, refusal)
    _leave(code)


def _install_gate() -> None:
    """Hold every run against the node's policy; a policy that cannot be used ends the process."""
    try:
        path = policy_path()
        if path is None:
            say("no policy: this node runs the code and config of any run that its SuperLink sends")
            return
        install(read_policy(path))
    except (ConfigError, LaunchError) as error:
        _leave(NO_GATE, str(error))
    say(f"policy: {path}")


def _explain(arguments: Sequence[str], refusal: str) -> None:
    """End the process with a reason if the SuperLink turned the node away; else return."""
    # Asked before the seconds are over after which Flower ends the process itself.
    if fault := clock_fault(arguments, _LAST_LOOK):
        _leave(CLOCK_IS_OFF, str(fault))
    if refusal:
        _leave(TURNED_AWAY, f"the SuperLink turned this node away: {refusal} (is it registered?)")


class _WatchedHeartbeat:
    """Ends the SuperNode when the thread that sends its heartbeats has died.

    Attributes:
        lost: why it died; "" while it has not.
    """

    def __init__(self) -> None:
        self.lost = ""
        self._before = threading.excepthook
        threading.excepthook = self._look

    def _look(self, fault: threading.ExceptHookArgs) -> None:
        self._before(fault)
        if not self.lost and _is_heartbeat(fault):
            self.lost = " ".join(str(fault.exc_value).split())[:400] or fault.exc_type.__name__
            os.kill(os.getpid(), signal.SIGTERM)  # Flower tidies up


def _is_heartbeat(fault: threading.ExceptHookArgs) -> bool:
    frame = fault.exc_traceback
    while frame is not None:
        if frame.tb_frame.f_globals.get("__name__") == "flwr.supercore.heartbeat":
            return True
        frame = frame.tb_next
    return False


def _refusal_in(end: BaseException) -> str:
    """Return what the SuperLink said when Flower ended the process because of it; else ""."""
    import grpc

    error: Any
    for error in _chain(end):
        is_answer = isinstance(error, grpc.RpcError) and isinstance(error, grpc.Call)
        if is_answer and error.code() == grpc.StatusCode.UNAUTHENTICATED:
            return str(error.details())
    return ""


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__context__


def _leave(code: int, reason: str = "") -> NoReturn:
    """End the process now: a thread of Flower's would end it with code 0 in a moment."""
    if reason:
        say(f"error: {reason}", file=sys.stderr)
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    run_supernode(sys.argv[1:])
