"""A backend's HTTP answer, parsed as it arrives by llhttp (`httptools`), and passed on without a task in between.

Hand-written, see `autospec.proxy.upstream`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from copy import copy
from typing import Protocol

import httptools

__all__ = ["Answer", "BrokenError", "NotHttpError", "Sink"]

# Takes a part of a body; returns false if its own reader is behind.
Sink = Callable[[bytes], bool]


class BackendLine(Protocol):
    """The connection that an answer arrives on."""

    def pause(self) -> None:
        """Stop reading from the server."""

    def resume(self) -> None:
        """Continue to read."""

    def give_back(self) -> None:
        """Keep the connection for the next request."""

    def drop(self) -> None:
        """Close at once."""


# Answers may have longer headers than requests: llama-server names every model in some.
_HEAD_BYTES = 64 * 1024
# Data buffered for a slow reader before reading from the server is paused.
_BUFFERED_BYTES = 256 * 1024
# Comments in a stream that is silent, from a thread or task that only waits: llama-server's (``--sse-ping-interval``), and with the
# time behind it sse-starlette's, every 15 s (llama-cpp-python). MLX's ``: keepalive N/M`` tells how far the prompt is read.
_PING = b":\n\n"
_TIMED_PING = b": ping - "
_WITHOUT_BODY = frozenset({204, 304})
# Methods after which a connection is reused. Not HEAD: llhttp cannot know that its answer has no body.
_REUSED_AFTER = frozenset({"GET", "POST"})


class BrokenError(Exception):
    """The connection broke, or could not be made."""


class NotHttpError(Exception):
    """The answer is not HTTP."""


class Answer:
    """An answer; its body is read with `read`, or passed on with `pump`."""

    def __init__(
        self,
        connection: BackendLine,
        method: str,
        loop: asyncio.AbstractEventLoop,
        *,
        with_body: bool = False,
    ) -> None:
        """Wait for an answer on a connection; `with_body` says if the request has a body."""
        self.status = 0  # 0 before the headers
        self.reason = ""
        self.headers: list[tuple[str, str]] = []
        self.is_utf8 = True  # all of the above; other bytes are lone surrogates (``surrogateescape``)
        self.by_closing = False  # the body ends with the connection: a break looks the same
        self.ended = False  # the whole body has arrived; `read` may still have a part of it
        self.received_bytes = 0
        self.told_bytes = 0  # of the body, without comments that only keep the connection open
        self._connection: BackendLine | None = connection
        self._method = method
        self._with_body = with_body
        self._loop = loop
        self._parser = httptools.HttpResponseParser(self)
        self._reason = b""
        self._head_bytes = 0
        self._waited_bytes = 0
        self._parts: list[bytes] = []
        self._size = 0
        self._sink: Sink | None = None
        self._sink_error: Exception | None = None
        self._lags = False
        self._paused = False
        self._reusable = False
        self._spoiled = False
        self._failed: BrokenError | NotHttpError | None = None
        self._waiter: asyncio.Future[None] | None = None

    # Callbacks of the parser. After the status there is only the body, trailers (which are not merged into the headers,
    # RFC 9110 §6.5.1), or an unsolicited message; none of them may change the answer.

    def on_status(self, reason: bytes) -> None:
        """A part of the reason phrase."""
        if self.status:
            return
        self._reason += reason
        self._count_head(len(reason))

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        if self.status:
            return
        self._count_head(len(name) + len(value))
        self.headers.append((self._text(name), self._text(value)))

    def on_headers_complete(self) -> None:
        """End of the headers; those of an interim answer are dropped (RFC 9110 §15.2)."""
        if self.status:
            return
        status = self._parser.get_status_code()
        if status < 200:
            self.headers, self._reason, self.is_utf8 = [], b"", True
            return
        names = [name.lower() for name, _ in self.headers]
        codings = [value for name, value in self.headers if name.lower() == "transfer-encoding"]
        if len(codings) > 1:  # llhttp and the server may disagree about their meaning
            raise ValueError("several Transfer-Encoding lines")
        self.status = status
        self.reason = self._text(self._reason)
        if self._method == "HEAD":
            self.ended = True  # whatever Content-Length says
            return
        # Only the last coding says how the body ends (RFC 9112 §6.3).
        chunked = bool(codings) and codings[0].rpartition(",")[2].strip().lower() == "chunked"
        self.by_closing = not chunked and "content-length" not in names and status not in _WITHOUT_BODY
        # llama-server refuses (401, 503) before it has read the body, and would then parse the body as the next request.
        heard_out = status < 400 or not self._with_body
        self._reusable = (
            not self.by_closing
            and heard_out
            and self._method in _REUSED_AFTER
            and self._parser.should_keep_alive()
        )

    def on_body(self, data: bytes) -> None:
        """A part of the body."""
        if not self.ended:
            self._parts.append(data)
            self._size += len(data)
            if data != _PING and not data.startswith(_TIMED_PING):
                self.told_bytes += len(data)

    def on_message_begin(self) -> None:
        """Start of a message; after the final status it is unsolicited."""
        self._spoiled |= self.status > 0

    def on_message_complete(self) -> None:
        """End of a message."""
        if self.status:
            self.ended = True

    # Called by the connection.

    def feed(self, data: bytes) -> None:
        """Bytes from the server."""
        self.received_bytes += len(data)
        try:
            self._parser.feed_data(data)
            # llhttp reports a header when it is complete; an endless one is counted here.
            if not self.status:
                self._waited_bytes += len(data)
                if self._waited_bytes > _HEAD_BYTES:
                    self._fail("the headers are too long")
        except httptools.HttpParserError as error:
            self._fail(str(error.__context__ or error))
        except httptools.HttpParserUpgrade:  # is no HttpParserError
            self._fail("a change of protocol that was not requested")
        if self._sink is not None and not self.ended:
            if self._parts:
                self._hand_on(self._sink)
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

    # Called by the reader.

    @property
    def settled(self) -> bool:
        """True if the answer has begun or failed."""
        return self.status > 0 or self._failed is not None

    @property
    def refuses(self) -> bool:
        """True if the server wants no more of the request: it refused, closed, or has answered completely."""
        return self.status >= 400 or self.ended or self._failed is not None

    async def begun(self) -> None:
        """Wait for the headers; raises `BrokenError` or `NotHttpError`."""
        while not self.status:
            if self._failed is not None:
                raise copy(self._failed)  # a raise adds its frames, which hold the body of the request
            await self._wait()

    async def read(self) -> bytes:
        """The next part of the body, empty at its end; raises `BrokenError`."""
        while not self._parts:
            if self._failed is not None:
                raise copy(self._failed)
            if self.ended:
                return b""
            self._resume()
            await self._wait()
        return self._take()

    async def pump(self, sink: Sink) -> None:
        """Pass every part to the sink as it arrives, until the sink is behind or the answer ends; `read` gets the last part.

        Raises:
            ConnectionResetError: The sink failed; the part that it was given is lost.
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
        if self._sink_error is not None:
            raise ConnectionResetError("the reader is gone") from self._sink_error

    def _hand_on(self, sink: Sink) -> None:
        try:
            self._lags |= not sink(self._take())
        except (OSError, RuntimeError) as error:
            # An error on the reader's side must not count as the server's.
            self._sink_error, self._lags = error, True

    def _pumped(self) -> bool:
        return self._lags or self.ended or self._failed is not None

    def spoil(self) -> None:
        """Do not reuse this connection."""
        self._spoiled = True

    def close(self) -> None:
        """Release the connection: keep it if the answer is complete, else close it, which stops the server's work."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if self.ended and self._reusable and not self._spoiled and not self._paused:
            connection.give_back()
        else:
            connection.drop()

    def _count_head(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > _HEAD_BYTES:
            raise ValueError("the headers are too long")

    def _fail(self, why: str) -> None:
        self.spoil()
        if not self.ended and self._failed is None:
            self._failed = BrokenError(why) if self.status else NotHttpError(why)

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

    def _text(self, raw: bytes) -> str:
        """Decode a header: UTF-8 from most servers, but any bytes are allowed (RFC 9110 §5.5)."""
        try:
            return raw.decode()
        except UnicodeDecodeError:
            self.is_utf8 = False
            return raw.decode(errors="surrogateescape")
