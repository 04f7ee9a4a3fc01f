"""Ask a Flower process whether it is up, by the gRPC health protocol."""

from __future__ import annotations

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc


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
