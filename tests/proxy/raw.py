"""A client without manners: raw bytes to the proxy, whatever comes back."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

TIMEOUT_S = 20.0


@contextlib.contextmanager
def connected(base_url: str) -> Iterator[socket.socket]:
    """An open connection."""
    host, port = base_url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=TIMEOUT_S) as raw:
        yield raw


def everything(raw: socket.socket) -> bytes:
    """All bytes until the other side closes or resets."""
    received = bytearray()
    with contextlib.suppress(ConnectionError):
        while part := raw.recv(65536):
            received += part
    return bytes(received)


def exchange(base_url: str, request: bytes) -> bytes:
    """Send bytes and read until the proxy closes."""
    with connected(base_url) as raw:
        with contextlib.suppress(ConnectionError):  # refused before it was sent
            raw.sendall(request)
        return everything(raw)


def post(path: str, body: bytes, *headers: bytes) -> bytes:
    """A plain POST that asks for the connection to be closed."""
    lines = [b"POST %s HTTP/1.1" % path.encode(), b"Host: localhost", b"Connection: close", *headers]
    return b"\r\n".join([*lines, b"Content-Length: %d" % len(body), b"", body])
