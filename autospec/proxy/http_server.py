"""The HTTP server: aiohttp's low-level one, with autospec's errors, and with answers for clients that have ended their own side.

**Who is gone?** A client that closes its connection and one that only ends its own side (``shutdown(SHUT_WR)``, ``nc -N``) look the
same: both send a FIN. The difference shows when something is sent to them: the kernel of a client that is gone answers with a
reset, and the next write fails. So after a FIN the client gets something that it passes over, at growing intervals: ``100 Continue``
before the answer (RFC 9110 §15.2), and comments between the events of a stream. A client on this machine that is gone is found after
some milliseconds, another one after a round trip, and its request is cancelled.

Where there is nothing to send, a FIN counts as gone: in the middle of an answer that is no stream of events, and before the answer to
an HTTP/1.0 request, which has no interim answers. nginx, which spoke 1.0 to its backends for long, tells so that its client left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from aiohttp import HttpVersion11, web
from aiohttp.http_exceptions import LineTooLong

from autospec.proxy.errors import ProxyProblem, Shape, problem_response

__all__ = ["ClientConnection", "ProxyServer"]

# Clients keep connections open between requests.
_KEEPALIVE_S = 120.0
# A refused upload is read this much longer, so that the client sees the refusal and not a reset.
_LINGER_S = 2.0
# Pauses between the writes that show whether a client is there: two for this machine, then for longer round trips.
_LOOKS_AFTER_S = (0.002, 0.001, 0.05, 0.25, 1.0)
_LOOKS_EVERY_S = 5.0
_INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n"


class ProxyServer(web.Server):
    """aiohttp's low-level server with autospec's error bodies; a disconnect cancels the handler, which must not raise.

    `refused` gets the code of each error of a request that is not valid HTTP, which the handler never sees.
    """

    def __init__(
        self,
        handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
        refused: Callable[[str], None],
    ) -> None:
        self.refused = refused
        super().__init__(
            handler,
            handler_cancellation=True,
            # Bodies pass unchanged.
            auto_decompress=False,
            keepalive_timeout=_KEEPALIVE_S,
            lingering_time=_LINGER_S,
            access_log=None,
        )

    def __call__(self) -> web.RequestHandler:
        """The protocol of a new connection."""
        connection = ClientConnection(self, loop=self._loop, **self._kwargs)
        connection.refused = self.refused
        connection.filler = None
        connection.looks = 0
        return connection


class ClientConnection(web.RequestHandler):
    """One client's connection.

    Attributes:
        refused: See `ProxyServer`.
        filler: What may be written between the events of the stream that is being sent; empty while nothing may. ``None``
            without such a stream.
        looks: How often it was looked whether a client that has ended its side is still there.
    """

    __slots__ = ("filler", "looks", "refused")
    refused: Callable[[str], None]
    filler: Callable[[], bytes] | None
    looks: int

    def eof_received(self) -> bool:  # type: ignore[override]  # true keeps the connection (asyncio.Protocol)
        """The client sends nothing more. Keep the connection while it may wait for an answer."""
        if self._request_count == 0 or self._is_idle() or self._cannot_tell():
            return False
        if self.looks == 0:
            self._look_again()
        return True

    def _look_again(self) -> None:
        after_s = _LOOKS_AFTER_S[self.looks] if self.looks < len(_LOOKS_AFTER_S) else _LOOKS_EVERY_S
        self.looks += 1
        asyncio.get_running_loop().call_later(after_s, self._look)

    def _look(self) -> None:
        """End the connection if everything is answered or cannot be; else let a write show whether the client is there."""
        transport, request = self.transport, self._current_request
        if transport is None or transport.is_closing():
            return
        if self._is_idle() or (request is not None and not _can_be_answered(request)):
            self.force_close()
            return
        if not self._messages:
            self.close()  # after this answer
        if request is not None and request.writer.output_size == 0:
            transport.write(_INTERIM)
        elif self.filler is not None:
            transport.write(self.filler())
        self._look_again()

    def _cannot_tell(self) -> bool:
        """True in the middle of an answer into which nothing can be put."""
        request = self._current_request
        return request is not None and request.writer.output_size > 0 and self.filler is None

    def _is_idle(self) -> bool:
        """True if the connection waits for a request."""
        return self._waiter is not None and not self._waiter.done()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - may contain what the client sent
    ) -> web.StreamResponse:
        """Answer requests that are not valid HTTP, which no handler gets."""
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has begun")
        if isinstance(exc, LineTooLong):
            problem = ProxyProblem(
                431, "The request line or a header is longer than 8 KiB.", "headers_too_large"
            )
        elif status < 500:
            problem = ProxyProblem(status, "This is not a valid HTTP request.", "invalid_http")
        else:
            problem = ProxyProblem(500, "The proxy failed; see its log.", "internal_error")
            self.logger.error("proxy: unexpected failure", exc_info=exc)
        self.refused(problem.code)
        response = problem_response(problem, Shape.OPENAI)
        response.force_close()
        return response


def _can_be_answered(request: web.BaseRequest) -> bool:
    """False if a request has not come whole, or if it cannot be known whether its client is there."""
    begun = request.writer.output_size > 0
    return request.content.is_eof() and (begun or request.version >= HttpVersion11)
