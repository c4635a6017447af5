"""What the proxy reads of a request for the limits of its drafting, and what it says of them: header, metric, sample."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest

from autospec.backends.openai_http import counts_in_timings
from autospec.cells import PromptType
from autospec.drafting import OFF, Drafting, Mode
from autospec.proxy.request import prompt_size, temperature_of
from autospec.proxy.serve import ListeningProxy
from autospec.proxy.usage import RequestOutcome, sample_of
from autospec.serving.dispatch import Limit, RouteRequest
from tests.proxy.harness import LentServer, Loop, OneModel, proxy_over
from tests.proxy.stand_in import Asked, StandIn
from tests.serving.scene import prompt_of

TIMINGS = {"prompt_n": 3, "cache_n": 20, "predicted_n": 9, "prompt_ms": 1.5, "predicted_ms": 90.0}
OUTCOME = RequestOutcome(
    1.0, "/v1/completions", "main", "llama-server", "b1", PromptType.QA, OFF, 200, complete=True
)
TEN = "ten bytes."
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + 1000 * "A"}}


@pytest.mark.parametrize(
    ("document", "size"),
    [
        ({}, (0, 0)),
        ({"prompt": TEN, "model": "a long name"}, (10, 0)),
        ({"prompt": "ä"}, (2, 0)),
        ({"prompt": "\ud800"}, (3, 0)),
        ({"prompt": [1, 2, 3]}, (0, 3)),
        ({"prompt": [[1, 2], [3]]}, (0, 3)),
        ({"prompt": [TEN, 1, TEN]}, (20, 1)),
        ({"prompt": [1, TEN]}, (10, 1)),
        ({"prompt": [TEN, *[5] * 30_000]}, (10, 30_000)),
        ({"prompt": [[1, TEN, 2], TEN, [3]]}, (20, 3)),
        ({"messages": [{"content": TEN}, {"content": [{"text": TEN}, IMAGE]}]}, (29, 0)),
        ({"system": TEN, "messages": [{"content": [{"type": "image", "source": {"data": TEN}}]}]}, (15, 0)),
        ({"instructions": TEN, "input": TEN, "tools": [{"function": {"description": TEN}}]}, (30, 0)),
        ({"input_prefix": TEN, "input_suffix": TEN, "input_extra": [{"text": TEN}]}, (30, 0)),
        ({"messages": None, "prompt": 7, "input": True}, (0, 0)),
    ],
)
def test_the_size_of_a_prompt(document, size):
    """Text of every API in bytes, token ids by their number, also both in one list; no images, no other fields."""
    assert prompt_size(document) == size


def test_a_prompt_nested_without_end_has_a_size():
    """A client's nonsense costs no stack."""
    nested: Any = TEN
    for _ in range(500):
        nested = [nested]
    assert prompt_size({"messages": nested}) == (0, 0)


@pytest.mark.parametrize(
    ("document", "temperature"),
    [
        ({}, None),
        ({"temperature": None}, None),
        ({"temperature": "hot"}, None),
        ({"temperature": True}, None),
        ({"temperature": 10**400}, None),
        ({"temperature": float("inf")}, None),
        ({"temperature": 0}, 0.0),
        ({"temperature": 0.7}, 0.7),
        ({"temperature": 0.7, "top_k": 1}, 0.0),
        ({"temperature": 0.7, "top_k": 40}, 0.7),
    ],
)
def test_the_temperature_of_a_request(document, temperature):
    """One candidate alone is greedy; what is no number is left to the server."""
    assert temperature_of(document) == temperature


def test_a_sample_keeps_its_conditions():
    """Cached tokens, requests at once and the temperature; unknown where the answer does not tell."""
    outcome = replace(OUTCOME, counts=counts_in_timings(TIMINGS), concurrent=3, temperature=0.8)
    sample = sample_of(outcome)
    assert (sample.prompt_tokens, sample.cached_tokens, sample.concurrent, sample.temperature) == (
        3,
        20,
        3,
        0.8,
    )
    old_server = {name: value for name, value in TIMINGS.items() if name != "cache_n"}
    assert sample_of(replace(outcome, counts=counts_in_timings(old_server))).cached_tokens is None


@pytest.fixture
def loop() -> Iterator[Loop]:
    """An event loop in a thread."""
    running = Loop()
    yield running
    running.close()


async def tells_timings(asked: Asked) -> None:
    """An answer with llama.cpp's counts."""
    await asked.answer(json.dumps({"timings": TIMINGS}).encode())


@contextmanager
def serving(loop: Loop, tmp_path, **server: Any) -> Iterator[tuple[ListeningProxy, OneModel]]:
    """A proxy over one server, in which every request that generates is a question."""
    backend = loop.run(StandIn(tells_timings).start())
    dispatch = OneModel([LentServer(backend.base_url, **server)])
    with proxy_over(loop, dispatch, tmp_path / "a.db", classify=lambda _: PromptType.QA) as proxy:
        yield proxy, dispatch
    loop.run(backend.stop())


def test_what_a_request_is_sent_with_reaches_the_dispatch(loop, tmp_path):
    """And the number of its whole prompt comes back."""
    body = {"prompt": TEN, "temperature": 0.5}
    with serving(loop, tmp_path) as (proxy, dispatch):
        httpx.post(proxy.base_url + "/v1/completions", json=body, trust_env=False)
        httpx.post(proxy.base_url + "/tokenize", json={"content": TEN}, trust_env=False)
    assert [request for request in dispatch.wanted if request.prompt] == [
        RouteRequest("main", prompt_of(PromptType.QA, text_bytes=10), temperature=0.5)
    ]
    assert dispatch.servers[0].prompt_tokens >= 23


@pytest.mark.parametrize("drafting", [OFF, Drafting(Mode.NGRAM_MOD, ngram_n=12, n_max=16, n_min=0)])
def test_the_header_and_the_metric_name_the_limit(loop, tmp_path, drafting):
    """Also where the request was served without drafting."""
    with serving(loop, tmp_path, limit=Limit.CONTEXT, drafting=drafting) as (proxy, _):
        answer = httpx.post(proxy.base_url + "/v1/completions", json={"prompt": TEN}, trust_env=False)
        metrics = httpx.get(proxy.base_url + "/autospec/metrics", trust_env=False).text
    assert answer.headers["x-autospec-limit"] == "context"
    assert answer.headers["x-autospec-drafting"] == drafting.label
    (line,) = [x for x in metrics.splitlines() if x.startswith("autospec_beyond_limit_requests_total{")]
    assert 'limit="context"' in line
    assert line.endswith(" 1.0")


def test_within_its_limits_a_request_has_no_such_header(loop, tmp_path):
    """Nor where none are known."""
    with serving(loop, tmp_path) as (proxy, _):
        answer = httpx.post(proxy.base_url + "/v1/completions", json={"prompt": TEN}, trust_env=False)
    assert answer.headers["x-autospec-prompt-type"] == "qa"
    assert "x-autospec-limit" not in answer.headers
