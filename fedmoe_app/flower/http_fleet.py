"""Flower 1.40 and later: nodes talk HTTP to the SuperLink, on the port of its other APIs."""

from __future__ import annotations

import ssl
from base64 import b64encode
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Any

import httpx  # comes with these releases

from fedmoe_app.flower.fleet import CONTROL_PORT, UnreachableError

# The one call in which an unknown node is refused differently for its time and for who it is.
_PATH = "/v1/fleet/activate-node"
_AWAY = (httpx.codes.BAD_GATEWAY, httpx.codes.SERVICE_UNAVAILABLE, httpx.codes.GATEWAY_TIMEOUT)


class HttpFleet:
    """See :class:`~fedmoe_app.flower.fleet.Fleet`."""

    node_port = CONTROL_PORT

    def listen_options(self, host: str, port: int, node_port: int) -> list[str]:
        """There is one port for all; whoever reaches the nodes' API reaches the others, too."""
        return ["--host", host.strip("[]"), "--port", str(port)]

    def port_for_nodes(self, port: int, node_port: int) -> int:
        """The one that all use."""
        return port

    def can_be_asked(self, arguments: Sequence[str]) -> bool:
        """There is no other transport."""
        return True

    @contextmanager
    def clock_probe(
        self, superlink: str, root_certificates: bytes | None, insecure: bool
    ) -> Iterator[_Probe]:
        """Open a client with the trust that Flower's own has."""
        verify: ssl.SSLContext | bool = not insecure
        if root_certificates is not None:
            verify = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            verify.load_verify_locations(cadata=root_certificates.decode("ascii"))
        base = f"{'http' if insecure else 'https'}://{superlink}"
        with httpx.Client(base_url=base, verify=verify) as client:
            yield _Probe(client)

    def refusal(self, error: BaseException) -> str:
        """Every call of a node that is not let in is answered 401, whatever the reason."""
        if not isinstance(error, httpx.HTTPStatusError):
            return ""
        if error.response.status_code != httpx.codes.UNAUTHORIZED:
            return ""
        with suppress(ValueError, TypeError, KeyError):
            return str(error.response.json()["detail"])
        return error.response.reason_phrase

    def ends_by_itself(self, error: BaseException) -> bool:
        """A SuperNode whose heartbeat is answered 401 sends itself SIGINT."""
        return bool(self.refusal(error))


class _Probe:
    """Activations of an unknown node: refused for their time (401), or because it is unknown.

    All that takes long, imports above all, is done here: what follows has a few seconds.
    """

    def __init__(self, client: httpx.Client) -> None:
        from flwr.common.constant import TIMESTAMP_HEADER
        from flwr.proto.fleet_pb2 import ActivateNodeRequest
        from flwr.supercore.primitives.asymmetric import (
            generate_key_pairs,
            public_key_to_bytes,
            sign_message,
        )
        from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE

        names: Any = import_module("flwr.supercore.constant")  # 1.39 has no such names
        key, public_key = generate_key_pairs()
        known = public_key_to_bytes(public_key)
        fixed = {
            "content-type": PROTOBUF_MEDIA_TYPE,
            "accept": PROTOBUF_MEDIA_TYPE,
            names.FLEET_HTTP_PUBLIC_KEY_HEADER: b64encode(known).decode("ascii"),
        }

        def headers(moment: str) -> dict[str, str]:
            signature = b64encode(sign_message(key, moment.encode("ascii"))).decode("ascii")
            signed = {TIMESTAMP_HEADER: moment, names.FLEET_HTTP_SIGNATURE_HEADER: signature}
            return fixed | signed

        self._client, self._headers = client, headers
        request = ActivateNodeRequest(public_key=known, heartbeat_interval=30)
        self._content = request.SerializeToString()

    def accepts(self, moment: str, seconds: float) -> bool:
        """See :class:`~fedmoe_app.flower.fleet.ClockProbe`."""
        try:
            answer = self._client.post(
                _PATH, content=self._content, headers=self._headers(moment), timeout=seconds
            )
        except httpx.HTTPError as error:
            raise UnreachableError(str(error)) from None
        if answer.status_code in _AWAY:
            raise UnreachableError(answer.reason_phrase)
        return answer.status_code != httpx.codes.UNAUTHORIZED
