"""Whatever clients and servers send: the proxy answers, never with 500, and logs no traceback."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autospec.cells import PromptType
from autospec.drafting import OFF
from autospec.proxy.answer import Answer, BrokenError, NotHttpError
from autospec.proxy.serve import prompt_type_of
from autospec.proxy.usage import RequestOutcome, read_counts, sample_of, saw_the_end
from autospec.store.database import open_store
from tests.proxy.harness import proxy_over
from tests.proxy.raw import exchange, post
from tests.proxy.test_answer import with_answer

GENERATING = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/infill",
    "/completion",
)
# Not the events, which never end.
OWN = (
    "/",
    "/health",
    "/v1/models",
    "/v1/models/x",
    "/autospec/metrics",
    "/autospec/v1/status",
    "/autospec/v1/plan",
)
METHODS = (b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"TRACE", b"CONNECT", b"BREW")
HEADERS = (
    *(
        b"Host",
        b"Origin",
        b"Authorization",
        b"X-Api-Key",
        b"Content-Type",
        b"Content-Encoding",
        b"Content-Length",
    ),
    *(
        b"Transfer-Encoding",
        b"Connection",
        b"Expect",
        b"Accept",
        b"Upgrade",
        b"Access-Control-Request-Method",
    ),
    *(b"x-autospec-drafting", b"x-autospec-prompt-type", b"Cookie", b"X"),
)
VALUES = (
    *(
        b"",
        b"localhost",
        b"127.0.0.1:1",
        b"[::1",
        b"evil.example",
        b"http://localhost:3000",
        b"null",
        b"http://[",
        b"off",
    ),
    *(
        b"coding",
        b"gzip",
        b"identity",
        b"chunked",
        b"close, x-a",
        b"100-continue",
        b"5",
        b"-1",
        b"9" * 30,
        b"application/json",
    ),
    *(b"text/event-stream", b"websocket", b"Bearer x", b"POST", b"*/*", b"multipart/form-data"),
)
FIELDS = (
    *(
        "messages",
        "content",
        "role",
        "type",
        "text",
        "prompt",
        "input",
        "system",
        "instructions",
        "tools",
        "functions",
    ),
    *(
        "function",
        "name",
        "arguments",
        "tool_calls",
        "input_extra",
        "suffix",
        "temperature",
        "top_k",
        "source",
        "image_url",
    ),
)
WORDS = (
    "user",
    "assistant",
    "system",
    "tool",
    "text",
    "image",
    "function",
    "main",
    "def f():",
    "\ud800",
    "\0",
    "",
)

line = st.one_of(st.sampled_from(VALUES), st.binary(max_size=20).filter(lambda raw: not {10, 13} & set(raw)))
header = st.tuples(
    st.one_of(
        st.sampled_from(HEADERS),
        st.binary(min_size=1, max_size=8).filter(lambda raw: not {10, 13} & set(raw)),
    ),
    line,
)
path = st.one_of(
    st.sampled_from([p.encode() for p in (*GENERATING, *OWN)]),
    st.binary(max_size=20).filter(lambda raw: not {10, 13} & set(raw)).map(lambda raw: b"/" + raw),
)
leaf = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.just(10**400),
    st.floats(),
    st.sampled_from(WORDS),
    st.text(max_size=8),
)
document = st.recursive(
    leaf,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.sampled_from(FIELDS), inner, max_size=4)
    ),
    max_leaves=12,
)


@pytest.fixture(autouse=True)
def no_tracebacks(caplog):
    """Nothing may surprise the proxy."""
    with caplog.at_level(logging.WARNING):
        yield
    assert [record.getMessage() for record in caplog.records if record.exc_info] == []


def test_any_request(proxy):
    """Any method, path, headers and body are answered, and the proxy stays."""

    @settings(max_examples=60)
    @given(st.sampled_from(METHODS), path, st.lists(header, max_size=4), st.binary(max_size=40))
    def ask(method, target, headers, body):
        lines = [b"%s %s HTTP/1.1" % (method, target), b"Host: localhost", b"Connection: close"]
        lines += [b"%s: %s" % pair for pair in headers]
        answer = exchange(
            proxy.base_url, b"\r\n".join([*lines, b"Content-Length: %d" % len(body), b"", body])
        )
        assert answer.startswith(b"HTTP/1.")
        assert answer[9:10] != b"5"

    ask()


def test_any_json(loop, dispatch, storage):
    """A body of any shape gets a prompt type, or none, and reaches the server."""
    with proxy_over(loop, dispatch, storage, classify=prompt_type_of) as proxy:

        @settings(max_examples=60)
        @given(st.sampled_from(GENERATING), st.dictionaries(st.sampled_from(FIELDS), document, max_size=5))
        def ask(target, body):
            answer = exchange(proxy.base_url, post(target, json.dumps(body).encode()))
            assert answer.startswith(b"HTTP/1.1 200")

        ask()


STARTS = (
    b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.0 503 Loading\r\n", b"HTTP/1.1 204 \r\n",
    b"Content-Length: 2\r\n", b"Content-Length: -2\r\n", b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip, chunked\r\n",
    b"Connection: close\r\n", b"Upgrade: websocket\r\nConnection: upgrade\r\n", b"X: \xff\r\n", b" folded\r\n", b"\r\n",
    b"2\r\nok\r\n", b"0\r\n\r\n", b"fffffffffffffffff\r\n", b"data: {}\n\n", b"HTTP/1.1 101 Switching Protocols\r\n", b"\0",
)  # fmt: skip


@settings(max_examples=300)
@given(
    st.lists(st.one_of(st.sampled_from(STARTS), st.binary(max_size=6)), max_size=10),
    st.integers(1, 30),
    st.sampled_from(("GET", "POST", "HEAD")),
)
def test_any_answer(pieces, step, method):
    """Any bytes of a server, cut anywhere, are an answer, a broken one or no HTTP; reading comes to an end."""
    content = b"".join(pieces)

    async def work(answer: Answer) -> None:
        for start in range(0, len(content), step):
            answer.feed(content[start : start + step])
        answer.lost(None)
        try:
            await answer.begun()
            while await answer.read():
                pass
        except (BrokenError, NotHttpError):
            pass

    _, end = with_answer(work, method=method)
    assert end == "closed"


COUNTS = (
    *(
        "prompt_n",
        "predicted_n",
        "prompt_ms",
        "predicted_ms",
        "cache_n",
        "draft_n",
        "draft_n_accepted",
        "prompt_tokens",
    ),
    *("completion_tokens", "input_tokens", "output_tokens", "prompt_tokens_details", "cached_tokens"),
)
number = st.one_of(leaf, st.integers(0, 50), st.sampled_from((2**63, 2**70, 1e308, -1)))
told = st.dictionaries(
    st.sampled_from(COUNTS),
    st.one_of(number, st.dictionaries(st.sampled_from(COUNTS), number, max_size=2)),
    max_size=8,
)
complete = st.fixed_dictionaries(
    dict.fromkeys(("prompt_n", "predicted_n", "prompt_ms", "predicted_ms"), number),
    optional=dict.fromkeys(("cache_n", "draft_n", "draft_n_accepted"), number),
)


def test_any_usage(tmp_path):
    """What a server tells of an answer is counts that the database takes, or nothing."""
    store = open_store(f"sqlite:///{tmp_path / 'a.db'}")
    outcome = RequestOutcome(
        1.0, "/v1/completions", "m", "b", "1", PromptType.QA, OFF, 200, complete=True, streamed=True
    )

    @settings(max_examples=60)
    @given(
        st.sampled_from(("timings", "usage")),
        st.one_of(told, complete),
        st.binary(max_size=20),
        st.integers(0, 5),
    )
    def read(name: str, value: Any, noise: bytes, cut: int):
        event = b"data: " + json.dumps({name: value}).encode()
        tail = (noise + event)[: len(noise + event) - cut] + b"\n\n"
        saw_the_end(tail)
        sample = sample_of(replace(outcome, counts=read_counts(tail)))
        if sample is not None:
            store.add_samples([sample])

    read()
    store.close()
