"""Forwards one request to a backend and the answer to the client, byte for byte.

Server-sent events are passed on whole, so that an error event can follow if the server dies in the middle of one.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import replace

from aiohttp import web
from multidict import CIMultiDict

from autospec.errors import AutospecError
from autospec.proxy.access import allow_page
from autospec.proxy.answer import Answer, BrokenError, NotHttpError, Sink
from autospec.proxy.errors import ProxyProblem, error_event, event, overloaded, problem_of, shape_of
from autospec.proxy.http_server import ClientConnection
from autospec.proxy.request import (
    DRAFTING,
    LIMIT,
    PROMPT_TYPE,
    WHY,
    Refused,
    RequestBody,
    for_backend,
    for_client,
)
from autospec.proxy.upstream import LineBreakError, Upstream, has_growing_pool
from autospec.proxy.usage import RequestOutcome, UsageReader, label_of, read_counts, saw_the_end
from autospec.serving.dispatch import Dispatch, Lease, RouteRequest

__all__ = ["Relay", "WholeEvents"]

_LOG = logging.getLogger(__name__)

# A request that kills two servers does not get a third.
_ATTEMPTS = 2
# Why a connection cannot be made: the proxy's own shortage, of which the server knows nothing.
_OWN_SHORTAGE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL})
# asyncio's own high-water mark: above it the relay waits for the client.
_LAG_BYTES = 64 * 1024
# A longer event is passed on in parts, to bound the memory.
_HELD_BYTES = 256 * 1024
_BLANK_LINES = (b"\n\n", b"\r\n\r\n")
# A wait that is over sooner keeps its status code and its headers; no client gives up within this time.
_FIRST_COMMENT_S = 1.0
# llama-server's own comments come every 30 s (``--sse-ping-interval``); some clients give up after 10 s.
_COMMENT_S = 5.0
_COMMENT = b": waiting for a server\n\n"
# A comment to a client that has ended its own side, see `autospec.proxy.http_server`.
_FILLER = b":\n\n"
# A longer error of a backend is told without its text.
_ERROR_BYTES = 64 * 1024


class WholeEvents:
    """Holds back an incomplete event. Servers write an event at once, so usually nothing is held back."""

    __slots__ = ("_held", "split")

    def __init__(self) -> None:
        self._held = b""  # the beginning of an event
        self.split = False  # a part of an event was passed on

    def feed(self, part: bytes) -> bytes:
        """Take the next bytes; return those that may pass."""
        if self._held:
            part = self._held + part
            self._held = b""
        if part.endswith(_BLANK_LINES):
            return part
        end = max(part.rfind(blank) + len(blank) if blank in part else 0 for blank in _BLANK_LINES)
        if len(part) - end > _HELD_BYTES:
            self.split = True
            return part
        self._held = part[end:]
        return part[:end]

    def rest(self) -> bytes:
        """The bytes still held back at the end of the stream."""
        held, self._held = self._held, b""
        return held


class _BrokeEarlyError(Exception):
    """The server broke the connection before any byte was sent to the client."""


class _Passed(web.StreamResponse):
    """Sends its headers with the first bytes of the body, in one packet."""

    _send_headers_immediately = False  # saves a packet; also correct without it
    is_utf8 = True  # its headers; see `Answer.is_utf8`

    async def _write_headers(self) -> None:
        """Write headers with other bytes than UTF-8 as they came. aiohttp leaves out what it cannot encode."""
        if self.is_utf8:
            await super()._write_headers()
            return
        assert self._req is not None
        version, transport = self._req.version, self._req.transport
        lines = [f"HTTP/{version.major}.{version.minor} {self.status} {self.reason}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        head = "\r\n".join([*lines, "", ""])
        if head.count("\n") != len(lines) + 1 or head.count("\r") != len(lines) + 1:
            raise ValueError("a line break inside a header")  # llhttp lets none pass
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client is gone")
        content = head.encode(errors="surrogateescape")
        transport.write(content)
        self._req.writer.output_size += len(content)


class _EndsByClosing(_Passed):
    """No length and no chunks, as the backend sent it: the end may be a break, so the proxy must not mark it as the end."""

    _length_check = False  # as in aiohttp's WebSocketResponse: no chunks


class _WaitingStream:
    """Comments to a streaming client while its request waits for a server, as server-sent events; clients skip them.

    The first one sends status 200 and the headers, so everything after it is an event, too: also an error.
    """

    def __init__(self, request: web.BaseRequest) -> None:
        self._request = request
        self._response: web.StreamResponse | None = None
        self._timer: asyncio.Handle | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def begun(self) -> web.StreamResponse | None:
        """The client's answer, if its headers are sent."""
        return self._response

    def start(self) -> None:
        """Send comments from now on, unless that has begun.

        A timer, because few requests wait so long; and not even a timer for the many that get a server in this turn of the loop.
        """
        if self._timer is None and self._response is None:
            self._timer = asyncio.get_running_loop().call_soon(self._wait)

    def leased(self) -> None:
        """The wait for a server is over: do not begin any more. A stream that has begun goes on until `stop`."""
        if self._response is None:
            for pending in (self._timer, self._task):
                if pending is not None:
                    pending.cancel()
            self._timer = self._task = None

    async def stop(self) -> None:
        """Send no further comment."""
        self.leased()
        _allow_no_filler(self._request)
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait({self._task})

    async def fail(self, told: bytes) -> web.StreamResponse:
        """End the stream with an error event; only if it has begun."""
        assert self._response is not None
        with contextlib.suppress(ConnectionError):  # the client disconnected
            await self._response.write(told)
            await self._response.write_eof()
        return self._response

    def _wait(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(_FIRST_COMMENT_S, self._begin)

    def _begin(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._comment())

    async def _comment(self) -> None:
        headers = CIMultiDict({"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
        allow_page(self._request.headers, headers)
        response = self._response = _Passed(headers=headers)
        with contextlib.suppress(ConnectionError):  # the client disconnected
            await response.prepare(self._request)
            while True:
                await response.write(_COMMENT)
                _allow_filler(self._request, response, lambda: True)
                await asyncio.sleep(_COMMENT_S)


class Relay:
    """Forwards requests to leased servers.

    `seen` gets the outcome of each attempt, `left` a request whose client left while it waited for a server and how many seconds it
    had waited, `retried` the model of each second attempt, and `refused` the code of an error that is told as an event. `serving` makes a
    context around each attempt, which keeps a daemon from measuring: a launch does that by itself, and a request that gets no server, for
    an unknown model, need not. `comments` go to streaming clients whose request waits.
    """

    def __init__(
        self,
        upstream: Upstream,
        dispatch: Dispatch,
        *,
        seen: Callable[[RequestOutcome], None],
        left: Callable[[RouteRequest, float], None],
        retried: Callable[[str], None],
        refused: Callable[[str], None],
        serving: Callable[[], contextlib.AbstractContextManager[None]],
        keep_credentials: bool,
        comments: bool,
    ) -> None:
        self._upstream = upstream
        self._dispatch = dispatch
        self._seen = seen
        self._left = left
        self._retried = retried
        self._refused = refused
        self._serving = serving
        self._keep_credentials = keep_credentials
        self._comments = comments

    async def answer(
        self, request: web.BaseRequest, wanted: RouteRequest, body: RequestBody
    ) -> web.StreamResponse:
        """Forward a request; use a second server if the first breaks before any byte was sent.

        Raises:
            AutospecError: No server is available.
            Refused: The request cannot be forwarded.
        """
        if not (body.is_streamed and self._comments):
            return await self._attempts(request, wanted, body, None)
        waiting = _WaitingStream(request)
        try:
            return await self._attempts(request, wanted, body, waiting)
        except (AutospecError, Refused) as error:
            await waiting.stop()
            if waiting.begun is None:
                raise
            problem = problem_of(error) if isinstance(error, AutospecError) else error.problem
            self._refused(problem.code)
            return await waiting.fail(event(problem, shape_of(request.path)))
        finally:
            await waiting.stop()

    async def _attempts(
        self,
        request: web.BaseRequest,
        wanted: RouteRequest,
        body: RequestBody,
        waiting: _WaitingStream | None,
    ) -> web.StreamResponse:
        try:
            headers = for_backend(request.headers.items(), keep_credentials=self._keep_credentials)
        except UnicodeEncodeError:
            raise Refused(ProxyProblem(400, "A header is not UTF-8.", "invalid_header")) from None
        for attempt in range(1, _ATTEMPTS + 1):
            begun = time.perf_counter()
            if waiting is not None:
                waiting.start()
            try:
                lent = await self._dispatch.lease(wanted)
            except asyncio.CancelledError:  # the client disconnected
                self._left(wanted, time.perf_counter() - begun)
                raise
            async with lent as lease:
                if waiting is not None:
                    waiting.leased()
                waited_s = time.perf_counter() - begun
                content = body.content_with(lease.fields)
                passage = _Passage(request, lease, wanted, waited_s * 1000, waiting)
                # A client's key is for the proxy, or a dummy.
                sent = CIMultiDict(headers)
                sent.update(lease.headers)
                try:
                    with contextlib.nullcontext() if wanted.is_probe else self._serving():
                        return await passage.run(self._upstream, sent, content)
                except _BrokeEarlyError as broke:
                    _LOG.warning(
                        "proxy: %s broke the connection before it answered: %s", lease.model, broke.__cause__
                    )
                    lease.died()
                    if attempt < _ATTEMPTS:
                        passage.retried = True
                        self._retried(lease.model)
                finally:
                    self._tell(lease, passage, wanted)
            # One deadline for all attempts.
            wanted = replace(wanted, waited_s=wanted.waited_s + waited_s)
        message = f"The server of {wanted.model} broke the connection before it answered, {_ATTEMPTS} times."
        raise Refused(ProxyProblem(502, message, "backend_failed"))

    def _tell(self, lease: Lease, passage: _Passage, wanted: RouteRequest) -> None:
        """Tell of an attempt. An answer that has passed must not fail because it could not be counted."""
        if passage.unsent:
            return  # the refusal counts
        try:
            outcome = passage.outcome()
            if (counts := outcome.counts) is not None:
                # Of several answers, these are the counts of one.
                whole_prompt = counts.whole_prompt_tokens if wanted.answers == 1 else None
                lease.answered(counts.predicted_tokens * wanted.answers, whole_prompt)
            self._seen(outcome)
        except Exception:  # noqa: BLE001 - logged with its traceback
            _LOG.exception("proxy: an answer of %s could not be counted", lease.model)


class _Passage:
    """One attempt at one server."""

    def __init__(
        self,
        request: web.BaseRequest,
        lease: Lease,
        wanted: RouteRequest,
        waited_ms: float,
        waiting: _WaitingStream | None,
    ) -> None:
        self.retried = False  # another server is asked after this one
        self.unsent = False  # it was refused before the server had it
        self._request = request
        self._lease = lease
        self._tail = UsageReader()
        self._wanted = wanted
        self._waited_ms = waited_ms
        self._waiting = waiting
        self._begun = time.perf_counter()
        self._first_byte_ms = 0.0
        self._status = 0
        self._streamed = False
        self._has_events = False  # events that can be read, so that one can be added
        self._complete = False
        self._client_gone = False
        self._answer: Answer | None = None  # once it has begun

    @property
    def generates(self) -> bool:
        """See `autospec.serving.dispatch.FollowedAnswer`."""
        # Pages, refusals and token counts come from threads that answer also if the model hangs.
        return self._answer is not None and self._wanted.prompt is not None and self._answer.status < 400

    @property
    def generated_bytes(self) -> int:
        """See `autospec.serving.dispatch.FollowedAnswer`."""
        return self._answer.told_bytes if self._answer is not None and self.generates else 0

    @property
    def unread_bytes(self) -> int:
        """See `autospec.serving.dispatch.FollowedAnswer`."""
        transport, connection = self._request.transport, self._request.protocol
        return transport.get_write_buffer_size() if transport and connection.writing_paused else 0

    def give_up(self) -> None:
        """See `autospec.serving.dispatch.FollowedAnswer`."""
        if (transport := self._request.transport) is not None:
            _LOG.warning("proxy: a client does not take its answer of %s, which ends here", self._lease.model)
            transport.abort()

    def outcome(self) -> RequestOutcome:
        """The result of the attempt."""
        lease = self._lease
        return RequestOutcome(
            at=time.time(),
            path=self._request.path,
            model=lease.model,
            backend=lease.backend,
            build=lease.build,
            prompt_type=self._wanted.facts.prompt_type,
            drafting=lease.drafting,
            status=self._status,
            complete=self._complete,
            client_gone=self._client_gone,
            retried=self.retried,
            is_probe=self._wanted.is_probe,
            waited_ms=self._waited_ms,
            first_byte_ms=self._first_byte_ms,
            total_ms=self._elapsed_ms(),
            streamed=self._streamed,
            counts=read_counts(self._tail.content()) if self._complete else None,
            limit=lease.limit,
            concurrent=lease.concurrent,
            temperature=lease.temperature,
            keeps_cache=lease.keeps_cache,
            sets_drafting=self._wanted.sets_drafting,
        )

    async def run(self, upstream: Upstream, headers: CIMultiDict[str], content: bytes) -> web.StreamResponse:
        """Send the request, and pass the answer on as it arrives."""
        try:
            return await self._run(upstream, headers, content)
        except asyncio.CancelledError:  # aiohttp cancels the request of a client that disconnected
            self._client_gone = not self._complete
            raise

    async def _run(self, upstream: Upstream, headers: CIMultiDict[str], content: bytes) -> web.StreamResponse:
        begun = None if self._waiting is None else self._waiting.begun
        if begun is not None:
            headers.popall("Accept-Encoding", None)  # the client's headers are sent and name no coding
        answer = await self._ask(upstream, headers.items(), content)
        self._answer = answer
        self._lease.follow(self)
        try:
            try:
                part = await answer.read()
            except BrokenError as error:
                raise _BrokeEarlyError from error
            self._first_byte_ms = self._elapsed_ms()
            self._status = answer.status
            headers_back = for_client(answer.headers)
            kind = headers_back.get("Content-Type", "").partition(";")[0].strip().lower()
            self._streamed = kind == "text/event-stream"
            coding = headers_back.get("Content-Encoding", "identity").strip().lower()
            self._has_events = self._streamed and coding == "identity"
            if self._waiting is not None and begun is not None:
                await self._waiting.stop()
            if begun is not None and not (self._has_events and answer.status == 200):
                return await self._pass_no_stream(answer, part)
            # Nothing was sent to the client so far, so until here another server could take over.
            response = begun or self._response(answer, headers_back)
            try:
                await response.prepare(self._request)
                await self._pump(answer, response, part)
            except ConnectionError:  # the client disconnected
                self._client_gone = not self._complete
            return response
        finally:
            # Also if the client disconnected: the server notices and stops.
            answer.close()

    async def _pass_no_stream(self, answer: Answer, part: bytes) -> web.StreamResponse:
        """Tell a client whose stream has begun what the backend answered instead of a stream, usually an error."""
        assert self._waiting is not None
        received = b""
        while part and len(received) <= _ERROR_BYTES:
            received += part
            try:
                part = await answer.read()
            except BrokenError:
                break
        self._complete = True
        told = error_event(received, shape_of(self._request.path))
        if told is None:
            message = f"The server of {self._lease.model} answered {answer.status} without a stream."
            raise Refused(ProxyProblem(502, message, "backend_failed"))
        return await self._waiting.fail(told)

    async def _ask(self, upstream: Upstream, headers: Iterable[tuple[str, str]], content: bytes) -> Answer:
        lease, request = self._lease, self._request
        try:
            return await upstream.ask(
                lease.base_url,
                request.method,
                _target(request),
                headers,
                content,
                growing_pool=has_growing_pool(lease.backend, lease.build),
                sent=lambda: self._wanted.facts,  # read them while the server works
            )
        except NotHttpError as error:  # another server would answer the same
            message = f"The server of {lease.model} sent an answer that is not HTTP: {error}."
            raise Refused(ProxyProblem(502, message, "backend_failed")) from error
        except BrokenError as error:
            if isinstance(cause := error.__cause__, OSError) and cause.errno in _OWN_SHORTAGE:
                message = f"The proxy cannot connect to a server: {cause.strerror}. Try again in a moment."
                self.unsent = True
                raise Refused(overloaded(message)) from error
            raise _BrokeEarlyError from error
        except LineBreakError:
            self.unsent = True
            raise Refused(
                ProxyProblem(400, "A header or the path contains a line break.", "invalid_header")
            ) from None

    def _response(self, answer: Answer, headers: CIMultiDict[str]) -> web.StreamResponse:
        if (prompt_type := self._wanted.facts.prompt_type) is not None:
            headers[PROMPT_TYPE] = str(prompt_type)
        likely = " (likely)" if {prompt_type, None} & self._lease.likely else ""
        headers[DRAFTING] = f"{label_of(self._lease.drafting)}{likely}".encode("ascii", "replace").decode()
        if self._lease.limit is not None:
            headers[LIMIT] = str(self._lease.limit)
        if (why := self._lease.why_off.get(prompt_type, self._lease.why_else)) is not None:
            headers[WHY] = str(why)
        allow_page(self._request.headers, headers, exposed=(DRAFTING, LIMIT, PROMPT_TYPE, WHY))
        ends_by_closing = answer.by_closing and not self._has_events
        kind = _EndsByClosing if ends_by_closing else _Passed
        response = kind(status=answer.status, reason=answer.reason, headers=headers)
        response.is_utf8 = answer.is_utf8
        if ends_by_closing:
            response.force_close()
        return response

    async def _pump(self, answer: Answer, response: web.StreamResponse, part: bytes) -> None:
        events = WholeEvents() if self._has_events else None
        sink = self._sink(events, response)
        if events is not None:
            _allow_filler(self._request, response, lambda: not events.split)
        try:
            if (last := await self._pass_on(answer, response, part, events, sink)) is None:
                return
        finally:
            _allow_no_filler(self._request)
        if events is not None:
            if answer.by_closing and not saw_the_end(self._tail.content()):
                if last:
                    await response.write(last)
                await self._break_off(response, None)
                return
            last += events.rest()
        self._complete = True
        await response.write_eof(last)  # with the last bytes of the body, in one packet

    async def _pass_on(
        self,
        answer: Answer,
        response: web.StreamResponse,
        part: bytes,
        events: WholeEvents | None,
        sink: Sink | None,
    ) -> bytes | None:
        """Pass on a body from its first part to its last, which is returned; ``None`` if the server broke it off."""
        headers_sent = False
        while part:
            self._tail.feed(part)
            if events is not None:
                part = events.feed(part)
            if answer.ended:
                break
            if part or not headers_sent:
                # Waits for a slow client; meanwhile nothing is read from the server. The first write, even of no bytes,
                # sends the headers, which must precede what the sink writes past aiohttp.
                await response.write(part)
                headers_sent = True
            if sink is not None:
                await answer.pump(sink)
                await self._request.writer.drain()
            try:
                part = await answer.read()
            except BrokenError as error:
                await self._break_off(response, error)
                return None
        return part

    def _sink(self, events: WholeEvents | None, response: web.StreamResponse) -> Sink | None:
        """Writes a token to the client's socket in the call that receives it, without a task in between."""
        transport = self._request.transport
        # Only for chunked streams: for others aiohttp counts the bytes, so it must write them.
        if (
            events is None
            or transport is None
            or "chunked" not in response.headers.get("Transfer-Encoding", "")
        ):
            return None
        tail = self._tail

        def sink(part: bytes) -> bool:
            tail.feed(part)
            part = events.feed(part)
            if transport.is_closing():
                return False  # the client disconnected; uvloop's transport would raise
            if part:
                transport.write(b"%x\r\n%b\r\n" % (len(part), part))
            return transport.get_write_buffer_size() <= _LAG_BYTES

        return sink

    async def _break_off(self, response: web.StreamResponse, error: Exception | None) -> None:
        """End an answer so that the client sees that it is incomplete."""
        _LOG.warning("proxy: %s broke off in the middle of an answer: %s", self._lease.model, error)
        self._lease.died()
        transport = self._request.transport
        if transport is None:
            return
        if self._has_events:
            message = f"The server of {self._lease.model} died; this answer is incomplete."
            problem = ProxyProblem(502, message, "backend_failed")
            await response.write(event(problem, shape_of(self._request.path)))
            transport.close()  # flushes, but sends no final chunk
        else:
            transport.abort()

    def _elapsed_ms(self) -> float:
        return (time.perf_counter() - self._begun) * 1000


def _target(request: web.BaseRequest) -> str:
    """Path and query as the client wrote them; of an absolute URL (RFC 9112 §3.2.2) the host is dropped."""
    raw = request.raw_path if request.raw_path.startswith("/") else request.rel_url.raw_path_qs
    return raw if raw.startswith("/") else f"/{raw}"


def _allow_filler(
    request: web.BaseRequest, response: web.StreamResponse, between: Callable[[], bool]
) -> None:
    """Allow comments in a stream while `between` says that no event is in the middle."""
    connection = request.protocol
    if isinstance(connection, ClientConnection) and "Content-Length" not in response.headers:
        chunked = "chunked" in response.headers.get("Transfer-Encoding", "")
        filler = b"%x\r\n%b\r\n" % (len(_FILLER), _FILLER) if chunked else _FILLER
        connection.filler = lambda: filler if between() else b""


def _allow_no_filler(request: web.BaseRequest) -> None:
    if isinstance(request.protocol, ClientConnection):
        request.protocol.filler = None
