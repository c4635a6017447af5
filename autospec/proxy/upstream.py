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
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import urlsplit

import httptools

__all__ = ["Answer", "BrokenError", "NotHttpError", "Upstream"]

# A loopback connection is made at once or not at all; the margin is for a machine under full load.
_CONNECT_TIMEOUT_S = 10.0
# Written at once, a longer body would hold up every stream while it is copied.
_SENT_AT_ONCE_BYTES = 256 * 1024
# A server's answer headers may be longer than a client's: llama-server names every model in some.
_HEAD_BYTES = 64 * 1024
# What waits for a reader who does not come; then nothing more is taken from the server.
_BUFFERED_BYTES = 256 * 1024
# llama-server has at least five threads for connections (server-http.cpp), and closes idle ones after 5 s.
_IDLE_PER_SERVER = 2
_IDLE_S = 3.0
# A body is announced to these even when it is empty (RFC 9110 §8.6).
_WITH_LENGTH = frozenset({"POST", "PUT", "PATCH"})
_WITHOUT_BODY = frozenset({204, 304})

# Takes a part of a body; false if the next reader in line lags behind.
Sink = Callable[[bytes], bool]


class BrokenError(Exception):
    """The connection broke, or none could be made."""


class NotHttpError(Exception):
    """What came is no HTTP answer."""


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

    async def _exchange(
        self, connection: _Connection, method: str, head: bytes, content: bytes
    ) -> Answer:
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
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

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


class Answer:
    """An answer whose headers have come; its body is read with `read`, or handed on with `pump`.

    Attributes:
        status: The code.
        reason: The words behind it.
        headers: In their order, repeated ones included.
        by_closing: True if the body ends where the connection does, so that nobody can tell its end from a break.
        ended: True if the whole body has come; `read` may still have some of it.
    """

    def __init__(self, connection: _Connection, method: str, loop: asyncio.AbstractEventLoop) -> None:
        self.status = 0
        self.reason = ""
        self.headers: list[tuple[str, str]] = []
        self.by_closing = False
        self.ended = False
        self._connection: _Connection | None = connection
        self._method = method
        self._loop = loop
        self._parser = httptools.HttpResponseParser(self)
        self._head_bytes = 0
        self._parts: list[bytes] = []
        self._size = 0
        self._sink: Sink | None = None
        self._lags = False
        self._paused = False
        self._reusable = False
        self._spoiled = False
        self._failed: BrokenError | NotHttpError | None = None
        self._waiter: asyncio.Future[None] | None = None

    # What the parser calls.

    def on_status(self, reason: bytes) -> None:
        """The words behind the code; may come in pieces."""
        self.reason += reason.decode("latin-1")

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > _HEAD_BYTES:
            raise ValueError("the headers are too long")
        self.headers.append((name.decode("latin-1"), value.decode(errors="replace")))

    def on_headers_complete(self) -> None:
        """The headers of this message; of an interim one they are dropped (RFC 9110 §15.2)."""
        status = self._parser.get_status_code()
        if status < 200:
            self.headers, self.reason = [], ""
            return
        self.status = status
        if self._method == "HEAD":
            self.ended = True  # whatever its length says
            return
        names = {name.lower(): value for name, value in self.headers}
        chunked = "chunked" in names.get("transfer-encoding", "").lower()
        self.by_closing = not chunked and "content-length" not in names and status not in _WITHOUT_BODY
        self._reusable = not self.by_closing and self._parser.should_keep_alive()

    def on_body(self, data: bytes) -> None:
        """Some of the body."""
        if not self.ended:
            self._parts.append(data)
            self._size += len(data)

    def on_message_begin(self) -> None:
        """The first one is ours, and any after interim ones."""
        self._spoiled |= self.ended

    def on_message_complete(self) -> None:
        """The end of this message."""
        if self.status:
            self.ended = True

    # What the connection calls.

    def feed(self, data: bytes) -> None:
        """Bytes from the server."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.spoil()
            if not self.ended and self._failed is None:
                kind = BrokenError if self.status else NotHttpError
                self._failed = kind(str(error.__context__ or error))
        if self._sink is not None and not self.ended:
            if self._parts and not self._sink(self._take()):
                self._lags = True
            if self._lags or self._failed is not None:
                self._wake()
            return
        if self._size > _BUFFERED_BYTES and not self._paused and self._connection is not None:
            self._paused = True
            self._connection.pause()
        self._wake()

    def lost(self, error: Exception | None) -> None:
        """The connection is gone."""
        self.spoil()
        if self.ended:
            return
        if self.status and self.by_closing and error is None:
            self.ended = True
        elif self._failed is None:
            self._failed = BrokenError(str(error) if error else "closed by the server")
        self._wake()

    # What the reader calls.

    @property
    def settled(self) -> bool:
        """True if the answer has begun or never will."""
        return self.status > 0 or self._failed is not None

    async def begun(self) -> None:
        """Wait for the headers.

        Raises:
            BrokenError: The connection broke before.
            NotHttpError: What came is something else.
        """
        while not self.status:
            if self._failed is not None:
                raise self._failed
            await self._wait()

    async def read(self) -> bytes:
        """The next part of the body; empty at its end.

        Raises:
            BrokenError: It broke off.
        """
        while not self._parts:
            if self._failed is not None:
                raise self._failed
            if self.ended:
                return b""
            self._resume()
            await self._wait()
        return self._take()

    async def pump(self, sink: Sink) -> None:
        """Hand on every part as it arrives, until the sink says that it is behind, or the answer ends.

        The last part is left for `read`.
        """
        if self._parts or self.ended or self._failed is not None:
            return
        self._sink, self._lags = sink, False
        self._resume()
        try:
            while not (self._lags or self.ended or self._failed is not None):
                await self._wait()
        finally:
            self._sink = None

    def spoil(self) -> None:
        """This connection is for no further request."""
        self._spoiled = True

    def close(self) -> None:
        """Let go of the connection: kept if the answer is whole, else closed, which the server sees at once."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if self.ended and self._reusable and not self._spoiled and not self._paused:
            connection.give_back()
        else:
            connection.drop()

    def _resume(self) -> None:
        if self._paused and self._connection is not None:
            self._paused = False
            self._connection.resume()

    def _take(self) -> bytes:
        parts = self._parts
        part = parts[0] if len(parts) == 1 else b"".join(parts)
        self._parts, self._size = [], 0
        return part

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        await self._waiter


@lru_cache(256)
def _place(base_url: str) -> _Place:
    parts = urlsplit(base_url)
    tls = parts.scheme == "https"
    port = parts.port or (443 if tls else 80)
    return _Place(parts.hostname or "", port, tls, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"))


def _head(
    place: _Place, method: str, target: str, headers: Iterable[tuple[str, str]], length: int
) -> bytes:
    lines = [f"{method} {place.prefix}{target} HTTP/1.1", f"Host: {place.authority}"]
    lines += [f"{name}: {value}" for name, value in headers]
    if length or method in _WITH_LENGTH:
        lines.append(f"Content-Length: {length}")
    text = "\r\n".join(lines)
    if text.count("\n") != len(lines) - 1 or text.count("\r") != len(lines) - 1 or "\0" in text:
        raise ValueError("a line's end inside of a line")
    return f"{text}\r\n\r\n".encode(errors="surrogateescape")
