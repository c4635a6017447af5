"""Connections to the servers: requests go out, and each part of an answer is passed on when it arrives.

Hand-written instead of aiohttp's client, with which each token goes through the event loop twice, once to fill a buffer and
once to wake its reader. Here the call that receives the bytes also sends them. At 8 streams on asyncio's loop the whole proxy
took 119 µs of processor time per token of 25-token answers (153 µs with aiohttp's client), and 76 µs of 150-token answers
(126 µs): one run of `studies/bench/proxy.py` on two busy cores. The parser is llhttp (`httptools`), which Node and aiohttp use
too.

A new connection costs as much processor time as the rest of a request, so connections are kept for a moment. llama-server
(cpp-httplib) occupies a thread for each open connection. New builds start more threads when they need them, and each
connection to them is kept. Older ones have a fixed number of threads: only a few connections to them are kept, and none while
any request waits for its answer, and so perhaps for a thread. Servers of other kinds are treated like the older builds.
"""

from __future__ import annotations

import asyncio
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import cast
from urllib.parse import urlsplit

from autospec.proxy.answer import Answer, BrokenError

__all__ = ["LineBreakError", "Upstream", "has_growing_pool"]

# A loopback connection is made at once or not at all, except under full load.
_CONNECT_TIMEOUT_S = 10.0
# A longer body is written in parts: copying it at once would stall all streams.
_SENT_AT_ONCE_BYTES = 256 * 1024
# llama-server closes idle connections after 5 s (server-http.cpp).
_IDLE_S = 3.0
# Timers have the resolution of the loop's clock, a millisecond with uvloop.
_EARLY_S = 0.01
# The smallest number of threads of any build is 3 (slots + 2, later + 4): one stays free for clients that bypass the proxy.
_MOST_IDLE = 2
# With a growing pool: enough for any number of slots. The threads of such a pool end at 1024 more than `--threads-http`.
_MOST_IDLE_OF_GROWING_POOL = 128
# A growing pool (`server_http_context::start` in server-http.cpp) came with pull request 20817 of March 2026, after b8487. This later
# build, whose help is captured in tests/backends/help, is taken as the first with it; b11434's source was read.
_GROWING_POOL_BUILD = 9093
# A kept connection that the server has closed breaks within the first round trip. If it breaks later, the request may have
# been processed, and a silent second attempt would process it twice.
_STALE_S = 0.5
# All other methods get Content-Length even for an empty body (RFC 9110 §8.6).
_WITHOUT_LENGTH = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})


class LineBreakError(ValueError):
    """A header or the target of a request contains a line break."""


@dataclass(frozen=True, slots=True)
class _Origin:
    host: str
    port: int
    tls: bool
    authority: str
    prefix: str


class Upstream:
    """Sends requests to servers. Create it in a running event loop, and `close` it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._open: defaultdict[_Origin, set[_BackendConnection]] = defaultdict(set)
        self._idle: dict[_Origin, list[_BackendConnection]] = {}
        self._closed = False
        self._sweep: asyncio.TimerHandle | None = None

    async def ask(
        self,
        base_url: str,
        method: str,
        target: str,
        headers: Iterable[tuple[str, str]],
        content: bytes,
        *,
        growing_pool: bool = False,
        sent: Callable[[], object] = lambda: None,
    ) -> Answer:
        """Send a request and wait for the headers of its answer.

        Args:
            base_url: Of the server.
            method: Of the request.
            target: Path and query.
            headers: Without Host and Content-Length.
            content: The body.
            growing_pool: See `has_growing_pool`.
            sent: Called when the request is on its way, before the wait for its answer.

        Raises:
            BrokenError: The server cannot be reached, or closed before it answered.
            NotHttpError: The answer is not HTTP.
            LineBreakError: A header or the target contains a line break.
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
                return await self._exchange(kept, answer, head, content, sent)
            except BrokenError:
                # The server may just have closed the kept connection, which is no failure.
                if answer.received_bytes or self._loop.time() - begun_s > _STALE_S:
                    raise
        connection = await self._connected(place, growing_pool=growing_pool)
        answer = Answer(connection, method, self._loop, with_body=bool(content))
        return await self._exchange(connection, answer, head, content, sent)

    def close(self) -> None:
        """Close the kept connections."""
        self._closed = True
        if self._sweep is not None:
            self._sweep.cancel()
        for kept in [connection for idle in self._idle.values() for connection in idle]:
            kept.drop()

    async def _connected(self, place: _Origin, *, growing_pool: bool) -> _BackendConnection:
        connection = _BackendConnection(self, place, growing_pool=growing_pool)
        # Counted from now on: a pending connection needs one of the server's threads too.
        self._open[place].add(connection)
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                await self._loop.create_connection(
                    lambda: connection, place.host, place.port, ssl=place.tls or None
                )
        except BaseException as error:
            self.forget(connection)
            # ValueError: an invalid host name; OverflowError: an invalid port.
            if isinstance(error, OSError | TimeoutError | ValueError | OverflowError):
                raise BrokenError(str(error) or "no connection in time") from error
            raise
        return connection

    async def _exchange(
        self,
        connection: _BackendConnection,
        answer: Answer,
        head: bytes,
        content: bytes,
        sent: Callable[[], object],
    ) -> Answer:
        connection.answer = answer
        try:
            if len(content) <= _SENT_AT_ONCE_BYTES:
                connection.write(head + content)
            else:
                connection.write(head)
                for start in range(0, len(content), _SENT_AT_ONCE_BYTES):
                    if answer.refuses:  # before it has read everything
                        answer.spoil()
                        break
                    connection.write(content[start : start + _SENT_AT_ONCE_BYTES])
                    await connection.room()
            sent()
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
        return None if connection.closing else connection

    def keep(self, connection: _BackendConnection) -> None:
        """Take a connection back after a complete answer."""
        place = connection.place
        if self._closed or connection.closing or not self._has_room_for(connection):
            connection.drop()
            return
        self._idle.setdefault(place, []).append(connection)
        connection.rest(self._loop.time())
        # One timer for all: a timer of its own for each request costs more than its headers.
        if self._sweep is None:
            self._sweep = self._loop.call_later(_IDLE_S, self._drop_idle)

    def _drop_idle(self) -> None:
        """Close what has been idle for long, and look again when the next one will have been."""
        self._sweep = None
        now_s = self._loop.time()
        for connection in [connection for idle in self._idle.values() for connection in idle]:
            if now_s - connection.idle_since_s >= _IDLE_S - _EARLY_S:
                connection.drop()
        oldest_s = min((one.idle_since_s for idle in self._idle.values() for one in idle), default=None)
        if oldest_s is not None:
            self._sweep = self._loop.call_at(oldest_s + _IDLE_S, self._drop_idle)

    def _has_room_for(self, connection: _BackendConnection) -> bool:
        """True if the server can spare the thread of one more idle connection."""
        idle = len(self._idle.get(connection.place, ()))
        if connection.growing_pool:
            return idle < _MOST_IDLE_OF_GROWING_POOL
        return idle < _MOST_IDLE and not any(other.waits for other in self._open[connection.place])

    def forget(self, connection: _BackendConnection) -> None:
        """Remove a connection."""
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

    def __init__(self, upstream: Upstream, place: _Origin, *, growing_pool: bool) -> None:
        self.place = place
        self.growing_pool = growing_pool
        self.answer: Answer | None = None
        self._upstream = upstream
        self.idle_since_s = 0.0  # by the loop's clock
        self._transport: asyncio.Transport | None = None
        self._room: asyncio.Event | None = None

    @property
    def closing(self) -> bool:
        """True if nothing more can be sent."""
        return self._transport is None or self._transport.is_closing()

    @property
    def waits(self) -> bool:
        """True while the connection is being made, or its answer has not begun."""
        return self._transport is None if self.answer is None else not self.answer.settled

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's class is not derived from it

    def data_received(self, data: bytes) -> None:
        if self.answer is None:
            self.drop()  # there is no request
            return
        self.answer.feed(data)
        if self._room is not None and self.answer.refuses:
            self._room.set()  # the rest need not be sent

    def eof_received(self) -> None:
        if self.answer is not None:
            self.answer.lost(None)
        # asyncio's own close would wait until the server has taken all unsent data.
        if self._transport is not None and self._transport.get_write_buffer_size() > 0:
            self._transport.abort()
        if self._room is not None:
            self._room.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
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
        """Send; the transport buffers what the socket does not take."""
        if self._transport is not None:
            self._transport.write(data)

    def pause(self) -> None:
        if self._transport is not None:
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._transport is not None:
            self._transport.resume_reading()

    def rest(self, now_s: float) -> None:
        """Idle from now on."""
        self.answer, self.idle_since_s = None, now_s

    def drop(self) -> None:
        self._upstream.forget(self)
        if self._transport is not None:
            self._transport.abort()

    def give_back(self) -> None:
        self._upstream.keep(self)


@lru_cache(64)
def has_growing_pool(backend: str, build: str) -> bool:
    """True if the server starts a thread for each connection that needs one. A build without a number counts as old."""
    number = re.fullmatch(r"b(\d+)", build)
    return backend == "llama-server" and number is not None and int(number[1]) >= _GROWING_POOL_BUILD


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
        raise LineBreakError("a line break inside a line")
    try:
        return f"{text}\r\n\r\n".encode(errors="surrogateescape")
    except UnicodeEncodeError:
        raise LineBreakError("a lone surrogate in a line") from None
