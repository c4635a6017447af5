"""One request through to a backend and its answer back, byte for byte."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import aiohttp
from aiohttp import web
from yarl import URL

from autospec.proxy import headers as passing
from autospec.proxy.dispatch import Dispatch, Lease, Wanted
from autospec.proxy.event_stream import WholeEvents
from autospec.proxy.http_server import problem_response
from autospec.proxy.intake import Intake, Refused
from autospec.proxy.outcome import Outcome
from autospec.proxy.problems import Problem, event, shape_of
from autospec.proxy.tail import Tail, read_counts, saw_the_end

__all__ = ["Relay", "open_session"]

_LOG = logging.getLogger(__name__)

# A loopback connection is made at once or not at all; the margin is for a machine under full load.
_CONNECT_TIMEOUT_S = 10.0
# A request that kills its server is not worth a third one.
_ATTEMPTS = 2
# aiohttp warns of larger bodies in one piece, and is right: written at once they would hold up every stream.
_SENT_AT_ONCE_BYTES = 256 * 1024
# A server's answer headers may be longer than a client's: llama-server names every model in some.
_ANSWER_HEADER_BYTES = 64 * 1024
# A larger body is serialised in a thread where fields must be added.
_ADDED_AT_ONCE_BYTES = 256 * 1024


class _BrokeEarlyError(Exception):
    """The server broke the connection before anything was sent to the client."""


def open_session() -> aiohttp.ClientSession:
    """The client side: nothing is added, decoded, remembered or timed out.

    Connections are not reused. llama-server gives each one a thread for as long as it is open (cpp-httplib), so that
    idle ones would keep new requests waiting; and one that breaks always means that the server broke it.
    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, force_close=True),
        cookie_jar=aiohttp.DummyCookieJar(),
        # A long prompt takes minutes; how long is too long the client decides, and the supervisor watches processes.
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT_S),
        skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
        auto_decompress=False,
        trust_env=False,
        max_line_size=_ANSWER_HEADER_BYTES,
        max_field_size=_ANSWER_HEADER_BYTES,
    )


class Relay:
    """Forwards requests to leased servers.

    Args:
        session: From `open_session`.
        dispatch: Lends servers.
        seen: Called with the outcome of every request that reached a backend.
        retried: Called with a model's name when a request is sent a second time.
        keep_credentials: False if clients send the proxy's own key.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        dispatch: Dispatch,
        *,
        seen: Callable[[Outcome], None],
        retried: Callable[[str], None],
        keep_credentials: bool,
    ) -> None:
        self._session = session
        self._dispatch = dispatch
        self._seen = seen
        self._retried = retried
        self._keep_credentials = keep_credentials

    async def answer(self, request: web.BaseRequest, wanted: Wanted, intake: Intake) -> web.StreamResponse:
        """Forward a request; on a second server if the first breaks before anything was sent.

        Raises:
            AutospecError: No server can be had.
            Refused: The request cannot be forwarded.
        """
        try:
            headers = passing.for_backend(request.headers.items(), keep_credentials=self._keep_credentials)
        except UnicodeEncodeError:
            raise Refused(Problem(400, "A header is not UTF-8.", "invalid_header")) from None
        for attempt in range(1, _ATTEMPTS + 1):
            begun = time.perf_counter()
            async with await self._dispatch.lease(wanted) as lease:
                waited_ms = (time.perf_counter() - begun) * 1000
                passage = _Passage(request, lease, wanted, waited_ms)
                try:
                    return await passage.run(self._session, headers, await _with_fields(intake, lease))
                except _BrokeEarlyError as broke:
                    _LOG.warning(
                        "proxy: %s broke the connection before it answered: %s", lease.model, broke.__cause__
                    )
                    lease.died()
                    if attempt < _ATTEMPTS:
                        self._retried(lease.model)
                finally:
                    outcome = passage.outcome()
                    if outcome.counts is not None:
                        lease.answered(outcome.counts.predicted_tokens)
                    self._seen(outcome)
        message = f"The server of {wanted.model} broke the connection before it answered, {_ATTEMPTS} times."
        return problem_response(Problem(502, message, "backend_failed"), shape_of(request.path))


class _Passage:
    """One attempt at one server."""

    def __init__(self, request: web.BaseRequest, lease: Lease, wanted: Wanted, waited_ms: float) -> None:
        self._request = request
        self._lease = lease
        self._tail = Tail()
        self._begun = time.perf_counter()
        self._so_far = Outcome(
            at=0.0,
            path=request.path,
            model=lease.model,
            backend=lease.backend,
            build=lease.build,
            prompt_type=wanted.prompt_type,
            drafting=lease.drafting,
            waited_ms=waited_ms,
        )

    def outcome(self) -> Outcome:
        """What became of it."""
        return replace(
            self._so_far,
            at=time.time(),
            total_ms=self._elapsed_ms(),
            counts=read_counts(self._tail.content()) if self._so_far.complete else None,
        )

    async def run(
        self, session: aiohttp.ClientSession, headers: Any, content: bytes | None
    ) -> web.StreamResponse:
        """Ask, and pass on the answer as it comes."""
        answer = await self._ask(session, headers, content)
        try:
            try:
                part = await answer.content.readany()
            except (aiohttp.ClientError, OSError) as error:
                raise _BrokeEarlyError from error
            self._so_far = replace(
                self._so_far,
                status=answer.status,
                first_byte_ms=self._elapsed_ms(),
                streamed=answer.content_type == "text/event-stream",
            )
            # The status line and the first bytes go out together, so that until here another server may try.
            response = self._response(answer)
            with contextlib.suppress(ConnectionError):  # the client went away; nobody is left to be told
                await response.prepare(self._request)
                await self._pump(answer, response, part)
            return response
        finally:
            # Also when the client went away: the server sees it at once and stops working for nobody.
            answer.close()

    async def _ask(
        self, session: aiohttp.ClientSession, headers: Any, content: bytes | None
    ) -> aiohttp.ClientResponse:
        data: Any = content or None
        if content and len(content) > _SENT_AT_ONCE_BYTES:
            data = io.BytesIO(content)
        try:
            return await session.request(
                self._request.method,
                URL(self._lease.base_url + _target(self._request), encoded=True),
                headers=headers,
                data=data,
                allow_redirects=False,
            )
        except aiohttp.ClientResponseError as error:  # not HTTP: another server would say the same
            message = f"The server of {self._lease.model} gave an answer that is no HTTP: {error.message}."
            raise Refused(Problem(502, message, "backend_failed")) from error
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise _BrokeEarlyError from error

    def _response(self, answer: aiohttp.ClientResponse) -> web.StreamResponse:
        headers = passing.for_client(answer.headers.items())
        if self._so_far.prompt_type is not None:
            headers[passing.PROMPT_TYPE] = str(self._so_far.prompt_type)
        headers[passing.DRAFTING] = self._lease.drafting.label.encode("ascii", "replace").decode()
        if (
            origin := self._request.headers.get("Origin")
        ) is not None:  # judged before; backends often say nothing
            headers.setdefault("Access-Control-Allow-Origin", origin)
        return web.StreamResponse(status=answer.status, reason=answer.reason, headers=headers)

    async def _pump(self, answer: aiohttp.ClientResponse, response: web.StreamResponse, part: bytes) -> None:
        events = WholeEvents() if self._so_far.streamed else None
        tail, source = self._tail, answer.content
        while part:
            tail.feed(part)
            if events is not None:
                part = events.feed(part)
            if part:
                # Waits while the client reads slowly; meanwhile aiohttp stops reading from the server.
                await response.write(part)
            try:
                part = await source.readany()
            except (aiohttp.ClientError, OSError) as error:
                await self._break_off(response, error)
                return
        if events is not None:
            if _ends_by_closing(answer) and not saw_the_end(tail.content()):
                await self._break_off(response, None)
                return
            await response.write(events.rest())
        self._so_far = replace(self._so_far, complete=True)

    async def _break_off(self, response: web.StreamResponse, error: Exception | None) -> None:
        """End an answer so that nobody can take it for complete."""
        _LOG.warning("proxy: %s broke off in the middle of an answer: %s", self._lease.model, error)
        self._lease.died()
        transport = self._request.transport
        if transport is None:
            return
        if self._so_far.streamed:
            message = f"The server of {self._lease.model} ended in the middle of this answer; what came so far is not all of it."
            problem = Problem(502, message, "backend_failed")
            await response.write(event(problem, shape_of(self._request.path)))
            transport.close()  # sends what is written, but no sign that the stream is complete
        else:
            transport.abort()

    def _elapsed_ms(self) -> float:
        return (time.perf_counter() - self._begun) * 1000


async def _with_fields(intake: Intake, lease: Lease) -> bytes:
    """The body with the fields that the lease needs; the client's own bytes where it needs none."""
    fields = lease.fields
    if not fields or intake.document is None:
        return intake.content
    document = {**intake.document, **fields}
    if len(intake.content) <= _ADDED_AT_ONCE_BYTES:
        return json.dumps(document, ensure_ascii=False).encode(errors="surrogatepass")
    return await asyncio.to_thread(
        lambda: json.dumps(document, ensure_ascii=False).encode(errors="surrogatepass")
    )


def _target(request: web.BaseRequest) -> str:
    """Path and query as the client wrote them. A request may name a whole URL (RFC 9112 §3.2.2): its host is not ours."""
    raw = request.raw_path
    return raw if raw.startswith("/") else request.rel_url.raw_path_qs


def _ends_by_closing(answer: aiohttp.ClientResponse) -> bool:
    return answer.content_length is None and "chunked" not in answer.headers.get("Transfer-Encoding", "")
