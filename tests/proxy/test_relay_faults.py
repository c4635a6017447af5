"""The relay when a client goes away, a server dies, or a reader is slow."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
import time

import httpx
import psutil
import pytest

import autospec.proxy.upstream as upstream_module
from autospec.errors import LaunchError, OverloadedError
from autospec.proxy.relay import _Passed
from tests.backends.waiting import wait_until
from tests.proxy.harness import LentServer, OneModel, on_both_loops, proxy_over
from tests.proxy.raw import connected, everything, exchange, post
from tests.proxy.stand_in import SSE, StandIn, reset, say_ok
from tests.serving.scene import until

CHAT = "/v1/chat/completions"
BODY = json.dumps({"model": "main", "stream": True, "messages": [{"role": "user", "content": "hi"}]}).encode()
# The goal is 10 ms on a machine of one's own; here others may hold a core for a scheduler's slice or two.
CANCEL_BUDGET_S = 0.010
CANCEL_TRIES = 5


@pytest.fixture
def warm_up(proxy, backend):
    """Ask once, so that the next request comes on a connection that was used before."""

    def ask() -> None:
        behaviour, backend.behaviour = backend.behaviour, say_ok
        assert httpx.post(proxy.base_url + CHAT, content=BODY, trust_env=False).json() == {"ok": True}
        backend.behaviour = behaviour
        backend.asked.clear()

    return ask


@on_both_loops
@pytest.mark.parametrize("reused", [False, True])
@pytest.mark.parametrize("after", ["before", "after"])
def test_client_that_goes_away_cancels_the_backend(proxy, backend, warm_up, after, reused):
    """Before or after the first byte, the backend's connection is closed within 10 ms, measured at the backend."""
    gone_at = []

    async def behave(asked):
        assert asked.earlier == int(reused)
        if after == "after":
            await asked.send(SSE)
            await asked.chunk(b"data: {}\n\n")
        gone_at.append(await asked.gone())

    backend.behaviour = behave
    delays = []
    for number in range(1, CANCEL_TRIES + 1):
        if reused:
            warm_up()
        else:
            backend.asked.clear()
        with connected(proxy.base_url) as raw:
            raw.sendall(post(CHAT, BODY))
            if after == "after":
                assert raw.recv(65536).startswith(b"HTTP/1.1 200 OK")
            wait_until(lambda: backend.asked)
            left = time.perf_counter()
        wait_until(lambda number=number: len(gone_at) == number)
        delays.append(gone_at[-1] - left)
    # The best of a few: a neighbour's load is not the proxy's delay.
    assert min(delays) < CANCEL_BUDGET_S, delays


@on_both_loops
def test_a_client_that_resets_in_mid_stream_hurts_nobody(loop, proxy, backend, lent):
    """Nothing escapes into the event loop, whatever is still written to the closed connection, and no server is blamed."""
    escaped = []
    loop.loop.set_exception_handler(lambda _loop, context: escaped.append(context))
    gone = []

    async def behave(asked):
        await asked.send(SSE)
        try:
            while True:
                await asked.chunk(b"data: " + b"x" * 50 + b"\n\n")
                await asyncio.sleep(0)  # the stand-in shares the proxy's loop
        except ConnectionError:
            gone.append(asked)

    backend.behaviour = behave
    for number in range(1, 21):
        with connected(proxy.base_url) as raw:
            raw.sendall(post(CHAT, BODY))
            raw.recv(65536)
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        wait_until(lambda number=number: len(gone) == number)
    assert escaped == []
    assert lent.deaths == 0


@on_both_loops
@pytest.mark.parametrize(
    ("whole", "reused"),
    [(b"", False), (b'data: {"n":1}\n\n', False), (b'data: {"n":1}\n\n', True)],
    ids=["in the first event", "later", "later on a kept connection"],
)
def test_server_that_dies_in_mid_stream_ends_with_an_error_event(  # noqa: PLR0917 - fixtures
    proxy, backend, lent, warm_up, whole, reused
):
    """The whole events are passed on, then an error; half an event is not, nor the end of a complete stream."""
    if reused:
        warm_up()

    async def behave(asked):
        assert asked.earlier == int(reused)
        await asked.send(SSE)
        await asked.chunk(whole + b'data: {"half"')
        await asyncio.sleep(0.05)
        reset(asked)

    backend.behaviour = behave
    head, _, body = exchange(proxy.base_url, post(CHAT, BODY)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert whole in body
    assert b'{"half"' not in body  # it would make the error unreadable
    error = json.loads(body.rpartition(b"data: ")[2].split(b"\n\n")[0])
    assert "answer is incomplete" in error["error"]["message"]
    assert not body.endswith(b"0\r\n\r\n")
    assert lent.deaths == 1


@on_both_loops
@pytest.mark.parametrize("headers_wait", [True, False])
def test_a_first_event_in_two_pieces_comes_after_the_status_line(proxy, backend, monkeypatch, headers_wait):
    """Held back until it is whole, it must not overtake the headers, whether or not aiohttp sends these by themselves."""
    monkeypatch.setattr(_Passed, "_send_headers_immediately", not headers_wait)

    async def behave(asked):
        await asked.send(SSE)
        await asked.chunk(b'data: {"n"')
        await asyncio.sleep(0.05)
        await asked.chunk(b":1}\n\n")
        await asyncio.sleep(0.05)
        await asked.chunk(b"data: [DONE]\n\n")
        await asked.end()

    backend.behaviour = behave
    head, _, body = exchange(proxy.base_url, post(CHAT, BODY)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert body == b'f\r\ndata: {"n":1}\n\n\r\ne\r\ndata: [DONE]\n\n\r\n0\r\n\r\n'


def test_anthropic_streams_end_with_anthropics_error_event(proxy, backend):
    """On /v1/messages the event has a name and the shape that Anthropic's SDK raises."""

    async def behave(asked):
        await asked.send(SSE)
        await asked.chunk(b'event: ping\ndata: {"type": "ping"}\n\n')
        reset(asked)

    backend.behaviour = behave
    answer = exchange(proxy.base_url, post("/v1/messages", BODY))
    assert b'event: error\ndata: {"type": "error", "error": {"type": "api_error"' in answer


def test_answer_that_is_no_stream_breaks_off(proxy, backend):
    """A JSON answer cut short is a broken connection for the client too."""

    async def behave(asked):
        await asked.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
        await asyncio.sleep(0.05)
        reset(asked)

    backend.behaviour = behave
    with pytest.raises(httpx.TransportError):
        httpx.post(proxy.base_url + CHAT, content=BODY, trust_env=False)


def test_a_refused_request_does_not_answer_the_next_one(proxy, backend):
    """A server that answers before it reads the body takes the rest for a request: nobody may get that answer."""
    smuggled = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"

    async def refuse(asked):
        await asked.answer(b"{}", status=b"401 Unauthorized")
        await asyncio.sleep(0.1)
        await asked.send(smuggled)

    backend.behaviour = refuse
    assert httpx.post(proxy.base_url + CHAT, content=BODY, trust_env=False).status_code == 401
    backend.behaviour = say_ok
    assert httpx.post(proxy.base_url + CHAT, content=BODY, trust_env=False).json() == {"ok": True}
    assert [asked.earlier for asked in backend.asked] == [0, 0]


def test_an_answer_that_ends_by_closing_gets_no_end_mark(proxy, backend):
    """It may have been cut: the client is told as much as the proxy knows, and not that it is whole."""

    async def behave(asked):
        await asked.send(b'HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n{"half": ')

    backend.behaviour = behave
    request = post(CHAT, BODY).replace(b"Connection: close\r\n", b"")
    head, _, body = exchange(proxy.base_url, request).partition(b"\r\n\r\n")
    assert body == b'{"half": '
    assert b"chunked" not in head
    assert b"\r\nConnection: close" in head


def test_stream_ended_by_closing_must_say_that_it_is_complete(proxy, backend):
    """A server that ends streams by closing (mlx_lm.server) looks the same when it dies: its last event tells."""
    head = b"HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
    ends = iter([b"data: [DONE]\n\n", b""])

    async def behave(asked):
        await asked.send(head, b'data: {"n":1}\n\n', next(ends))

    backend.behaviour = behave
    whole = exchange(proxy.base_url, post(CHAT, BODY))
    assert whole.endswith(b"0\r\n\r\n")
    assert b'"error"' not in whole
    cut = exchange(proxy.base_url, post(CHAT, BODY))
    assert not cut.endswith(b"0\r\n\r\n")
    assert b'"error"' in cut


def test_request_is_retried_on_another_server_if_nothing_was_sent(loop, storage, backend):
    """The first server dies before its first byte; the client sees the second one's answer only."""
    dying = loop.run(StandIn().start())

    async def die(asked):
        reset(asked)

    dying.behaviour = die
    servers = [LentServer(dying.base_url), LentServer(backend.base_url)]
    with proxy_over(loop, OneModel(servers), storage) as proxy:
        answer = httpx.post(proxy.base_url + CHAT, content=BODY, trust_env=False)
        metrics = httpx.get(proxy.base_url + "/autospec/metrics", trust_env=False).text
    loop.run(dying.stop())
    assert answer.json() == {"ok": True}
    assert (servers[0].deaths, servers[1].deaths) == (1, 0)
    assert (servers[0].returned, servers[1].returned) == (1, 1)
    assert 'autospec_retries_total{model="main"} 1.0' in metrics


@pytest.mark.parametrize(
    ("after_s", "reused"),
    [(0.0, False), (0.3, False), (0.3, True)],
    ids=["at once", "at work", "at work on a kept connection"],
)
def test_request_that_kills_every_server_is_given_up(  # noqa: PLR0917 - fixtures
    proxy, backend, lent, warm_up, monkeypatch, after_s, reused
):
    """Each try counts, on a kept connection too: after two the client is told."""
    monkeypatch.setattr(upstream_module, "_STALE_S", 0.1)
    if reused:
        warm_up()

    async def die(asked):
        await asyncio.sleep(after_s)
        reset(asked)

    backend.behaviour = die
    answer = httpx.post(proxy.base_url + CHAT, content=BODY, trust_env=False)
    assert answer.status_code == 502
    assert answer.json()["error"]["type"] == "server_error"
    assert len(backend.asked) == lent.deaths == 2


def test_server_that_is_not_there_is_told(loop, storage):
    """A refused connection is a death like any other. Other addresses that cannot be reached: test_upstream."""
    lent = LentServer("http://127.0.0.1:9")
    with proxy_over(loop, OneModel([lent]), storage) as proxy:
        answer = httpx.post(proxy.base_url + CHAT, content=BODY, trust_env=False)
    assert answer.status_code == 502
    assert lent.deaths == 2


def test_server_that_speaks_no_http_is_told(proxy, backend):
    """Garbage is not retried."""

    async def behave(asked):
        await asked.send(b"\x00\x01 hello\r\n\r\n")

    backend.behaviour = behave
    answer = httpx.post(proxy.base_url + CHAT, content=BODY, trust_env=False)
    assert answer.status_code == 502
    assert len(backend.asked) == 1


@pytest.mark.parametrize(
    ("error", "status"),
    [(OverloadedError("Full.", "Later."), 503), (LaunchError("No.", "Look.", log_tail=("secret",)), 502)],
)
def test_no_server_to_be_had(proxy, dispatch, error, status):
    """The supervisor's errors reach the client as one sentence, and a full queue says when to try again."""
    dispatch.refusal = error
    answer = httpx.post(proxy.base_url + CHAT, content=BODY, trust_env=False)
    assert answer.status_code == status
    assert answer.json()["error"]["message"] == str(error)
    assert ("retry-after" in answer.headers) == (status == 503)


def test_slow_reader_holds_the_server_back_instead_of_filling_memory(proxy, backend):
    """64 MB are to be had; a client that reads nothing lets only the sockets' buffers fill."""
    total = 64 << 20
    sent = 0
    part = b"data: " + b"x" * 65_000 + b"\n\n"

    async def behave(asked):
        nonlocal sent
        asked.writer.transport.set_write_buffer_limits(65536)
        await asked.send(SSE)
        while sent < total:
            await asked.chunk(part)
            sent += len(part)
        await asked.send(b"0\r\n\r\n")

    backend.behaviour = behave
    memory = psutil.Process(os.getpid()).memory_info().rss
    with connected(proxy.base_url) as raw:
        raw.sendall(post(CHAT, BODY))
        wait_until(lambda: sent > 0)
        seen = -1

        def stands_still() -> bool:
            nonlocal seen
            before, seen = seen, sent
            time.sleep(0.2)
            return before == seen == sent

        wait_until(stands_still)
        held = sent
        grown = psutil.Process(os.getpid()).memory_info().rss - memory
        assert len(everything(raw)) >= total  # and then it gets everything
    assert held < 24 << 20  # two pairs of kernel buffers, which Linux lets grow to some MB each
    assert grown < 24 << 20


@on_both_loops
def test_an_answer_that_its_client_does_not_take_can_be_ended(loop, proxy, backend, lent):
    """`curl -N | less` on a long answer: its server is not drained before, and its lease had no bound."""
    part = b"data: " + b"x" * 65_000 + b"\n\n"
    ended = []

    async def behave(asked):
        await asked.send(SSE)
        try:
            while True:
                await asked.chunk(part)
        except ConnectionError:
            ended.append(asked)

    backend.behaviour = behave
    with connected(proxy.base_url) as raw:
        raw.sendall(post(CHAT, BODY))
        wait_until(lambda: lent.followed is not None and lent.followed.unread_bytes > 0)
        unread_bytes = -1
        while unread_bytes != lent.followed.unread_bytes:
            unread_bytes = lent.followed.unread_bytes
            time.sleep(0.2)
        loop.loop.call_soon_threadsafe(lent.followed.give_up)
        wait_until(lambda: ended and lent.returned == 1)
    assert lent.deaths == 0
    told = httpx.get(proxy.base_url + "/autospec/metrics", trust_env=False).text
    assert 'status="client_gone"' in told


def test_what_counts_as_generated(proxy, backend, lent):
    """llama-server's threads send comments, pages and refusals also while its model hangs; each was taken for a sign of life."""
    counted = []

    async def behave(asked):
        if asked.line.startswith(b"GET"):
            await asked.answer(b"{}")
        elif b"refused" in asked.body:
            await asked.answer(b"{}", status=b"400 Bad Request")
        else:
            await asked.send(SSE)
            await asked.chunk(b":\n\n")
            await until(lambda: lent.followed is not None)
            for parts in ((), (b"data: 1\n\n",), (b":\n\n", b": keepalive 1/2\n\n")):
                for part in parts:
                    await asked.chunk(part)
                await until(lambda: not parts or lent.followed.generated_bytes > counted[-1])  # noqa: B023 - called here
                counted.append(lent.followed.generated_bytes)
            await asked.send(b"0\r\n\r\n")

    backend.behaviour = behave
    httpx.post(proxy.base_url + CHAT, content=BODY, trust_env=False)
    assert counted == [0, 9, 26]  # mlx_lm.server's comments tell how far it is
    httpx.get(proxy.base_url + "/props", trust_env=False)
    assert lent.followed.generated_bytes == 0
    httpx.post(proxy.base_url + CHAT, content=BODY.replace(b"hi", b"refused"), trust_env=False)
    assert lent.followed.generated_bytes == 0
