"""A pipe between clients and a backend that does not read the data: the minimum cost of a proxy in Python."""

from __future__ import annotations

import asyncio
from typing import Any

__all__ = ["pipe"]


class _End(asyncio.Protocol):
    """One of a connection's two sockets."""

    def __init__(self) -> None:
        self.other: _End | None = None
        self.transport: Any = None
        self.waiting = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if self.other is None:
            self.waiting += data
        else:
            self.other.transport.write(data)

    def connection_lost(self, _exc: Exception | None) -> None:
        if self.other is not None:
            self.other.transport.close()


async def pipe(backend_port: int) -> None:
    """Serve without end; prints its port."""
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()

    async def join(client: _End) -> None:
        _, server = await loop.create_connection(_End, "127.0.0.1", backend_port)
        client.other, server.other = server, client
        server.transport.write(client.waiting)

    def accept() -> _End:
        client = _End()
        task = loop.create_task(join(client))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        return client

    server = await loop.create_server(accept, "127.0.0.1", 0, backlog=512)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
