"""Two servers that only relay a stream with the proxy's own `Upstream`: what a request costs before autospec does anything with it.

``aiohttp`` is aiohttp's low-level server, with one handler that sends the request on and its answer back. ``bare`` is a protocol on
llhttp (`httptools`) with one task for each request, without any limit, error or keep-alive rule: no proxy, but the least that a server
in Python costs. Neither reads the request's JSON or the answer's counts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httptools
from aiohttp import web

from autospec.proxy.answer import Answer
from autospec.proxy.upstream import Upstream

__all__ = ["FLOORS"]

_HEADERS = (("Content-Type", "application/json"),)
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def _chunk(part: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(part), part)


def _into(transport: Any) -> Callable[[bytes], bool]:
    def sink(part: bytes) -> bool:
        transport.write(_chunk(part))
        return True

    return sink


async def _serve(protocol: Callable[[], Any]) -> None:
    server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0, backlog=512)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def _aiohttp(backend: str) -> None:
    upstream = Upstream()

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        content = await request.content.read()
        target = request.raw_path
        answer = await upstream.ask(backend, request.method, target, _HEADERS, content, growing_pool=True)
        try:
            part = await answer.read()
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            await response.write(part)
            await answer.pump(_into(request.transport))
            await response.write_eof(await answer.read())
            return response
        finally:
            answer.close()

    await _serve(web.Server(handle, handler_cancellation=True, auto_decompress=False, access_log=None))


class _Bare(asyncio.Protocol):
    """One client's connection; `ask` sends a request on."""

    def __init__(self, ask: Callable[[str, str, bytes], Awaitable[Answer]]) -> None:
        self._ask = ask
        self._parser = httptools.HttpRequestParser(self)
        self._target, self._body = b"", b""
        self._transport: Any = None
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self._target = url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Decoded, as every server must."""
        name.decode(), value.decode()

    def on_body(self, part: bytes) -> None:
        self._body += part

    def on_message_complete(self) -> None:
        body, self._body = self._body, b""
        self._task = asyncio.get_running_loop().create_task(self._relay(body))

    async def _relay(self, body: bytes) -> None:
        answer = await self._ask(self._parser.get_method().decode(), self._target.decode(), body)
        try:
            self._transport.write(_HEAD + _chunk(await answer.read()))
            await answer.pump(_into(self._transport))
            self._transport.write(_chunk(await answer.read()) + b"0\r\n\r\n")
        finally:
            answer.close()


async def _bare(backend: str) -> None:
    upstream = Upstream()

    def ask(method: str, target: str, body: bytes) -> Awaitable[Answer]:
        return upstream.ask(backend, method, target, _HEADERS, body, growing_pool=True)

    await _serve(lambda: _Bare(ask))


# By name: serves without end over a backend's address, and prints its port.
FLOORS = {"aiohttp relay": _aiohttp, "bare relay": _bare}
