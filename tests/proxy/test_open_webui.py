"""What Open WebUI sends, replayed: its server asks for models and chats, its page asks from its own address.

Its package is some gigabytes, so it is not run here. Recorded from 0.12.4; the headers with the person's name are from its source,
backend/open_webui/routers/openai.py (`get_headers_and_cookies`; as of commit 004a45f).
"""

from __future__ import annotations

import json

import httpx
import pytest

from autospec.proxy.access import Access
from autospec.proxy.app import Rules
from tests.proxy.harness import proxy_over
from tests.proxy.stand_in import SSE

# With ENABLE_FORWARD_USER_INFO_HEADERS; no User-Agent of its own: aiohttp's.
SERVER = {
    "Content-Type": "application/json",
    "Accept": "*/*",
    "Accept-Encoding": "gzip, deflate, br",
    "X-OpenWebUI-User-Name": "A%20B",
    "X-OpenWebUI-User-Id": "1",
    "X-OpenWebUI-User-Email": "a@b.example",
    "X-OpenWebUI-User-Role": "admin",
    "X-OpenWebUI-Chat-Id": "c1",
    "User-Agent": "Python/3.11 aiohttp/3.14.5",
}
# It offers some 36 tools of its own with every message; the first one of them.
TOOL = {"type": "function", "function": {"name": "get_current_timestamp", "description": "Get the current Unix timestamp in seconds.", "parameters": {"properties": {}, "type": "object"}}}  # fmt: skip
CHAT = {"stream": True, "model": "main", "messages": [{"role": "user", "content": "Hi"}], "tools": [TOOL]}
TITLE = {"model": "main", "messages": [{"role": "user", "content": "### Task:\nGenerate a concise title"}], "stream": False, "max_tokens": 1000}  # fmt: skip
STREAM = b'data: {"choices": [{"delta": {"content": "Hello"}}]}\n\ndata: {"choices": [], "usage": {"completion_tokens": 1}}\n\ndata: [DONE]\n\n'


@pytest.fixture
def streaming(backend):
    """A backend that streams an answer if it is asked to."""

    async def behave(asked):
        if json.loads(asked.body).get("stream"):
            await asked.send(SSE)
            await asked.chunk(STREAM)
            await asked.end()
        else:
            await asked.answer(b'{"choices": [{"message": {"content": "A title"}}]}')

    backend.behaviour = behave
    return backend


def test_its_server_lists_models_and_chats(loop, dispatch, storage, streaming):
    """With a key: the list, a stream, and the title that it asks for afterwards; the person's name does not reach the log."""
    with (
        proxy_over(loop, dispatch, storage, rules=Rules(Access(api_key="k"))) as proxy,
        httpx.Client(base_url=f"{proxy.base_url}/v1", trust_env=False, headers=SERVER) as client,
    ):
        assert client.get("/models").status_code == 401
        client.headers["Authorization"] = "Bearer k"
        models = client.get("/models").json()
        assert [m["id"] for m in models["data"]] == ["main"]
        answer = client.post("/chat/completions", content=json.dumps(CHAT))
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.content == STREAM
        title = client.post("/chat/completions", content=json.dumps(TITLE)).json()
        assert title["choices"][0]["message"]["content"] == "A title"
    assert [json.loads(asked.body)["stream"] for asked in streaming.asked] == [True, False]


def test_without_a_key_it_sends_an_empty_one(proxy, streaming):
    """Its page always sends the header; browsers cut the space at its end."""
    answer = httpx.get(f"{proxy.base_url}/v1/models", headers={"Authorization": "Bearer"}, trust_env=False)
    assert answer.json()["data"][0]["id"] == "main"


@pytest.mark.parametrize("origin", ["http://localhost:3000", "http://127.0.0.1:8080"])
def test_its_page_may_read_the_answers(proxy, streaming, origin):
    """A direct connection: a preflight for both headers, then the request, whose answer names the page's origin."""
    asks = {"Origin": origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}  # fmt: skip
    preflight = httpx.request(
        "OPTIONS", f"{proxy.base_url}/v1/chat/completions", headers=asks, trust_env=False
    )
    assert preflight.status_code == 204
    assert preflight.headers["access-control-allow-origin"] == origin
    assert preflight.headers["access-control-allow-headers"] == "authorization,content-type"
    answer = httpx.post(
        f"{proxy.base_url}/v1/chat/completions",
        json=CHAT,
        headers={"Origin": origin, "Authorization": "Bearer"},
        trust_env=False,
    )
    assert answer.headers["access-control-allow-origin"] == origin
    assert answer.content == STREAM
