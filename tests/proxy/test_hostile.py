"""Malformed and hostile requests get a clear 4xx or are passed on, and never cause a traceback."""

from __future__ import annotations

import json
import logging
import socket
import time

import httpx
import pytest

from autospec.proxy.access import Access
from autospec.proxy.app import Rules
from tests.backends.waiting import wait_until
from tests.proxy.harness import proxy_over
from tests.proxy.raw import connected, everything, exchange, post

CHAT = "/v1/chat/completions"
GOOD = b'{"model": "main", "messages": []}'


@pytest.fixture(autouse=True)
def no_tracebacks(caplog):
    """Whatever is sent, nothing may surprise the proxy."""
    with caplog.at_level(logging.WARNING):
        yield
    assert [r for r in caplog.records if r.exc_info] == []


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"model": "main", "messages": [', 400),
        (b"{not json}", 400),
        (b'{"model": 7}', 400),
        (b'{"model": ["main"]}', 400),
        (b'{"model": "main", "x": ' + b"[" * 100_000 + b"}", 400),
        (b'{"model": "main", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400),
        (b'{"model": "\xff\xfe"}', 400),
        (b'{"model": "main", "x": ' + b"9" * 100_000 + b"}", 400),
        (b'{"model": "nobody"}', 404),
        (b'{"model": "\\u0000\\ud800"}', 404),
        (b'{"model": "' + b"m" * 100_000 + b'"}', 404),
        (b'{"messages": "not a list", "model": "main"}', 200),
        (b'{"messages": [1, null, {"content": 3}], "model": "main"}', 200),
        (b'{"model": null}', 200),
        (b"[]", 200),
        (b"null", 200),
        (b"", 200),
        (b"\x00\x01\x02", 200),
    ],
)
def test_bodies(proxy, body, status):
    """Damaged JSON is refused with a sentence; what is somebody else's format passes."""
    answer = httpx.post(proxy.base_url + CHAT, content=body, trust_env=False, timeout=20)
    assert answer.status_code == status
    if status != 200:
        error = answer.json()["error"]
        assert error["type"] == "invalid_request_error"
        assert len(error["message"]) < 2100


def test_unknown_model_lists_what_exists(proxy):
    """OpenAI's shape on OpenAI's paths, Anthropic's on /v1/messages."""
    openai = httpx.post(proxy.base_url + CHAT, json={"model": "gpt-9"}, trust_env=False)
    assert openai.status_code == 404
    assert openai.json()["error"] == {
        "message": "There is no model gpt-9. The models here are: main.",
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_found",
    }
    anthropic = httpx.post(proxy.base_url + "/v1/messages", json={"model": "claude"}, trust_env=False)
    assert anthropic.status_code == 404
    assert anthropic.json()["type"] == "error"
    assert anthropic.json()["error"]["type"] == "not_found_error"


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"hello\r\n\r\n", b"400"),
        (b"GET / HTTP/9.9\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"400"),  # TLS on a plain port
        (b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 20_000 + b"\r\n\r\n", b"431"),
        (b"GET /" + b"y" * 20_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", b"431"),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n", b"400"),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", b"400"),
        (b"CONNECT example.org:443 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", b"405"),
        (b"GET /x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX: \xff\xfe\r\n\r\n", b"400"),
    ],
)
def test_bad_http(proxy, request_bytes, status):
    """What is no HTTP gets a JSON error, and the connection is closed."""
    answer = exchange(proxy.base_url, request_bytes)
    assert answer.split(b" ", 2)[1] == status
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["message"]


def test_target_with_another_host_stays_here(proxy, backend):
    """A request for a whole URL is answered by our backend, not by that host."""
    answer = exchange(
        proxy.base_url,
        b"GET http://example.org/props?x=1 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    )
    assert answer.startswith(b"HTTP/1.1 200")
    assert backend.asked[0].line == b"GET /props?x=1 HTTP/1.1"
    tricky = exchange(
        proxy.base_url, b"GET //example.org/x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )
    assert tricky.startswith(b"HTTP/1.1 200")
    assert backend.asked[1].line == b"GET //example.org/x HTTP/1.1"


def test_pipelined_requests_are_answered_in_order(proxy, backend):
    """Three requests in one packet, three answers."""

    async def behave(asked):
        await asked.answer(asked.line)

    backend.behaviour = behave
    one = b"GET /%d HTTP/1.1\r\nHost: localhost\r\n\r\n"
    last = b"GET /3 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    answer = exchange(proxy.base_url, one % 1 + one % 2 + last)
    assert [answer.find(b"GET /%d HTTP" % n) > 0 for n in (1, 2, 3)] == [True] * 3
    assert answer.find(b"GET /1") < answer.find(b"GET /2") < answer.find(b"GET /3")


def test_body_that_never_comes_harms_nobody(proxy):
    """One client stalls in the middle of its body; another is answered meanwhile."""
    with connected(proxy.base_url) as raw:
        raw.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        assert httpx.post(proxy.base_url + CHAT, content=GOOD, trust_env=False).status_code == 200


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("path", [CHAT, "/v1/messages"])
def test_request_that_is_too_large(loop, dispatch, storage, told, path):
    """413 in the client's shape, whether the length is told or comes out."""
    body = b'{"model": "main", "x": "' + b"y" * 50_000 + b'"}'
    with proxy_over(loop, dispatch, storage, rules=Rules(request_limit_bytes=10_000)) as proxy:
        if told:
            answer = exchange(proxy.base_url, post(path, body))
        else:
            head = (
                b"POST %s HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n" % path.encode()
            )
            answer = exchange(proxy.base_url, head + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))
    assert answer.startswith(b"HTTP/1.1 413")
    error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    assert error["type"] == ("request_too_large" if "messages" in path else "invalid_request_error")


def test_prompts_are_in_no_log_unless_asked_for(loop, dispatch, storage, caplog):
    """Not when all goes well, not in errors; with the flag they are."""
    secret = "the-secret-of-the-day"
    body = json.dumps({"model": "main", "messages": [{"role": "user", "content": secret}]})
    with caplog.at_level(logging.DEBUG):
        with proxy_over(loop, dispatch, storage) as proxy:
            httpx.post(proxy.base_url + CHAT, content=body, trust_env=False)
            httpx.post(proxy.base_url + CHAT, content=body[:-1], trust_env=False)
        assert secret not in caplog.text
        with proxy_over(loop, dispatch, storage, rules=Rules(log_prompts=True)) as proxy:
            httpx.post(proxy.base_url + CHAT, content=body, trust_env=False)
        assert secret in caplog.text


def test_key_guards_everything_but_health(loop, dispatch, storage, backend):
    """Both ways to send it; it is not told to the backend."""
    rules = Rules(Access(api_key="s3cret"))
    with proxy_over(loop, dispatch, storage, rules=rules) as proxy:

        def status(path: str = "/props", **headers: str) -> int:
            return httpx.get(proxy.base_url + path, headers=headers, trust_env=False).status_code

        assert status() == 401
        assert status(Authorization="Bearer wrong") == 401
        assert status(Authorization="Basic s3cret") == 401
        assert status("/autospec/metrics") == 401
        assert status("/v1/models") == 401
        assert status("/health") == 200
        assert status(Authorization="Bearer s3cret") == 200
        assert status(**{"x-api-key": "s3cret"}) == 200
    assert [a.header(b"authorization") or a.header(b"x-api-key") for a in backend.asked] == [None] * 3


def test_pages_and_rebound_names_are_kept_out(proxy, backend):
    """A foreign Host or Origin is refused before anything is done."""
    url = proxy.base_url + "/props"
    for headers in ({"Host": "evil.example"}, {"Origin": "https://evil.example"}, {"Origin": "null"}):
        answer = httpx.get(url, headers=headers, trust_env=False)
        assert answer.status_code == 403
        assert "access-control-allow-origin" not in answer.headers
    assert backend.asked == []


def test_local_page_may_ask(proxy):
    """Preflight and answer say so to the browser."""
    page = "http://localhost:3000"
    preflight = httpx.options(
        proxy.base_url + CHAT,
        headers={
            "Origin": page,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "x-a",
        },
        trust_env=False,
    )
    assert preflight.status_code == 204
    assert preflight.headers["access-control-allow-origin"] == page
    assert preflight.headers["access-control-allow-headers"] == "x-a"
    for answer in (
        httpx.post(proxy.base_url + CHAT, content=GOOD, headers={"Origin": page}, trust_env=False),
        httpx.post(proxy.base_url + CHAT, content=b"{", headers={"Origin": page}, trust_env=False),
        httpx.get(proxy.base_url + "/v1/models", headers={"Origin": page}, trust_env=False),
    ):
        assert answer.headers["access-control-allow-origin"] == page


def test_upgrade_is_not_taken(proxy, backend):
    """A websocket handshake is answered as a plain request, and the connection stays usable."""
    with connected(proxy.base_url) as raw:
        raw.sendall(
            b"GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        assert raw.recv(65536).startswith(b"HTTP/1.1 200")
        raw.sendall(b"GET /b HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert b"HTTP/1.1 200 OK" in everything(raw)
    assert backend.asked[0].header(b"upgrade") is None


@pytest.mark.parametrize(
    "headers",
    [
        b"Content-Length: 4\r\nTransfer-Encoding: chunked",
        b"Transfer-Encoding: chunked\r\nContent-Length: 4",
        b"Content-Length: 4\r\nContent-Length: 5",
        b"Content-Length: +4",
        b"Content-Length: 4, 5",
        b"Content-Length: 0x4",
        b"Content-Length : 4",
        b"Transfer-Encoding: xchunked\r\nContent-Length: 4",
        b"Transfer-Encoding: chunked, identity",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        b"Content-Length: 4\r\nX: a\rContent-Length: 90",
        b"Content-Length: 4\r\nX: a\0b",
        b"Content-Length: 4\r\n X-Folded: 1",
    ],
)
def test_smuggling(proxy, backend, headers):
    """What could be read in two ways, as one request or as two, is refused, and the connection is closed."""
    hidden = b"GET /smuggled HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    inner = b"0\r\n\r\n" + hidden
    answer = exchange(
        proxy.base_url, b"POST /x HTTP/1.1\r\nHost: localhost\r\n%s\r\n\r\n%s" % (headers, inner)
    )
    assert answer.split(b" ", 2)[1] == b"400"
    assert answer.count(b"HTTP/1.") == 1
    assert backend.asked == []


@pytest.mark.parametrize(
    "chunks",
    [
        b"4;" + b"e" * 100_000 + b"\r\n{}{}\r\n0\r\n\r\n",  # an endless extension
        b"FFFFFFFFFFFFFFFFF\r\n{}",  # beyond 64 bits
        b"-2\r\n{}\r\n0\r\n\r\n",
        b"2\r\n{}X\r\n0\r\n\r\n",  # longer than it says
        b"2\n{}\n0\n\n",
        b"2\r\n{}\r\n0\r\n" + b"X: y\r\n" * 10_000 + b"\r\n",  # trailers without end
    ],
)
def test_bad_chunks(proxy, backend, chunks):
    """Damaged chunking is refused, and nothing of it reaches a backend."""
    head = b"POST /x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer = exchange(proxy.base_url, head + chunks)
    assert answer.split(b" ", 2)[1] in (b"400", b"431")
    assert backend.asked == []


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate, gzip"])
def test_compressed_bodies(proxy, backend, encoding):
    """What cannot be read cannot be sent to the right server: the client is told to send it plainly."""
    headers = {"Content-Encoding": encoding, "Content-Type": "application/json"}
    answer = httpx.post(proxy.base_url + CHAT, content=b"\x1f\x8b\x08\x00", headers=headers, trust_env=False)
    assert answer.status_code == 415
    assert "without Content-Encoding" in answer.json()["error"]["message"]
    assert backend.asked == []


@pytest.mark.parametrize(("extra", "status"), [(0, 200), (1, 413)])
def test_body_at_the_limit(loop, dispatch, storage, backend, extra, status):  # noqa: PLR0917 - fixtures
    """The last byte that is allowed passes, unchanged; one more does not."""
    limit = 300_000  # sent on in several pieces
    frame = b'{"model": "main", "x": ""}'
    body = frame[:-2] + b"y" * (limit - len(frame) + extra) + frame[-2:]
    with proxy_over(loop, dispatch, storage, rules=Rules(request_limit_bytes=limit)) as proxy:
        answer = httpx.post(proxy.base_url + CHAT, content=body, trust_env=False, timeout=20)
    assert answer.status_code == status
    assert [asked.body for asked in backend.asked] == ([body] if status == 200 else [])


def _opened(base_url: str, body: bytes) -> socket.socket:
    """A client that has sent all but the last byte of a chunked body, so that its length is not known."""
    host, port = base_url.removeprefix("http://").split(":")
    raw = socket.create_connection((host, int(port)), timeout=20)
    head = b"POST %s HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n" % CHAT.encode()
    raw.sendall(head + b"%x\r\n%s" % (len(body), body[:-1]))
    return raw


@pytest.mark.parametrize("told", [True, False])
def test_all_bodies_together_have_a_bound(loop, dispatch, storage, backend, told):
    """Beside four bodies of the largest size a fifth gets 503; when they have gone, by whatever end, it passes."""
    frame = b'{"model": "main", "x": ""}'
    body = frame[:-2] + b"y" * (10_000 - len(frame)) + frame[-2:]
    with proxy_over(loop, dispatch, storage, rules=Rules(request_limit_bytes=10_000)) as proxy:

        def ask(content: bytes) -> httpx.Response:
            sent = content if told else iter([content])
            return httpx.post(proxy.base_url + CHAT, content=sent, trust_env=False, timeout=20)

        clients = [_opened(proxy.base_url, body) for _ in range(4)]
        wait_until(lambda: proxy.proxy._bodies.held_bytes == 4 * (len(body) - 1))
        refused = ask(body)
        assert refused.status_code == 503
        assert refused.headers["Retry-After"]
        assert refused.json()["error"]["code"] == "overloaded"
        assert "request_limit_mib" in refused.json()["error"]["message"]
        for client in clients[:2]:
            client.close()  # in the middle of their bodies
        for client in clients[2:]:
            client.sendall(body[-1:] + b"\r\n0\r\n\r\n")
            assert client.recv(100).startswith(b"HTTP/1.1 200")
            client.close()
        wait_until(lambda: proxy.proxy._bodies.held_bytes == 0)
        assert ask(body).status_code == 200
        assert ask(body + b" ").status_code == 413
        assert ask(b"{").status_code == 400
        assert ask(b'{"model": "nobody"}').status_code == 404
        assert proxy.proxy._bodies.held_bytes == 0
    assert len(backend.asked) == 3


def test_small_bodies_pass_beside_large_ones(loop, dispatch, storage):
    """Four bodies that stall, or wait for a model that loads, refuse no chat; all small ones together have a bound, too."""
    body = b'{"model": "main", "x": ""}'
    rules = Rules(request_limit_bytes=len(body) * 64)
    with proxy_over(loop, dispatch, storage, rules=rules) as proxy:
        bodies = proxy.proxy._bodies

        def ask(content: bytes) -> int:
            return int(exchange(proxy.base_url, post(CHAT, content)).split()[1])

        bodies.held_bytes = 4 * bodies.limit_bytes
        assert (ask(body), ask(body + b" ")) == (200, 503)
        bodies.held_bytes = 5 * bodies.limit_bytes - len(body)
        assert ask(body) == 200
        bodies.held_bytes += 1
        assert ask(body) == 503
        # The first part of a body of unknown length is not a small body.
        bodies.held_bytes = 4 * bodies.limit_bytes
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n".encode()
        chunked = head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        assert int(exchange(proxy.base_url, chunked).split()[1]) == 503


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        (CHAT, b'"code": "body_timeout"'),
        ("/v1/messages", b'"type": "invalid_request_error"'),
        ("/autospec/v1/unload", b'"code": "body_timeout"'),
    ],
)
def test_a_body_that_stalls_is_given_up(proxy, backend, monkeypatch, path, kind):
    """408 in the client's shape, and its share of the bodies is free."""
    monkeypatch.setattr("autospec.proxy.request._BODY_SILENCE_S", 0.05)
    with connected(proxy.base_url) as raw:
        head = b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n" % path.encode()
        raw.sendall(head + b"Content-Length: 1000\r\n\r\n" + GOOD)
        answer = b""
        while not answer.endswith(b"}"):
            answer += raw.recv(4096)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert kind in answer
    assert b"Connection: close" in answer
    assert backend.asked == []
    assert proxy.proxy._bodies.held_bytes == 0


def test_a_slow_body_is_read_to_its_end(proxy, backend, monkeypatch):
    """The time is for one silence and not for the whole body."""
    monkeypatch.setattr("autospec.proxy.request._BODY_SILENCE_S", 0.15)
    with connected(proxy.base_url) as raw:
        request = post(CHAT, GOOD)
        raw.sendall(request[:-5])
        for at in range(-5, 0):
            time.sleep(0.05)
            raw.sendall(request[at : at + 1 or None])
        assert everything(raw).startswith(b"HTTP/1.1 200 ")
    assert backend.asked[0].body == GOOD


def test_many_headers(proxy, backend):
    """Small ones in masses are refused or passed on, and the proxy goes on living."""
    head = b"GET /x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    answer = exchange(proxy.base_url, head + b"".join(b"X-%d: y\r\n" % n for n in range(20_000)) + b"\r\n")
    assert answer.split(b" ", 2)[1] in (b"200", b"400", b"431")
    assert httpx.get(proxy.base_url + "/props", trust_env=False).status_code == 200
