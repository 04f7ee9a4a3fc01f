"""A proxy with TLS that passes a SuperLink's ``/v1/fleet/`` on and nothing else."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.launch.superlinks import served

PASSED_ON = "/v1/fleet/"
_OF_ONE_CONNECTION = (b"host", b"connection", b"content-length", b"transfer-encoding")


@contextmanager
def fleet_proxy(port: int, superlink: str, keys: Path) -> Iterator[str]:
    """Listen on loopback; yield the address for nodes.

    Args:
        port: to listen on.
        superlink: ``HOST:PORT`` of the SuperLink, with TLS.
        keys: a folder of ``fedmoe certificates``, for both sides.
    """
    import uvicorn

    app = _PassingOn(f"https://{superlink}", ssl.create_default_context(cafile=keys / "ca.crt"))
    certificate = {"ssl_certfile": keys / "server.crt", "ssl_keyfile": keys / "server.key"}
    config = uvicorn.Config(
        app, "127.0.0.1", port, log_level="error", lifespan="off", **certificate
    )
    with served(config):
        yield f"127.0.0.1:{port}"


class _PassingOn:
    """The ASGI app."""

    def __init__(self, base: str, trust: ssl.SSLContext) -> None:
        import httpx

        self._client = httpx.AsyncClient(base_url=base, verify=trust, timeout=60, trust_env=False)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            part = await receive()
            body, more = body + part.get("body", b""), part.get("more_body", False)
        if not scope["path"].startswith(PASSED_ON):
            await self._answer(send, 404, [], b"")
            return
        headers = [pair for pair in scope["headers"] if pair[0] not in _OF_ONE_CONNECTION]
        answer = await self._client.request(
            scope["method"], scope["path"], headers=headers, content=body
        )
        drop = (*_OF_ONE_CONNECTION, b"content-encoding")
        kept = [(n.lower(), v) for n, v in answer.headers.raw if n.lower() not in drop]
        await self._answer(send, answer.status_code, kept, answer.content)

    async def _answer(self, send: Any, status: int, headers: list[Any], body: bytes) -> None:
        length = (b"content-length", str(len(body)).encode())
        await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
        await send({"type": "http.response.body", "body": body})
