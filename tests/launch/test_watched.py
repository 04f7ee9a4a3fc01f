"""How the process of a SuperNode ends: with Flower's exit code, or with a reason of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fedmoe_app.flower.release import speaks_http
from fedmoe_app.launch.processes import free_port

# In place of Flower's SuperNode: its signal handlers, and what the test gives.
NODE = """
import os, signal, sys, time
import flwr.supernode.cli
from flwr.supercore.exit import flwr_exit
from flwr.supercore.exit.signal_handler import register_signal_handlers
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.telemetry import EventType

def supernode():
    register_signal_handlers(EventType.RUN_SUPERNODE_LEAVE, "SuperNode terminated gracefully.")
    assert sys.argv[0] == "flower-supernode"
    {body}
    time.sleep(60)

flwr.supernode.cli.flower_supernode = supernode
from fedmoe_app.launch.watched import run_supernode
run_supernode(sys.argv[1:])
"""
REFUSED_OVER_GRPC = """
    from flwr.supercore.retry import make_simple_grpc_retry_invoker
    import grpc
    class Refused(grpc.RpcError, grpc.Call):
        def code(self): return grpc.StatusCode.UNAUTHENTICATED
        def details(self): return "Invalid node ID"
        initial_metadata = trailing_metadata = is_active = time_remaining = cancel = None
        add_callback = None
    def call(): raise Refused()
    make_simple_grpc_retry_invoker().invoke(call)
"""
ANSWER_401 = """
    import httpx
    def call():
        request = httpx.Request("POST", "http://127.0.0.1:1/v1/fleet/pull-messages")
        answer = httpx.Response(401, json={"detail": "Invalid node ID"}, request=request)
        answer.raise_for_status()
"""
REFUSED_OVER_HTTP = f"""{ANSWER_401}
    from flwr.supercore.retry import make_simple_http_retry_invoker
    make_simple_http_retry_invoker().invoke(call)
"""
REFUSED = REFUSED_OVER_HTTP if speaks_http() else REFUSED_OVER_GRPC
# As Flower does it from 1.40 on.
HEARTBEAT_REFUSED_OVER_HTTP = f"""{ANSWER_401}
    def beat():
        try:
            call()
        except httpx.HTTPStatusError:
            os.kill(os.getpid(), signal.SIGINT)
            raise
    HeartbeatSender(beat).start()
"""
SILENT = """
    def beat(): raise RuntimeError("The SuperLink does not recognize this SuperNode.")
    HeartbeatSender(beat).start()
"""


def end(body: str) -> tuple[int, str]:
    """Run a SuperNode whose SuperLink is away; return exit code and the errors that it told."""
    arguments = ["--insecure", "--superlink", f"127.0.0.1:{free_port()}"]
    command = [sys.executable, "-c", NODE.format(body=body.strip()), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return done.returncode, " ".join(lines)


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        ("os.kill(os.getpid(), signal.SIGTERM)", 0, ""),
        ("flwr_exit(305, 'no registration')", 1, ""),
        (REFUSED, 76, "turned this node away: Invalid node ID (is it registered?)"),
        (SILENT, 74, "heartbeats to the SuperLink ended: The SuperLink does not recognize"),
    ],
)
def test_every_end_has_its_code(body: str, code: int, said: str) -> None:
    found, lines = end(body)
    assert found == code
    assert said in lines if said else not lines


@pytest.mark.skipif(not speaks_http(), reason="over gRPC such a node goes on without heartbeats")
def test_a_refused_heartbeat_is_a_refusal() -> None:
    code, lines = end(HEARTBEAT_REFUSED_OVER_HTTP)
    assert code == 76
    assert "turned this node away: Invalid node ID" in lines
