"""Flower 1.39: nodes talk gRPC to the SuperLink, on a port of their own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import grpc

from fedmoe_app.flower.fleet import UnreachableError

_METHOD = "/flwr.proto.Fleet/SendNodeHeartbeat"
_WRONG_TIME = "Invalid timestamp"
_AWAY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


class GrpcFleet:
    """See :class:`~fedmoe_app.flower.fleet.Fleet`."""

    node_port = 9092

    def listen_options(self, host: str, port: int, node_port: int) -> list[str]:
        """Only the nodes' port is opened; the other stays on loopback, or where it is put."""
        return ["--fleet-api-address", f"{host}:{node_port}"]

    def port_for_nodes(self, port: int, node_port: int) -> int:
        """Theirs alone."""
        return node_port

    def can_be_asked(self, arguments: Sequence[str]) -> bool:
        """Not through the adapter of another program."""
        return "--grpc-adapter" not in arguments

    @contextmanager
    def clock_probe(
        self, superlink: str, root_certificates: bytes | None, insecure: bool
    ) -> Iterator[_Probe]:
        """Open a channel."""
        from flwr.supercore.grpc import create_channel

        channel = create_channel(superlink, insecure, root_certificates)
        with closing(channel):
            yield _Probe(channel)

    def refusal(self, error: Any) -> str:
        """Every call of a node that is not let in is answered UNAUTHENTICATED."""
        is_answer = isinstance(error, grpc.RpcError) and isinstance(error, grpc.Call)
        if is_answer and error.code() == grpc.StatusCode.UNAUTHENTICATED:
            return str(error.details())
        return ""

    def ends_by_itself(self, error: BaseException) -> bool:
        """A SuperNode goes on without heartbeats."""
        return False


class _Probe:
    """Heartbeats of an unknown node: refused for their time, or for who sends them."""

    def __init__(self, channel: grpc.Channel) -> None:
        from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
        from flwr.supercore.primitives.asymmetric import generate_key_pairs

        self._key, self._public_key = generate_key_pairs()
        self._call = channel.unary_unary(
            _METHOD, request_serializer=SendNodeHeartbeatRequest.SerializeToString
        )
        self._request = SendNodeHeartbeatRequest(heartbeat_interval=30)

    def accepts(self, moment: str, seconds: float) -> bool:
        """See :class:`~fedmoe_app.flower.fleet.ClockProbe`."""
        try:
            self._call(self._request, metadata=self._signed(moment), timeout=seconds)
        except grpc.RpcError as error:
            if error.code() in _AWAY:
                raise UnreachableError(str(error.details())) from None
            refused = error.code() == grpc.StatusCode.UNAUTHENTICATED
            return not (refused and error.details() == _WRONG_TIME)
        return True

    def _signed(self, moment: str) -> list[tuple[str, str | bytes]]:
        from flwr.common.constant import PUBLIC_KEY_HEADER, SIGNATURE_HEADER, TIMESTAMP_HEADER
        from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message

        return [
            (PUBLIC_KEY_HEADER, public_key_to_bytes(self._public_key)),
            (TIMESTAMP_HEADER, moment),
            (SIGNATURE_HEADER, sign_message(self._key, moment.encode("ascii"))),
        ]
