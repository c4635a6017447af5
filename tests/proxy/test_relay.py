"""The relay passes bytes, headers and status codes on, in both directions, and holds events until they are whole."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autospec.cells import PromptType
from autospec.drafting import Drafting, Mode
from autospec.proxy.relay import WholeEvents
from autospec.serving.dispatch import WhyOff
from tests.backends.waiting import wait_until
from tests.proxy.harness import LentServer, OneModel, on_both_loops, proxy_over
from tests.proxy.raw import connected, everything, exchange, post
from tests.proxy.stand_in import SSE

CHAT = "/v1/chat/completions"
# Spaces, order, escapes and numbers that any parser and printer would change.
ODD_BODY = (
    b'{ "model":"main",\n"messages" : [{"role":"user","content":"\\u00e9\xc3\xa9"}],"x":1.50e+01,"x":1 }'
)


def ask(proxy, path=CHAT, content=ODD_BODY, **more) -> httpx.Response:
    """One POST."""
    return httpx.post(proxy.base_url + path, content=content, trust_env=False, timeout=20, **more)


def test_request_bytes_are_untouched(proxy, backend):
    """The body arrives with every space and escape; hop-by-hop headers end at the proxy, others pass."""
    answer = ask(
        proxy,
        CHAT + "?a=%2F&b=1",
        headers={"X-Mine": "1", "TE": "trailers", "Connection": "x-hop", "X-Hop": "1"},
    )
    assert answer.json() == {"ok": True}
    [asked] = backend.asked
    assert asked.body == ODD_BODY
    assert asked.line == b"POST /v1/chat/completions?a=%2F&b=1 HTTP/1.1"
    assert asked.header(b"x-mine") == b"1"
    assert asked.header(b"te") is None
    assert asked.header(b"x-hop") is None
    assert asked.header(b"user-agent").startswith(b"python-httpx")


def test_a_servers_own_key_replaces_the_clients(proxy, backend, lent):
    """Clients send any key where they need none; other headers stay, and the key comes back to nobody."""
    lent.headers = {"authorization": "Bearer secret"}
    answer = ask(proxy, headers={"Authorization": "Bearer none", "X-Mine": "1"})
    [asked] = backend.asked
    assert asked.head.lower().count(b"authorization:") == 1
    assert asked.header(b"authorization") == b"Bearer secret"
    assert asked.header(b"x-mine") == b"1"
    assert "secret" not in str(answer.headers)


@pytest.mark.parametrize("status", [200, 400, 404, 418, 500, 503])
def test_status_and_body_of_the_backend_pass(proxy, backend, status):
    """Errors are the backend's own, with its headers."""

    async def behave(asked):
        await asked.answer(b'{"e":  1}', b"%d Some Reason" % status, b"X-Theirs: 2\r\nServer: llama.cpp\r\n")

    backend.behaviour = behave
    answer = ask(proxy)
    assert (answer.status_code, answer.reason_phrase, answer.content) == (status, "Some Reason", b'{"e":  1}')
    assert answer.headers["x-theirs"] == "2"
    assert answer.headers["server"] == "llama.cpp"
    assert answer.headers["x-autospec-drafting"] == "off"


def test_stream_passes_event_by_event(proxy, backend):
    """An event reaches the client before the next one exists, and the bytes are the same."""
    events = [b'data: {"n":%d}\n\n' % n for n in range(5)]
    received = []

    async def behave(asked):
        await asked.send(SSE)
        for number, one in enumerate(events):
            await asked.chunk(one)
            while len(received) <= number:
                await asked.send()
                await asyncio.sleep(0.001)
        await asked.send(b"0\r\n\r\n")

    backend.behaviour = behave
    with httpx.stream("POST", proxy.base_url + CHAT, content=ODD_BODY, trust_env=False, timeout=20) as answer:
        received.extend(answer.iter_raw())
    assert received == events


@pytest.mark.parametrize(
    "end",
    [
        b'"usage":{"prompt_tokens":9,"completion_tokens":4,"prompt_tokens_details":[1]}',
        b'"usage":{"prompt_tokens":9,"completion_tokens":4,"prompt_tokens_details":{"cached_tokens":"3"}}',
        b'"timings":{"prompt_n":1e999,"predicted_n":1,"prompt_ms":1,"predicted_ms":1}',
        b'"timings":{"prompt_n":' + b"[" * 9000,
    ],
)
def test_an_answer_that_cannot_be_counted_is_whole(proxy, backend, end):
    """It is in the requests that were answered, the connection stays, and the next answer passes on it."""
    body = b'{"choices":[],' + end + b"}"

    async def behave(asked):
        await asked.answer(body)

    backend.behaviour = behave
    with httpx.Client(base_url=proxy.base_url, trust_env=False, timeout=20) as client:
        assert [client.post(CHAT, content=ODD_BODY).content for _ in range(2)] == [body, body]
        metrics = client.get("/autospec/metrics").text
    assert 'autospec_requests_total{drafting="off",model="main",prompt_type="",status="200"} 2.0' in metrics


def test_compressed_answer_stays_compressed(proxy, backend):
    """What the client and the backend agreed on is not the proxy's business."""

    async def behave(asked):
        await asked.answer(b"\x1f\x8bnot really gzip", extra=b"Content-Encoding: gzip\r\n")

    backend.behaviour = behave
    with httpx.stream("GET", proxy.base_url + "/props", trust_env=False) as answer:
        assert answer.headers["content-encoding"] == "gzip"
        assert b"".join(answer.iter_raw()) == b"\x1f\x8bnot really gzip"


@on_both_loops
@pytest.mark.parametrize("streamed", [True, False])
def test_header_bytes_of_an_answer_are_untouched(proxy, backend, streamed):
    """Whatever their coding: the reason, too. aiohttp wrote them again as UTF-8 (Proxy review 26)."""
    name = "n\u00e9\u540d".encode()
    lines = [b"X-Latin: caf\xe9 \xff\x80", b"X-Utf-8: " + name, b"X-Latin: two"]

    async def behave(asked):
        kind = (
            b"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked"
            if streamed
            else b"Content-Length: 2"
        )
        await asked.send(b"HTTP/1.1 200 D\xe9j\xe0\r\n" + b"\r\n".join([*lines, kind]) + b"\r\n\r\n")
        if streamed:
            await asked.chunk(b"data: 1\n\n")
            await asked.end()
        else:
            await asked.send(b"{}")

    backend.behaviour = behave
    head, _, body = exchange(proxy.base_url, post("/v1/chat/completions", ODD_BODY)).partition(b"\r\n\r\n")
    received = head.split(b"\r\n")
    assert received[0] == b"HTTP/1.1 200 D\xe9j\xe0"
    assert [line for line in received if line.startswith(b"X-")] == lines
    assert any(line.startswith(b"x-autospec-drafting: off") for line in received)
    assert body == (b"9\r\ndata: 1\n\n\r\n0\r\n\r\n" if streamed else b"{}")


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE", "PROPFIND"])
def test_other_methods_pass(proxy, backend, method):
    """The server gets any path with any method; an answer to HEAD has no body, whatever its length says."""
    answer = httpx.request(method, proxy.base_url + "/slots/0?action=save", trust_env=False, timeout=20)
    assert answer.status_code == 200
    assert backend.asked[0].line == f"{method} /slots/0?action=save HTTP/1.1".encode()
    assert (answer.content == b"") == (method == "HEAD")


def test_chunked_and_large_requests_pass(proxy, backend):
    """A body without a length, and one of megabytes, arrive whole."""
    large = json.dumps(
        {"model": "main", "messages": [{"role": "user", "content": "long \n" * 500_000}]}
    ).encode()

    def parts():
        for at in range(0, len(large), 100_000):
            yield large[at : at + 100_000]

    assert ask(proxy, content=parts()).status_code == 200
    assert ask(proxy, content=large).status_code == 200
    assert [a.body == large for a in backend.asked] == [True, True]


def test_a_form_passes_unchanged(proxy, backend, dispatch):
    """To the model that it names, else to one that runs, and to a server that hears."""
    for data in ({}, {"model": "MAIN", "language": "en"}):
        answer = httpx.post(
            proxy.base_url + "/v1/audio/transcriptions", data=data, files={"file": b"RIFF"}, trust_env=False
        )
        assert answer.status_code == 200
        assert b"RIFF" in backend.asked[-1].body
        assert dispatch.wanted[-1].images
    assert [wanted.model for wanted in dispatch.wanted] == ["main", "MAIN"]


def test_a_form_for_a_model_that_is_not_here_is_refused(proxy, backend):
    """It was answered by whatever model ran."""
    data = {"model": "whisper-1"}
    answer = httpx.post(
        proxy.base_url + "/v1/audio/transcriptions", data=data, files={"file": b"RIFF"}, trust_env=False
    )
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"
    assert not backend.asked


def test_fields_are_added_where_the_lease_needs_them(loop, storage, backend):
    """A backend that takes drafting per request gets it in the body; everything else in it stays."""
    dispatch = OneModel([LentServer(backend.base_url, fields={"draft_model": "/d", "num_draft_tokens": 4})])
    with proxy_over(loop, dispatch, storage) as proxy:
        assert ask(proxy).status_code == 200
    assert json.loads(backend.asked[0].body) == {
        "model": "main",
        "messages": [{"role": "user", "content": "éé"}],
        "x": 1,
        "draft_model": "/d",
        "num_draft_tokens": 4,
    }
    assert int(backend.asked[0].header(b"content-length")) == len(backend.asked[0].body)


def test_headers_tell_and_force_type_and_drafting(loop, storage, backend):
    """The classifier's word is in the answer; a header beats it; `off` reaches the dispatch."""
    lent = LentServer(backend.base_url, drafting=Drafting(Mode.DRAFT_MODEL, draft="/m/d.gguf", n_max=8))
    dispatch = OneModel([lent])
    with proxy_over(loop, dispatch, storage, classify=lambda _d: PromptType.CODING) as proxy:
        told = ask(proxy)
        assert told.headers["x-autospec-prompt-type"] == "coding"
        assert told.headers["x-autospec-drafting"] == "draft-model d n_max=8"
        forced = ask(proxy, headers={"x-autospec-prompt-type": "math", "x-autospec-drafting": "off"})
        assert forced.headers["x-autospec-prompt-type"] == "math"
        tokenized = ask(proxy, "/tokenize", b'{"content": "x"}')
        assert "x-autospec-prompt-type" not in tokenized.headers
    assert [(w.facts.prompt_type, w.drafting_off) for w in dispatch.wanted] == [
        (PromptType.CODING, False),
        (PromptType.MATH, True),
        (None, False),
    ]
    assert backend.asked[1].header(b"x-autospec-drafting") is None


@pytest.mark.parametrize(("kind", "told"), [("coding", " (likely)"), ("math", "")])
def test_the_header_tells_what_is_only_likely(loop, storage, backend, kind, told):
    """For the kinds of prompts for which it is; for others the same drafting may be proven."""
    drafting = Drafting(Mode.DRAFT_MODEL, draft="/m/d.gguf", n_max=8)
    lent = LentServer(backend.base_url, drafting=drafting, likely=frozenset({PromptType.CODING}))
    with proxy_over(loop, OneModel([lent]), storage) as proxy:
        answer = ask(proxy, headers={"x-autospec-prompt-type": kind})
        assert answer.headers["x-autospec-drafting"] == f"draft-model d n_max=8{told}"


def test_an_answer_without_drafting_says_why(loop, storage, backend):
    """By the prompt's type; an answer that was drafted has no such header, and a page may read it."""
    lent = LentServer(backend.base_url, why_off={PromptType.CODING: WhyOff.UNDECIDED})
    with proxy_over(loop, OneModel([lent]), storage) as proxy:
        origin = {"Origin": "http://localhost:3000"}
        answer = ask(proxy, headers={"x-autospec-prompt-type": "coding", **origin})
        assert (answer.headers["x-autospec-drafting"], answer.headers["x-autospec-why"]) == (
            "off",
            "undecided",
        )
        assert "x-autospec-why" in answer.headers["access-control-expose-headers"]
        assert "x-autospec-why" not in ask(proxy, headers={"x-autospec-prompt-type": "math"}).headers
        lent.why_else = WhyOff.LIMIT
        assert ask(proxy, headers={"x-autospec-prompt-type": "math"}).headers["x-autospec-why"] == "limit"
        assert (
            ask(proxy, headers={"x-autospec-prompt-type": "coding"}).headers["x-autospec-why"] == "undecided"
        )


@pytest.mark.parametrize(
    ("name", "value"), [("drafting", "on"), ("drafting", "ngram-mod"), ("prompt-type", "poems")]
)
def test_headers_that_cannot_be_honoured_are_refused(proxy, backend, name, value):
    """A drafting cannot be forced, and a type must exist: 400 with a sentence."""
    answer = ask(proxy, headers={f"x-autospec-{name}": value})
    assert answer.status_code == 400
    assert "off" in answer.json()["error"]["message"] or "coding" in answer.json()["error"]["message"]
    assert backend.asked == []


def test_failing_classifier_costs_no_request(loop, dispatch, storage):
    """The kind of prompt is a hint."""

    def classify(_document):
        raise ZeroDivisionError

    with proxy_over(loop, dispatch, storage, classify=classify) as proxy:
        assert ask(proxy).status_code == 200


def test_connections_are_reused_and_given_back(proxy, lent):
    """Keep-alive on the client's side; every lease is returned."""
    with httpx.Client(base_url=proxy.base_url, trust_env=False) as client:
        for _ in range(5):
            assert client.post(CHAT, content=ODD_BODY).status_code == 200
    wait_until(lambda: lent.leases == lent.returned == 5)


def test_expect_continue_is_answered(proxy, backend):
    """A client like curl sends a large body only after 100 Continue."""
    with connected(proxy.base_url) as raw:
        raw.sendall(post(CHAT, ODD_BODY, b"Expect: 100-continue").removesuffix(ODD_BODY))
        assert raw.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        raw.sendall(ODD_BODY)
        answer = everything(raw)
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert backend.asked[0].body == ODD_BODY


def test_http_1_0_expects_nothing(proxy, backend):
    """It has no interim answers, so the expectation is ignored (RFC 9110, 10.1.1)."""
    request = post(CHAT, ODD_BODY, b"Expect: 100-continue").replace(b"HTTP/1.1", b"HTTP/1.0", 1)
    assert exchange(proxy.base_url, request).startswith(b"HTTP/1.0 200 OK")
    assert backend.asked[0].body == ODD_BODY


def test_http_1_0_gets_its_answer(proxy, backend):
    """No Host, no chunks, the end is the close."""

    async def behave(asked):
        await asked.send(SSE)
        await asked.chunk(b"data: [DONE]\n\n")
        await asked.send(b"0\r\n\r\n")

    backend.behaviour = behave
    request = b"POST %s HTTP/1.0\r\nContent-Length: %d\r\n\r\n%s" % (CHAT.encode(), len(ODD_BODY), ODD_BODY)
    head, _, body = exchange(proxy.base_url, request).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.0 200")
    assert b"chunked" not in head.lower()
    assert body == b"data: [DONE]\n\n"


@given(st.lists(st.binary(max_size=8) | st.sampled_from([b"\n\n", b"\r\n\r\n", b"data: x\n"]), max_size=20))
def test_events_pass_whole_and_unchanged(parts):
    """Whatever the cuts: the same bytes in all, and a break only between events."""
    events = WholeEvents()
    for part in parts:
        passed = events.feed(part)
        assert passed == b"" or passed.endswith((b"\n\n", b"\r\n\r\n"))
    events = WholeEvents()
    assert b"".join([*map(events.feed, parts), events.rest()]) == b"".join(parts)


@pytest.mark.parametrize(
    ("path", "embeds"),
    [("/v1/embeddings", True), ("/rerank", True), ("/tokenize", False), ("/v1/chat/completions", False)],
)
def test_the_dispatch_learns_who_asks_for_embeddings(proxy, dispatch, path, embeds):
    """It knows whether the model's server makes any."""
    assert ask(proxy, path).status_code == 200
    assert dispatch.wanted[-1].embeds is embeds
