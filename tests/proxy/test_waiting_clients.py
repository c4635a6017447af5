"""OpenAI's and Anthropic's SDKs on a stream that begins with comments: they skip them, and raise an error that follows."""

from __future__ import annotations

import threading

import pytest

from autospec.errors import LaunchError
from tests.proxy.stand_in import SSE
from tests.proxy.test_relay_edges import LoadingModel

pytestmark = pytest.mark.process  # the SDKs take seconds to import

MESSAGES = [{"role": "user", "content": "Say a word."}]
CHUNK = (
    b'data: {"id":"1","object":"chat.completion.chunk","created":1,"model":"main",'
    b'"choices":[{"index":0,"delta":{"content":"word"},"finish_reason":null}]}\n\n'
)
DELTA = b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"word"}}\n\n'


@pytest.fixture
def dispatch(lent, monkeypatch) -> LoadingModel:
    """A model that is loaded after some comments."""
    monkeypatch.setattr("autospec.proxy.relay._FIRST_COMMENT_S", 0.01)
    monkeypatch.setattr("autospec.proxy.relay._COMMENT_S", 0.01)
    model = LoadingModel([lent])
    threading.Timer(0.3, model.loaded.set).start()
    return model


@pytest.fixture
def openai_stream(proxy):
    """Opens a stream with OpenAI's SDK."""
    openai = pytest.importorskip("openai", reason="openai is not installed (extra: clients)")
    with openai.OpenAI(base_url=f"{proxy.base_url}/v1", api_key="none", max_retries=0) as client:
        yield openai, lambda: client.chat.completions.create(model="main", messages=MESSAGES, stream=True)


@pytest.fixture
def anthropic_stream(proxy):
    """Opens a stream with Anthropic's SDK."""
    anthropic = pytest.importorskip("anthropic", reason="anthropic is not installed (extra: clients)")
    with anthropic.Anthropic(base_url=proxy.base_url, api_key="none", max_retries=0) as client:
        yield (
            anthropic,
            lambda: client.messages.create(model="main", messages=MESSAGES, max_tokens=5, stream=True),
        )


def test_openai_skips_comments(openai_stream, backend):
    """The first thing that it gives is the first event."""

    async def behave(asked):
        await asked.send(SSE)
        await asked.chunk(CHUNK)
        await asked.chunk(b"data: [DONE]\n\n")
        await asked.end()

    backend.behaviour = behave
    _, begin = openai_stream
    assert [part.choices[0].delta.content for part in begin()] == ["word"]


def test_anthropic_skips_comments(anthropic_stream, backend):
    """The first thing that it gives is the first event."""

    async def behave(asked):
        await asked.send(SSE)
        await asked.chunk(DELTA)
        await asked.end()

    backend.behaviour = behave
    _, begin = anthropic_stream
    assert [part.delta.text for part in begin()] == ["word"]


@pytest.mark.parametrize("kind", ["openai_stream", "anthropic_stream"])
def test_sdks_raise_what_fails_after_comments(request, dispatch, kind):
    """Status 200 was sent, so the error is an event."""
    dispatch.refusal = LaunchError("Out of memory.")
    sdk, begin = request.getfixturevalue(kind)
    with pytest.raises(sdk.APIError, match=r"Out of memory\."):
        list(begin())
