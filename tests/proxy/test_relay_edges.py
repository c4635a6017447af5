"""`autospec.proxy.relay`: compressed streams, how an attempt ended, and comments to a client whose request waits."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import socket
import struct
import zlib

import httpx
import pytest

from autospec.errors import LaunchError
from autospec.proxy.app import Rules
from tests.backends.waiting import wait_until
from tests.proxy.harness import LentServer, LoadingModel, on_both_loops, proxy_over
from tests.proxy.raw import connected, everything, exchange, post
from tests.proxy.stand_in import SSE, StandIn, reset

CHAT = "/v1/chat/completions"
BODY = b'{"model": "main", "messages": []}'
STREAM = b'{"model": "main", "messages": [], "stream": true}'
GZIP_SSE = SSE.replace(b"Server:", b"Content-Encoding: gzip\r\nServer:")
EVENTS = [b'data: {"n":%d}\n\n' % n for n in range(3)]


def metrics(proxy) -> dict[str, float]:
    """Requests by status and refusals by code."""
    text = httpx.get(proxy.base_url + "/autospec/metrics", trust_env=False).text
    found = {}
    for line in text.splitlines():
        if line.startswith("autospec_requests_total{"):
            found[line.partition('status="')[2].partition('"')[0]] = float(line.split()[-1])
        if line.startswith("autospec_refused_requests_total{"):
            found[line.partition('code="')[2].partition('"')[0]] = float(line.split()[-1])
    return found


def test_compressed_events_pass_as_they_come(proxy, backend):
    """A server behind nginx compresses its stream; no blank line is in those bytes (Proxy review 17)."""
    press = zlib.compressobj(wbits=31)
    received = bytearray()
    unpress = zlib.decompressobj(wbits=31)

    async def behave(asked):
        await asked.send(GZIP_SSE)
        for n, one in enumerate(EVENTS):
            await asked.chunk(press.compress(one) + press.flush(zlib.Z_SYNC_FLUSH))
            while received.count(b"\n\n") <= n:  # noqa: ASYNC110 - fails by the client's deadline
                await asyncio.sleep(0.01)
        await asked.chunk(press.flush())
        await asked.end()

    backend.behaviour = behave
    with httpx.stream("POST", proxy.base_url + CHAT, content=STREAM, trust_env=False, timeout=20) as answer:
        assert answer.headers["content-encoding"] == "gzip"
        for part in answer.iter_raw():
            received += unpress.decompress(part)
    assert bytes(received) == b"".join(EVENTS)


def test_no_plain_event_is_added_to_a_compressed_stream(proxy, backend):
    """Where the server dies, the connection ends without its end (Proxy review 17)."""

    async def behave(asked):
        await asked.send(GZIP_SSE)
        await asked.chunk(b"\x1f\x8bsome")
        reset(asked)

    backend.behaviour = behave
    received = exchange(proxy.base_url, post(CHAT, STREAM))
    assert b"error" not in received
    assert not received.endswith(b"0\r\n\r\n")


def test_a_client_that_stops_is_no_server_that_died(proxy, backend):
    """An alert must be able to tell the two apart (Proxy review 19)."""
    dies = False

    async def behave(asked):
        await asked.send(SSE)
        await asked.chunk(EVENTS[0])
        if dies:
            reset(asked)
        else:
            await asked.gone()

    backend.behaviour = behave
    with httpx.stream("POST", proxy.base_url + CHAT, content=STREAM, trust_env=False, timeout=20) as answer:
        next(answer.iter_raw())
    wait_until(lambda: metrics(proxy) == {"client_gone": 1.0})
    dies = True
    exchange(proxy.base_url, post(CHAT, STREAM))
    assert metrics(proxy) == {"client_gone": 1.0, "broken": 1.0}


def test_a_client_that_stops_before_the_first_byte(proxy, backend):
    """It is told as gone in every stage (Proxy review 19)."""

    async def behave(asked):
        await asked.gone()

    backend.behaviour = behave
    with connected(proxy.base_url) as raw:
        raw.sendall(post(CHAT, BODY))
        wait_until(lambda: backend.asked)
    wait_until(lambda: metrics(proxy) == {"client_gone": 1.0})


@pytest.mark.parametrize("content", [BODY, STREAM])
def test_a_client_that_leaves_while_it_waits_for_a_server(loop, lent, storage, content):
    """A model that takes too long to load shows in the metrics: how many gave up, and after how long."""
    dispatch = LoadingModel([lent], aliases=("other",))
    with proxy_over(loop, dispatch, storage) as proxy:
        with connected(proxy.base_url) as raw:
            raw.sendall(post(CHAT, content.replace(b"main", b"other")))
            wait_until(lambda: proxy.proxy.in_flight)
        wait_until(lambda: metrics(proxy) == {"client_gone": 1.0})
        text = httpx.get(proxy.base_url + "/autospec/metrics", trust_env=False).text
    gone = 'autospec_requests_total{drafting="",model="main",prompt_type="",status="client_gone"} 1.0'
    assert gone in text
    assert 'autospec_wait_seconds_count{model="main"} 1.0' in text


@pytest.mark.parametrize("reset_it", [True, False])
def test_a_client_that_leaves_during_its_upload(proxy, backend, reset_it):
    """No model is known yet; it is no damaged request."""
    with connected(proxy.base_url) as raw:
        raw.sendall(post(CHAT, BODY)[:-5])
        wait_until(lambda: proxy.proxy._bodies.held_bytes)
        if reset_it:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wait_until(lambda: metrics(proxy) == {"client_gone": 1.0})
    assert backend.asked == []


def test_a_request_that_kills_two_servers_is_counted_once_as_broken(proxy, backend):
    """The first attempt was retried, and the error that the client got is counted, too (Proxy review 19)."""

    async def die(asked):
        reset(asked)

    backend.behaviour = die
    assert httpx.post(proxy.base_url + CHAT, content=BODY, trust_env=False).status_code == 502
    assert metrics(proxy) == {"retried": 1.0, "broken": 1.0, "backend_failed": 1.0}


def test_what_is_no_http_is_counted(proxy):
    """The HTTP server refuses it by itself (Proxy review 19)."""
    assert b" 400 " in exchange(proxy.base_url, b"NONSENSE\r\n\r\n")
    long = b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"x" * 20_000 + b"\r\n\r\n"
    assert b" 431 " in exchange(proxy.base_url, long)
    assert metrics(proxy) == {"invalid_http": 1.0, "headers_too_large": 1.0}


def test_clients_fields_are_refused_where_they_cannot_be_replaced(proxy, backend, lent):
    """mlx_lm.server ignores Content-Type and would read the client's own model (Proxy review 6)."""
    lent.fields = {"model": "default_model"}
    form = b"Content-Type: multipart/form-data; boundary=x"
    assert b" 400 " in exchange(proxy.base_url, post(CHAT, b'{"model": "somebody/else"}', form))
    assert not backend.asked
    assert lent.leases == lent.returned
    assert b" 200 " in exchange(proxy.base_url, post(CHAT, b"\xef\xbb\xbf" + BODY))
    assert json.loads(backend.asked[0].body)["model"] == "default_model"


@pytest.fixture
def dispatch(lent) -> LoadingModel:
    """What lends the stand-in, once it is loaded."""
    return LoadingModel([lent])


@pytest.fixture(autouse=True)
def _hurried(monkeypatch):
    monkeypatch.setattr("autospec.proxy.relay._FIRST_COMMENT_S", 0.02)
    monkeypatch.setattr("autospec.proxy.relay._COMMENT_S", 0.01)


@pytest.fixture(autouse=True)
def _loaded(request, dispatch):
    """Only tests of the wait make the model load."""
    if "waits" not in request.node.name:
        dispatch.loaded.set()


def streamed(proxy, dispatch, *, path: str = CHAT, content: bytes = STREAM, comments: int = 3) -> str:
    """What a client receives whose model is loaded when it has seen some comments."""
    received = ""
    url = proxy.base_url + path
    headers = {"Origin": "http://localhost:3000"}
    with httpx.stream("POST", url, content=content, trust_env=False, timeout=20, headers=headers) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/event-stream"
        assert answer.headers["access-control-allow-origin"] == "http://localhost:3000"
        for text in answer.iter_text():
            received += text
            if received.count(": waiting") >= comments:
                dispatch.loaded.set()
    return received


def without_comments(received: str) -> str:
    """The events."""
    return "".join(f"{part}\n\n" for part in received.split("\n\n") if part and not part.startswith(":"))


@on_both_loops
def test_a_stream_that_waits_gets_comments(proxy, dispatch, backend):
    """From the moment that it waits until the first event, and then the server's own bytes (issue 17, item 3)."""

    async def behave(asked):
        assert asked.header(b"accept-encoding") is None
        await asked.send(SSE)
        for one in EVENTS:
            await asked.chunk(one)
        await asked.end()

    backend.behaviour = behave
    received = streamed(proxy, dispatch)
    assert received.startswith(": waiting for a server\n\n")
    assert without_comments(received).encode() == b"".join(EVENTS)
    assert metrics(proxy) == {"200": 1.0}


@pytest.mark.parametrize("path", [CHAT, "/v1/messages"])
def test_a_launch_that_fails_while_a_stream_waits_is_an_event(proxy, dispatch, path):
    """Status 200 is sent, so the client's SDK reads the error from the stream (issue 17, item 3)."""
    dispatch.refusal = LaunchError("Out of memory.")
    received = without_comments(streamed(proxy, dispatch, path=path))
    named, _, data = received.strip().rpartition("data: ")
    assert "Out of memory." in json.loads(data)["error"]["message"]
    assert named == ("event: error\n" if path == "/v1/messages" else "")
    assert metrics(proxy) == {"launch_failed": 1.0}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b'{"error": {"code": 400, "message": "The context is full."}}', "The context is full."),
        (b"<html>Bad Gateway</html>", "The server of main answered 400 without a stream."),
    ],
)
def test_an_error_of_the_server_after_a_stream_waits_is_an_event(proxy, dispatch, backend, answer, message):
    """As the server worded it, where it is JSON (issue 17, item 3)."""

    async def behave(asked):
        await asked.answer(answer, b"400 Bad Request")

    backend.behaviour = behave
    received = without_comments(streamed(proxy, dispatch))
    assert json.loads(received.removeprefix("data: "))["error"]["message"] == message


def test_a_server_that_dies_after_a_stream_waits_is_replaced(loop, storage, backend):
    """Comments are no answer: another server may still take over (issue 17, item 3)."""
    dying = loop.run(StandIn().start())

    async def die(asked):
        reset(asked)

    async def behave(asked):
        await asked.send(SSE)
        await asked.chunk(EVENTS[0])
        await asked.end()

    dying.behaviour, backend.behaviour = die, behave
    dispatch = LoadingModel([LentServer(dying.base_url), LentServer(backend.base_url)])
    with proxy_over(loop, dispatch, storage) as proxy:
        received = streamed(proxy, dispatch)
        assert metrics(proxy) == {"retried": 1.0, "200": 1.0}
    loop.run(dying.stop())
    assert without_comments(received).encode() == EVENTS[0]


def test_a_client_that_leaves_while_its_stream_waits(proxy, dispatch):
    """Its place in the queue is given up (issue 17, item 3)."""
    with connected(proxy.base_url) as raw:
        raw.sendall(post(CHAT, STREAM))
        assert b": waiting" in raw.recv(65536) + raw.recv(65536)
    wait_until(lambda: dispatch.given_up == 1)


@pytest.mark.parametrize("content", [BODY, b'{"model": "main", "stream": false}'])
def test_an_answer_that_waits_without_a_stream_keeps_its_status(proxy, dispatch, content):
    """Nothing is sent before the answer (issue 17, item 3)."""
    dispatch.refusal = LaunchError("Out of memory.")
    with connected(proxy.base_url) as raw:
        raw.sendall(post(CHAT, content))
        raw.settimeout(0.2)
        with contextlib.suppress(TimeoutError):
            assert not raw.recv(1)
        raw.settimeout(20)
        dispatch.loaded.set()
        assert everything(raw).startswith(b"HTTP/1.1 502 ")


def test_a_stream_that_waits_gets_no_comments_where_they_are_off(loop, dispatch, storage):
    """The setting stream_comments (issue 17, item 3)."""
    dispatch.refusal = LaunchError("Out of memory.")
    off = proxy_over(loop, dispatch, storage, rules=Rules(comments=False))
    with off as proxy, connected(proxy.base_url) as raw:
        raw.sendall(post(CHAT, STREAM))
        raw.settimeout(0.2)
        with contextlib.suppress(TimeoutError):
            assert not raw.recv(1)
        raw.settimeout(20)
        dispatch.loaded.set()
        assert everything(raw).startswith(b"HTTP/1.1 502 ")


def test_a_stream_that_need_not_wait_keeps_its_headers(proxy, backend):
    """A long prompt is no wait for a server: the answer's own headers come with its first byte."""

    async def behave(asked):
        await asyncio.sleep(0.1)
        await asked.send(SSE)
        await asked.chunk(EVENTS[0])
        await asked.end()

    backend.behaviour = behave
    answer = httpx.post(proxy.base_url + CHAT, content=STREAM, trust_env=False, timeout=20)
    assert answer.content == EVENTS[0]
    assert answer.headers["x-autospec-drafting"] == "off"


def test_an_answer_ends_with_its_client_whatever_its_page_asks_for(proxy, backend):
    """llama-server writes an answer with this header to its end after its client left; the proxy took the server for idle."""
    headers = {"x-conversation-id": "a", "X-Other": "b"}
    httpx.post(proxy.base_url + CHAT, content=BODY, headers=headers, trust_env=False).raise_for_status()
    assert backend.asked[0].header(b"x-conversation-id") is None
    assert backend.asked[0].header(b"x-other") == b"b"


@pytest.mark.parametrize(
    ("target", "passed"),
    [(b"http://localhost", b"/"), (b"http://localhost?a=1", b"/?a=1"), (b"http://localhost/x?a", b"/x?a")],
)
def test_an_absolute_target_without_a_path_means_the_root(proxy, backend, target, passed):
    """RFC 9112 section 3.2.2; llama-server answered 400 to a request line without a target."""
    exchange(proxy.base_url, b"GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n" % target)
    assert backend.asked[0].line == b"GET %s HTTP/1.1" % passed


def test_the_proxys_own_shortage_is_no_death_of_a_server(loop, proxy, dispatch, monkeypatch):
    """Without a free file descriptor every answer was a 502, after two attempts that each made a living server suspect."""

    async def no_descriptor(*_, **__):
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as context:
        context.setattr(loop.loop, "create_connection", no_descriptor)
        answer = httpx.post(proxy.base_url + CHAT, content=BODY, trust_env=False)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "overloaded")
    assert "Too many open files" in answer.json()["error"]["message"]
    assert answer.headers["retry-after"] == "2"
    assert metrics(proxy) == {"overloaded": 1.0}  # not `broken`, for which there is an alert
    assert dispatch.servers[0].deaths == 0
    assert len(dispatch.wanted) == 1


def test_several_answers_to_one_request_are_planned_for(proxy, backend, dispatch):
    """The counts are those of one: the tokens of three were lost, and three prompts' bytes were compared with one's tokens."""
    timings = {"cache_n": 0, "prompt_n": 5, "prompt_ms": 1.0, "predicted_n": 9, "predicted_ms": 90.0}

    async def behave(asked):
        await asked.answer(json.dumps({"timings": timings}).encode())

    backend.behaviour = behave
    for n in (1, 3):
        body = {"model": "main", "messages": [], "n": n}
        httpx.post(proxy.base_url + CHAT, json=body, trust_env=False).raise_for_status()
    assert [wanted.answers for wanted in dispatch.wanted] == [1, 3]
    wait_until(lambda: dispatch.servers[0].tokens == 9 + 27)
    assert dispatch.servers[0].prompt_tokens == 5
