"""A backend for faults and for looking: it notes what reaches it, byte for byte, and answers as the test says."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

SSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\nServer: stand-in\r\n\r\n"


@dataclass
class Asked:
    """One request as it arrived.

    Attributes:
        head: The request line and the headers.
        body: The rest.
        reader: Of the connection.
        writer: Of the connection.
        earlier: How many requests came on this connection before.
        whole: True if the answer has its end, so that the connection may be used again.
    """

    head: bytes
    body: bytes
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    earlier: int = 0
    whole: bool = False

    @property
    def line(self) -> bytes:
        """Method, target and version."""
        return self.head.split(b"\r\n", 1)[0]

    def header(self, name: bytes) -> bytes | None:
        """A header's value."""
        for line in self.head.split(b"\r\n")[1:]:
            key, _, value = line.partition(b":")
            if key.strip().lower() == name.lower():
                return value.strip()
        return None

    async def send(self, *parts: bytes) -> None:
        """Write raw bytes."""
        for part in parts:
            self.writer.write(part)
            await self.writer.drain()

    async def chunk(self, data: bytes) -> None:
        """Write one chunk of a chunked answer."""
        await self.send(b"%x\r\n%s\r\n" % (len(data), data))

    async def answer(self, body: bytes, status: bytes = b"200 OK", extra: bytes = b"") -> None:
        """Write a whole JSON answer."""
        head = b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%s\r\n"
        await self.send(head % (status, len(body), extra), b"" if self.line.startswith(b"HEAD ") else body)
        self.whole = True

    async def end(self) -> None:
        """Write the end of a chunked answer."""
        await self.send(b"0\r\n\r\n")
        self.whole = True

    async def gone(self) -> float:
        """Wait until the other side has closed, and say when that was (`time.perf_counter`)."""
        try:
            while await self.reader.read(65536):
                pass
        except ConnectionError:
            pass
        return time.perf_counter()


Behaviour = Callable[[Asked], Awaitable[Any]]


async def say_ok(asked: Asked) -> None:
    """An answer to anything."""
    await asked.answer(b'{"ok": true}')


@dataclass
class StandIn:
    """The server; `behaviour` may be changed at any time. It keeps connections after whole answers, as servers do."""

    behaviour: Behaviour = say_ok
    asked: list[Asked] = field(default_factory=list)
    _server: asyncio.Server | None = None

    async def start(self) -> StandIn:
        """Listen on a free port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    @property
    def base_url(self) -> str:
        """Where it listens."""
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        """End it."""
        assert self._server is not None
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        whole, earlier = True, 0
        try:
            while whole:
                head = await reader.readuntil(b"\r\n\r\n")
                asked = Asked(head, b"", reader, writer, earlier)
                length = int(asked.header(b"content-length") or 0)
                asked.body = await reader.readexactly(length)
                self.asked.append(asked)
                await self.behaviour(asked)
                whole, earlier = asked.whole, earlier + 1
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


def reset(asked: Asked) -> None:
    """End the connection as a killed process does."""
    asked.writer.transport.abort()
