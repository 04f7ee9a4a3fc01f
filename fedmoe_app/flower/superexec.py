"""What a SuperExec does: ask a SuperNode or SuperLink for tasks, run Flower's program for each.

At a SuperNode a task is a message, run by ``flwr-clientapp``; at a SuperLink for simulations it is
a whole run, by ``flwr-simulation``.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Self

COMMAND = "flwr-clientapp"
MODULE = "flwr.supernode.cli"  # where its function is
CLIENT_APP, SIMULATION = "CLIENT_APP", "SIMULATION"  # kinds of tasks
SIMULATION_COMMAND = "flwr-simulation"
# Where its function is, and what it imports on its way.
SIMULATION_MODULES = (
    "flwr.simulation.app",
    "flwr.server.superlink.fleet.vce.backend.raybackend",
)


class Tasks:
    """A connection to the Runtime API of a SuperNode or SuperLink; a context that closes it.

    Args:
        address: ``HOST:PORT``.
        root_certificates: CA certificate of that API; None: it has no TLS.
        kind: of the tasks that are asked for.
    """

    def __init__(
        self, address: str, root_certificates: Path | None, kind: str = CLIENT_APP
    ) -> None:
        from flwr.proto.runtime_pb2 import AcquireTaskRequest
        from flwr.supercore.constant import TaskType
        from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
        from flwr.supercore.retry import make_simple_http_retry_invoker
        from flwr.supercore.runtime import RuntimeHttpClient

        self._client = RuntimeHttpClient.from_server_address(
            server_address=address,
            insecure=root_certificates is None,
            root_certificates=root_certificates.read_bytes() if root_certificates else None,
            interceptors=[RuntimeVersionHttpInterceptor(component_name="SuperExec")],
            retry_invoker=make_simple_http_retry_invoker(),
        )
        self._request = AcquireTaskRequest(supported_task_types=[TaskType[kind]])

    def __enter__(self) -> Self:
        """Return the connection."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close it."""
        self._client.close()

    def next_token(self) -> str | None:
        """Take a task and return the token of whoever runs it; None if there is none now."""
        found = self._client.AcquireTask(self._request)
        return found.token if found.HasField("task") and found.token else None


def task_arguments(address: str, root_certificates: Path | None, parent: int) -> list[str]:
    """Return the arguments of Flower's program that are those of every task.

    Args:
        address: ``HOST:PORT`` of the Runtime API.
        root_certificates: as for :class:`Tasks`.
        parent: process id of the process to end with.
    """
    security = ["--root-certificates", str(root_certificates)] if root_certificates else []
    fixed = ["--runtime-api-address", address, "--parent-pid", str(parent)]
    return fixed + (security or ["--insecure"])


def token_arguments(token: str) -> list[str]:
    """Return the arguments of Flower's program that name the task."""
    return ["--token", token]


def run_clientapp() -> None:
    """Run ``flwr-clientapp`` with the arguments in ``sys.argv``, to its end."""
    from flwr.supernode.cli import flwr_clientapp

    flwr_clientapp()


def run_simulation() -> None:
    """Run ``flwr-simulation`` with the arguments in ``sys.argv``, to its end."""
    from flwr.simulation.app import flwr_simulation

    flwr_simulation()


def fallback_command(address: str, parent: int) -> list[str]:
    """Return the command of Flower's own SuperExec for a SuperLink without TLS."""
    fixed = ["--insecure", "--runtime-api-address", address]
    return ["flower-superexec", *fixed, "--parent-pid", str(parent)]


def answer_health(address: str) -> Any:
    """Answer there by the gRPC health protocol as long as the returned object is held."""
    from flwr.supercore.grpc_health import run_health_server_grpc_no_tls

    return run_health_server_grpc_no_tls(address)
