"""Connections to the servers: requests go out, and each part of an answer is passed on in the moment it arrives.

aiohttp's client was here before. Profiled at 8 streams, it was a third of the processor time of a request, and each token
went twice through the event loop: once to fill a buffer, once to wake the task that empties it. Here the bytes go from one
socket to the other in the call that brings them. The parsing is llhttp's (`httptools`), which is Node's and aiohttp's too.

A few connections are kept for the next request. Only a few and not for long: llama-server gives each one a thread for as
long as it is open (cpp-httplib), so that many idle ones would keep new requests waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import cast
from urllib.parse import urlsplit

from autospec.proxy.answer import Answer, BrokenError

__all__ = ["Upstream"]

# A loopback connection is made at once or not at all; the margin is for a machine under full load.
_CONNECT_TIMEOUT_S = 10.0
# Written at once, a longer body would hold up every stream while it is copied.
_SENT_AT_ONCE_BYTES = 256 * 1024
# llama-server has at least five threads for connections (server-http.cpp), and closes idle ones after 5 s.
_IDLE_PER_SERVER = 2
_IDLE_S = 3.0
# A body is announced to these even when it is empty (RFC 9110 §8.6).
_WITH_LENGTH = frozenset({"POST", "PUT", "PATCH"})


@dataclass(frozen=True, slots=True)
class _Place:
    host: str
    port: int
    tls: bool
    authority: str
    prefix: str


class Upstream:
    """Asks servers. Make it inside of a running event loop, and `close` it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._idle: defaultdict[_Place, list[_Connection]] = defaultdict(list)
        self._closed = False

    async def ask(
        self, base_url: str, method: str, target: str, headers: Iterable[tuple[str, str]], content: bytes
    ) -> Answer:
        """Send a request; returns when the answer's headers are there.

        Args:
            base_url: Of the server.
            method: In capitals.
            target: Path and query, as they go out.
            headers: Without those that the connection is described by.
            content: The whole body.

        Raises:
            BrokenError: The server cannot be reached, or closed before it answered.
            NotHttpError: What it sent is no HTTP.
            ValueError: A header or the target holds a line's end.
        """
        place = _place(base_url)
        head = _head(place, method, target, headers, len(content))
        if (kept := self._kept(place)) is not None:
            # The server may have closed it in this moment: that tells nothing about the server.
            with contextlib.suppress(BrokenError):
                return await self._exchange(kept, method, head, content)
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                _, connection = await self._loop.create_connection(
                    lambda: _Connection(self, place), place.host, place.port, ssl=place.tls or None
                )
        except (OSError, TimeoutError) as error:
            raise BrokenError(str(error) or "no connection in time") from error
        return await self._exchange(connection, method, head, content)

    def close(self) -> None:
        """Let go of the connections that are kept."""
        self._closed = True
        for kept in [c for connections in self._idle.values() for c in connections]:
            kept.drop()
        self._idle.clear()

    async def _exchange(self, connection: _Connection, method: str, head: bytes, content: bytes) -> Answer:
        answer = connection.answer = Answer(connection, method, self._loop)
        try:
            if len(content) <= _SENT_AT_ONCE_BYTES:
                connection.write(head + content)
            else:
                connection.write(head)
                for start in range(0, len(content), _SENT_AT_ONCE_BYTES):
                    if answer.settled:  # it refuses before it has heard everything
                        answer.spoil()
                        break
                    connection.write(content[start : start + _SENT_AT_ONCE_BYTES])
                    await connection.room()
            await answer.begun()
        except BaseException:
            answer.close()
            raise
        return answer

    def _kept(self, place: _Place) -> _Connection | None:
        connections = self._idle[place]
        while connections:
            # The last one used: the others grow old and close.
            connection = connections.pop()
            connection.awake()
            if not connection.closing:
                return connection
        return None

    def keep(self, connection: _Connection) -> None:
        """Take a connection back after a whole answer."""
        connections = self._idle[connection.place]
        if self._closed or connection.closing or len(connections) >= _IDLE_PER_SERVER:
            connection.drop()
            return
        connections.append(connection)
        connection.rest(self._loop.call_later(_IDLE_S, connection.drop))

    def forget(self, connection: _Connection) -> None:
        """A connection is gone."""
        connections = self._idle.get(connection.place)
        if connections is not None:
            if connection in connections:
                connections.remove(connection)
            if not connections:
                del self._idle[connection.place]


class _Connection(asyncio.Protocol):
    """One socket."""

    def __init__(self, upstream: Upstream, place: _Place) -> None:
        self.place = place
        self.answer: Answer | None = None
        self._upstream = upstream
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._room: asyncio.Event | None = None

    @property
    def closing(self) -> bool:
        """True if nothing can be sent any more."""
        return self._transport is None or self._transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by its class

    def data_received(self, data: bytes) -> None:
        if self.answer is None:
            self.drop()  # nobody has asked
        else:
            self.answer.feed(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.awake()
        self._upstream.forget(self)
        if self._room is not None:
            self._room.set()
        if self.answer is not None:
            self.answer.lost(exc)

    def pause_writing(self) -> None:
        self._room = asyncio.Event()

    def resume_writing(self) -> None:
        if self._room is not None:
            self._room.set()
            self._room = None

    async def room(self) -> None:
        """Wait until the server takes more."""
        if self._room is not None:
            await self._room.wait()

    def write(self, data: bytes) -> None:
        """Send; what the socket does not take at once is sent later."""
        if self._transport is not None:
            self._transport.write(data)

    def pause(self) -> None:
        """Take nothing more from the server."""
        if self._transport is not None:
            self._transport.pause_reading()

    def resume(self) -> None:
        """Go on taking."""
        if self._transport is not None:
            self._transport.resume_reading()

    def rest(self, timer: asyncio.TimerHandle) -> None:
        """Kept until the timer ends it."""
        self.answer, self._timer = None, timer

    def awake(self) -> None:
        """Not idle any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def drop(self) -> None:
        """Close at once, whatever is still on its way."""
        if self._transport is not None:
            self._transport.abort()

    def give_back(self) -> None:
        """Whole answer, nothing open: for the next request."""
        self._upstream.keep(self)


@lru_cache(256)
def _place(base_url: str) -> _Place:
    parts = urlsplit(base_url)
    tls = parts.scheme == "https"
    port = parts.port or (443 if tls else 80)
    return _Place(parts.hostname or "", port, tls, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"))


def _head(place: _Place, method: str, target: str, headers: Iterable[tuple[str, str]], length: int) -> bytes:
    lines = [f"{method} {place.prefix}{target} HTTP/1.1", f"Host: {place.authority}"]
    lines += [f"{name}: {value}" for name, value in headers]
    if length or method in _WITH_LENGTH:
        lines.append(f"Content-Length: {length}")
    text = "\r\n".join(lines)
    if text.count("\n") != len(lines) - 1 or text.count("\r") != len(lines) - 1 or "\0" in text:
        raise ValueError("a line's end inside of a line")
    return f"{text}\r\n\r\n".encode(errors="surrogateescape")
