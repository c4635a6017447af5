"""aiohttp's client in place of `autospec.proxy.upstream`, for the comparison in ``studies/bench/proxy.py``.

It has the same methods, so the rest of the proxy is the same. It does not translate errors: the bench's stand-in makes none.
It keeps connections by the rule of the proxy's own client: two, and none while a request waits for its answer. With
``BENCH_KEEP_ALL=1`` it keeps every connection, which is aiohttp's own rule, and costs less; llama-server builds with a fixed
number of threads do not allow it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

import aiohttp
from yarl import URL

from autospec.proxy.answer import Sink

__all__ = ["AiohttpUpstream"]

# As in the proxy's own client.
_CONNECT_TIMEOUT_S = 10.0
_IDLE_S = 3.0
_MOST_IDLE = 2
_BUFFERED_BYTES = 256 * 1024
_HEAD_BYTES = 64 * 1024
# The proxy passes the client's headers on and adds none.
_NOT_ADDED = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")
_KEEP_ALL = os.environ.get("BENCH_KEEP_ALL") == "1"


class _Connector(aiohttp.TCPConnector):
    """Keeps as few connections as `Upstream.keep`; aiohttp has no setting for it, so this changes a private method."""

    waiting = 0  # requests whose answer has not begun

    def _release(self, key: Any, protocol: Any, *, should_close: bool = False) -> None:
        full = self.waiting > 0 or len(self._conns.get(key, ())) >= _MOST_IDLE
        super()._release(key, protocol, should_close=should_close or (full and not _KEEP_ALL))


class AiohttpUpstream:
    """Sends requests to servers, as `Upstream`."""

    def __init__(self) -> None:
        self._connector = _Connector(limit=0, keepalive_timeout=_IDLE_S)
        self._session = aiohttp.ClientSession(
            connector=self._connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT_S),
            auto_decompress=False,
            read_bufsize=_BUFFERED_BYTES,
            max_line_size=_HEAD_BYTES,
            max_field_size=_HEAD_BYTES,
            skip_auto_headers=_NOT_ADDED,
        )

    async def ask(
        self,
        base_url: str,
        method: str,
        target: str,
        headers: Iterable[tuple[str, str]],
        content: bytes,
        *,
        growing_pool: bool = False,  # noqa: ARG002 - keeps as many as for an older build
        sent: Callable[[], object] = lambda: None,  # noqa: ARG002 - aiohttp does not tell when that is
    ) -> AiohttpAnswer:
        """Send a request and wait for the headers of its answer."""
        self._connector.waiting += 1
        try:
            response = await self._session.request(
                method,
                URL(base_url + target, encoded=True),
                headers=headers,
                data=content or None,
                allow_redirects=False,
            )
        finally:
            self._connector.waiting -= 1
        return AiohttpAnswer(response)

    def close(self) -> None:
        """Nothing: the process ends without it."""


class AiohttpAnswer:
    """An answer whose body is read with `read`, or passed on with `pump`, as `Answer`."""

    is_utf8 = True  # its headers
    told_bytes = 0  # not counted here

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.status = response.status
        self.reason = response.reason or ""
        self.headers = list(response.headers.items())
        self.by_closing = not {"Content-Length", "Transfer-Encoding"} & response.headers.keys()
        self._response = response
        self._last = b""

    @property
    def ended(self) -> bool:
        """True if the whole body has arrived; `read` may still have a part of it."""
        return self._response.content.is_eof()

    async def read(self) -> bytes:
        """The next part of the body, empty at its end."""
        last, self._last = self._last, b""
        return last or await self._response.content.readany()

    async def pump(self, sink: Sink) -> None:
        """Pass every part to the sink, until the sink is behind or the answer ends; `read` gets the last part."""
        if self.ended:
            return
        async for part in self._response.content.iter_any():
            if self.ended:
                self._last = part
                return
            if not sink(part):
                return

    def close(self) -> None:
        """Close the connection if the answer is incomplete; aiohttp keeps it otherwise."""
        self._response.close()
