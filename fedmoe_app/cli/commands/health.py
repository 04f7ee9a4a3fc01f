"""``fedmoe health``: whether a part of a deployment is up."""

from __future__ import annotations

from typing import Annotated

import grpc
import typer
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fedmoe_app.cli.app import command
from fedmoe_app.config.hosts import check_address
from fedmoe_app.shown.terminal import say


@command("fedmoe health 127.0.0.1:9190")
def health(
    address: Annotated[
        str, typer.Argument(metavar="HOST:PORT", help="Its --health-server-address.")
    ],
) -> None:
    """Ask a SuperLink, SuperNode or SuperExec whether it is up; exit code 0 if so."""
    check_address(address, "HOST:PORT")
    if not is_serving(address):
        say(f"{address}: not serving")
        raise typer.Exit(1)
    say(f"{address}: serving")


def is_serving(address: str, timeout: float = 5.0) -> bool:
    """Tell whether the health server at ``HOST:PORT`` answers SERVING within ``timeout`` seconds.

    Flower starts one where it is given ``--health-server-address``, without TLS: bind it to the
    loopback address.
    """
    # A proxy of the environment is not asked about a service on this machine.
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=timeout
            )
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
