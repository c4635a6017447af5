"""aiohttp's low-level server with our error bodies: no router, no middlewares, nothing between the socket and the handler."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong

from autospec.proxy.problems import Problem, Shape, body

__all__ = ["HttpServer", "problem_response"]

# Clients keep connections open between questions: longer than people think, shorter than a laptop sleeps.
_KEEPALIVE_S = 120.0
# How long a refused upload is read on, so that the client sees the refusal and not a reset.
_LINGER_S = 2.0


class HttpServer(web.Server):
    """Calls one handler for every request; a client that goes away cancels it.

    Args:
        handler: Answers a request; must not raise.
    """

    def __init__(self, handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]) -> None:
        super().__init__(
            handler,
            handler_cancellation=True,
            # Bytes pass as they are.
            auto_decompress=False,
            keepalive_timeout=_KEEPALIVE_S,
            lingering_time=_LINGER_S,
            access_log=None,
        )

    def __call__(self) -> web.RequestHandler:
        """A new connection's protocol."""
        return _Connection(self, loop=self._loop, **self._kwargs)


class _Connection(web.RequestHandler):
    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - may hold what the client sent
    ) -> web.StreamResponse:
        """Requests that are not HTTP come here before any handler sees them."""
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has begun; it can only be cut off")
        if isinstance(exc, LineTooLong):
            problem = Problem(431, "The request line or a header is longer than 8 KiB.", "headers_too_large")
        elif status < 500:
            problem = Problem(status, "This is not a valid HTTP request.", "invalid_http")
        else:
            problem = Problem(500, "The proxy failed; its log says how.", "internal_error")
            self.logger.error("proxy: unexpected failure", exc_info=exc)
        response = problem_response(problem, Shape.OPENAI)
        response.force_close()
        return response


def problem_response(problem: Problem, shape: Shape) -> web.Response:
    """A problem as a response."""
    headers = {"Retry-After": str(problem.retry_after_s)} if problem.retry_after_s else None
    return web.Response(
        body=body(problem, shape), status=problem.status, content_type="application/json", headers=headers
    )
