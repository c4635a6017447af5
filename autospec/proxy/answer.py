"""A backend's answer, parsed as it comes by llhttp (`httptools`), and handed on without a task in between."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

import httptools

__all__ = ["Answer", "BrokenError", "Line", "NotHttpError", "Sink"]

# A server's answer headers may be longer than a client's: llama-server names every model in some.
_HEAD_BYTES = 64 * 1024
# What waits for a reader who does not come; then nothing more is taken from the server.
_BUFFERED_BYTES = 256 * 1024
_WITHOUT_BODY = frozenset({204, 304})

# Takes a part of a body; false if the next reader in line lags behind.
Sink = Callable[[bytes], bool]


class BrokenError(Exception):
    """The connection broke, or none could be made."""


class NotHttpError(Exception):
    """What came is no HTTP answer."""


class Line(Protocol):
    """The connection that an answer comes on."""

    def pause(self) -> None:
        """Take nothing more from the server."""

    def resume(self) -> None:
        """Go on taking."""

    def give_back(self) -> None:
        """Whole answer, nothing open: for the next request."""

    def drop(self) -> None:
        """Close at once, whatever is still on its way."""


class Answer:
    """An answer whose headers have come; its body is read with `read`, or handed on with `pump`.

    Attributes:
        status: The code.
        reason: The words behind it.
        headers: In their order, repeated ones included.
        by_closing: True if the body ends where the connection does, so that nobody can tell its end from a break.
        ended: True if the whole body has come; `read` may still have some of it.
    """

    def __init__(self, connection: Line, method: str, loop: asyncio.AbstractEventLoop) -> None:
        self.status = 0
        self.reason = ""
        self.headers: list[tuple[str, str]] = []
        self.by_closing = False
        self.ended = False
        self._connection: Line | None = connection
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
            while not self._pumped():
                await self._wait()
        finally:
            self._sink = None

    def _pumped(self) -> bool:
        return self._lags or self.ended or self._failed is not None

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
