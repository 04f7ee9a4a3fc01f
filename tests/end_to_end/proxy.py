"""A TCP proxy on loopback that a test can cut."""

from __future__ import annotations

import selectors
import socket
import threading
from contextlib import suppress
from typing import Self


class Proxy:
    """Forwards connections to a port until it is cut; while it is, bytes go nowhere.

    Nothing is closed on a cut, as nothing is when a cable is pulled.
    """

    def __init__(self, target_port: int) -> None:
        self._target = ("127.0.0.1", target_port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._peers: dict[socket.socket, socket.socket] = {}
        self._whole = threading.Event()
        self._whole.set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._forward, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._whole.set()
        self._thread.join()
        for connection in (*self._peers, self._listener):
            connection.close()

    def cut(self) -> None:
        self._whole.clear()

    def mend(self) -> None:
        self._whole.set()

    def _forward(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            while not self._ended.is_set():
                for key, _ in selector.select(timeout=0.1):
                    self._whole.wait()
                    self._handle(selector, key.fileobj)  # type: ignore[arg-type]

    def _handle(self, selector: selectors.BaseSelector, source: socket.socket) -> None:
        if source is self._listener:
            near, far = source.accept()[0], socket.create_connection(self._target)
            self._peers |= {near: far, far: near}
            selector.register(near, selectors.EVENT_READ)
            selector.register(far, selectors.EVENT_READ)
        elif source in self._peers:
            data = b""
            with suppress(OSError):
                if data := source.recv(65536):
                    self._peers[source].sendall(data)
            if not data:
                self._close(selector, source)

    def _close(self, selector: selectors.BaseSelector, source: socket.socket) -> None:
        for connection in (source, self._peers[source]):
            selector.unregister(connection)
            connection.close()
            del self._peers[connection]
