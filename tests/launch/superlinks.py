"""A SuperLink of the installed Flower that knows no node, and whose clock a test sets."""

from __future__ import annotations

import datetime
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from fedmoe_app.flower.release import speaks_http
from fedmoe_app.launch.processes import free_port

WithClock = Callable[[float], str]


class NoNodes:
    """The state of a SuperLink that knows no node."""

    def state(self) -> NoNodes:
        return self

    def get_node_id_by_public_key(self, key: bytes) -> None:
        return None


@contextmanager
def superlink_without_nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[WithClock]:
    """Yield what gives its address, by how many seconds this machine's clock is ahead of it."""
    serve = _over_http if speaks_http() else _over_grpc
    with serve() as (address, module):

        def with_clock(ahead: float) -> str:
            shift = datetime.timedelta(seconds=ahead)
            monkeypatch.setattr(module, "now", lambda: datetime.datetime.now(datetime.UTC) - shift)
            return address

        yield with_clock


@contextmanager
def _over_grpc() -> Iterator[tuple[str, Any]]:
    """Yield the address, and the module of Flower that looks at the clock."""
    from flwr.proto.fleet_pb2_grpc import FleetServicer, add_FleetServicer_to_server
    from flwr.server.superlink.fleet.grpc_rere import node_auth_server_interceptor as flower

    interceptors = [flower.NodeAuthServerInterceptor(NoNodes())]  # type: ignore[arg-type]
    server = grpc.server(ThreadPoolExecutor(2), interceptors=interceptors)
    add_FleetServicer_to_server(FleetServicer(), server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield address, flower
    finally:
        server.stop(None)


@contextmanager
def _over_http() -> Iterator[tuple[str, Any]]:
    """The same, from Flower 1.40 on."""
    import uvicorn

    app = import_module("flwr.superlink.main").create_app()
    app.state.linkstate_factory = SimpleNamespace(state=NoNodes)
    port = free_port()
    with served(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error")):
        yield f"127.0.0.1:{port}", import_module("flwr.superlink.routers.fleet.node_auth")


@contextmanager
def served(config: Any) -> Iterator[None]:
    """Inside, an ASGI app is served in a thread, as a ``uvicorn.Config`` says."""
    import uvicorn  # comes with Flower from 1.40 on

    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.05)
        yield
    finally:
        server.should_exit = True
        thread.join()
