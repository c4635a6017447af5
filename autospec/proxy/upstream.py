"""Connections to the servers: requests go out, and each part of an answer is passed on in the moment it arrives.

aiohttp's client was here before. Profiled at 8 streams, it was a third of the processor time of a request, and each token
went twice through the event loop: once to fill a buffer, once to wake the task that empties it. Here the bytes go from one
socket to the other in the call that brings them. The parsing is llhttp's (`httptools`), which is Node's and aiohttp's too.

Making a connection costs as much processor time as everything else that is done for a request, so that a few are kept for
the next ones, for a moment. llama-server gives each one a thread for as long as it is open (cpp-httplib), and builds before
2026 have a fixed number of them: while a request waits for its answer, which may mean for a thread, none is kept.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import cast
from urllib.parse import urlsplit

from autospec.proxy.answer import Answer, BrokenError

__all__ = ["LineBreakError", "Upstream"]

# A loopback connection is made at once or not at all; the margin is for a machine under full load.
_CONNECT_TIMEOUT_S = 10.0
# Written at once, a longer body would hold up every stream while it is copied.
_SENT_AT_ONCE_BYTES = 256 * 1024
# llama-server closes idle connections after 5 s (server-http.cpp).
_IDLE_S = 3.0
# The fewest threads of any build are 3 (slots + 2, later + 4): while nothing is asked, one is left for whoever asks the
# server past the proxy.
_MOST_IDLE = 2
# A kept connection that the server has closed breaks in the round trip of the first bytes. One that breaks later has had
# the request at work, which a silent second try would do twice.
_STALE_S = 0.5
# To all others a body is announced even when it is empty (RFC 9110 §8.6), so that none has to be guessed.
_WITHOUT_LENGTH = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})


class LineBreakError(ValueError):
    """A header or the target of a request cannot be written as one line."""


@dataclass(frozen=True, slots=True)
class _Origin:
    host: str
    port: int
    tls: bool
    authority: str
    prefix: str


class Upstream:
    """Asks servers. Make it inside of a running event loop, and `close` it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._open: defaultdict[_Origin, set[_BackendConnection]] = defaultdict(set)
        self._idle: dict[_Origin, list[_BackendConnection]] = {}
        self._closed = False

    async def ask(
        self,
        base_url: str,
        method: str,
        target: str,
        headers: Iterable[tuple[str, str]],
        content: bytes,
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
            LineBreakError: A header or the target holds a line's end.
        """
        try:
            place = _place(base_url)
        except ValueError as error:
            raise BrokenError(str(error)) from error
        head = _head(place, method, target, headers, len(content))
        if (kept := self._kept(place)) is not None:
            answer = Answer(kept, method, self._loop, with_body=bool(content))
            begun_s = self._loop.time()
            try:
                return await self._exchange(kept, answer, head, content)
            except BrokenError:
                # The server may have closed it in this moment: that tells nothing about the server.
                if answer.heard or self._loop.time() - begun_s > _STALE_S:
                    raise
        connection = await self._connected(place)
        answer = Answer(connection, method, self._loop, with_body=bool(content))
        return await self._exchange(connection, answer, head, content)

    def close(self) -> None:
        """Let go of the connections that are kept."""
        self._closed = True
        for kept in [connection for idle in self._idle.values() for connection in idle]:
            kept.drop()

    async def _connected(self, place: _Origin) -> _BackendConnection:
        connection = _BackendConnection(self, place)
        # From now on: who waits for a connection needs the server's threads too.
        self._open[place].add(connection)
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                await self._loop.create_connection(
                    lambda: connection, place.host, place.port, ssl=place.tls or None
                )
        except BaseException as error:
            self.forget(connection)
            # The last two: a host that is no name, a port that is none.
            if isinstance(error, OSError | TimeoutError | ValueError | OverflowError):
                raise BrokenError(str(error) or "no connection in time") from error
            raise
        return connection

    async def _exchange(
        self, connection: _BackendConnection, answer: Answer, head: bytes, content: bytes
    ) -> Answer:
        connection.answer = answer
        try:
            if len(content) <= _SENT_AT_ONCE_BYTES:
                connection.write(head + content)
            else:
                connection.write(head)
                for start in range(0, len(content), _SENT_AT_ONCE_BYTES):
                    if answer.refuses:  # before it has heard everything
                        answer.spoil()
                        break
                    connection.write(content[start : start + _SENT_AT_ONCE_BYTES])
                    await connection.room()
            await answer.begun()
        except BaseException:
            answer.close()
            raise
        return answer

    def _kept(self, place: _Origin) -> _BackendConnection | None:
        idle = self._idle.get(place)
        if not idle:
            return None
        connection = idle.pop()
        connection.awake()
        return None if connection.closing else connection

    def keep(self, connection: _BackendConnection) -> None:
        """Take a connection back after a whole answer."""
        place = connection.place
        if (
            self._closed
            or connection.closing
            or len(self._idle.get(place, ())) >= _MOST_IDLE
            or any(other.waits for other in self._open[place])
        ):
            connection.drop()
            return
        self._idle.setdefault(place, []).append(connection)
        connection.rest(self._loop.call_later(_IDLE_S, connection.drop))

    def forget(self, connection: _BackendConnection) -> None:
        """A connection is gone."""
        place = connection.place
        if connection in (idle := self._idle.get(place, [])):
            idle.remove(connection)
        if (connections := self._open.get(place)) is not None:
            connections.discard(connection)
            if not connections:
                del self._open[place]
                self._idle.pop(place, None)


class _BackendConnection(asyncio.Protocol):
    """One socket."""

    def __init__(self, upstream: Upstream, place: _Origin) -> None:
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

    @property
    def waits(self) -> bool:
        """True if somebody waits for the connection, or for the answer on it to begin."""
        return self._transport is None if self.answer is None else not self.answer.settled

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by its class

    def data_received(self, data: bytes) -> None:
        if self.answer is None:
            self.drop()  # nobody has asked
            return
        self.answer.feed(data)
        if self._room is not None and self.answer.refuses:
            self._room.set()  # who waits to send the rest need not

    def eof_received(self) -> None:
        if self.answer is not None:
            self.answer.lost(None)
        # Closing, which comes by itself now, would wait for as long as the server does not take what is still to be sent.
        if self._transport is not None and self._transport.get_write_buffer_size() > 0:
            self._transport.abort()
        if self._room is not None:
            self._room.set()

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
        self._upstream.forget(self)
        if self._transport is not None:
            self._transport.abort()

    def give_back(self) -> None:
        """Whole answer, nothing open: for the next request."""
        self._upstream.keep(self)


@lru_cache(256)
def _place(base_url: str) -> _Origin:
    parts = urlsplit(base_url)
    tls = parts.scheme == "https"
    port = parts.port or (443 if tls else 80)
    return _Origin(parts.hostname or "", port, tls, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"))


def _head(place: _Origin, method: str, target: str, headers: Iterable[tuple[str, str]], length: int) -> bytes:
    lines = [f"{method} {place.prefix}{target} HTTP/1.1", f"Host: {place.authority}"]
    lines += [f"{name}: {value}" for name, value in headers]
    if length or method not in _WITHOUT_LENGTH:
        lines.append(f"Content-Length: {length}")
    text = "\r\n".join(lines)
    if text.count("\n") != len(lines) - 1 or text.count("\r") != len(lines) - 1 or "\0" in text:
        raise LineBreakError("a line's end inside of a line")
    try:
        return f"{text}\r\n\r\n".encode(errors="surrogateescape")
    except UnicodeEncodeError:
        raise LineBreakError("a line with half a character") from None
