"""Real clients get the same from a real server through the proxy as without it."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest

from autospec.backends.llama_cpp.embedded import Embedded
from autospec.backends.protocol import LaunchSettings
from autospec.cells import PromptType
from autospec.drafting import OFF
from autospec.errors import BackendMissingError
from autospec.store.database import open_store
from tests.backends.waiting import wait_until
from tests.proxy.harness import LentServer, Loop, OneModel, proxy_over

MODEL = "SmolLM2-Tiny"
MESSAGES = [{"role": "user", "content": "Say a word."}]
# One thread: ggml's threads wait for each other by spinning, which takes forever on a busy machine.
SETTINGS = LaunchSettings(args=("-c", "4096", "-t", "1", "--parallel", "2"), ready_timeout_s=120.0)
CLIENT_TIMEOUT_S = 120.0


@pytest.fixture(scope="module")
def server(lab_models, tmp_path_factory):
    """The embedded server on a model of two layers."""
    try:
        running = Embedded(tmp_path_factory.mktemp("state")).launch(str(lab_models.tiny), OFF, SETTINGS)
    except BackendMissingError as error:
        pytest.skip(str(error))
    yield running
    running.stop()


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """Where samples go."""
    return tmp_path_factory.mktemp("db") / "autospec.db"


@pytest.fixture(scope="module")
def url(server, database) -> Iterator[str]:
    """A proxy in front of it."""
    loop = Loop()
    lent = LentServer(server.base_url, model=MODEL, backend="embedded", build="x1")
    dispatch = OneModel([lent], aliases=("gpt-tiny",))
    with proxy_over(loop, dispatch, database, classify=lambda _d: PromptType.CHAT) as listening:
        yield listening.base_url
    loop.close()


@pytest.fixture
def openai_client(url):
    """OpenAI's SDK."""
    openai = pytest.importorskip("openai", reason="openai is not installed (extra: clients)")
    with openai.OpenAI(
        base_url=f"{url}/v1", api_key="none", timeout=CLIENT_TIMEOUT_S, max_retries=0
    ) as client:
        yield client


@pytest.fixture
def anthropic_client(url):
    """Anthropic's SDK."""
    anthropic = pytest.importorskip("anthropic", reason="anthropic is not installed (extra: clients)")
    with anthropic.Anthropic(base_url=url, api_key="none", timeout=CLIENT_TIMEOUT_S, max_retries=0) as client:
        yield client


def test_openai_chat(openai_client):
    """One answer, with usage; an alias finds the model too."""
    answer = openai_client.chat.completions.create(model="gpt-tiny", messages=MESSAGES, max_tokens=5)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 5


def test_openai_stream_has_the_text_of_the_whole_answer(openai_client):
    """Streamed and not, the same words."""
    asked = {"model": MODEL, "messages": MESSAGES, "max_tokens": 8, "temperature": 0, "seed": 1}
    whole = openai_client.chat.completions.create(**asked).choices[0].message.content
    parts = list(
        openai_client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    assert "".join(p.choices[0].delta.content or "" for p in parts if p.choices) == whole
    assert parts[-1].usage.completion_tokens == 8


def test_openai_raw_headers(openai_client):
    """The proxy's own headers are there for who looks."""
    raw = openai_client.chat.completions.with_raw_response.create(
        model=MODEL, messages=MESSAGES, max_tokens=2, extra_headers={"x-autospec-prompt-type": "qa"}
    )
    assert raw.headers["x-autospec-prompt-type"] == "qa"
    assert raw.headers["x-autospec-drafting"] == "off"


def test_openai_completions(openai_client):
    """The old endpoint, both ways."""
    asked = {"model": MODEL, "prompt": "Once", "max_tokens": 4, "temperature": 0}
    whole = openai_client.completions.create(**asked).choices[0].text
    assert "".join(p.choices[0].text for p in openai_client.completions.create(**asked, stream=True)) == whole


def test_openai_models(openai_client):
    """List and retrieve."""
    assert [m.id for m in openai_client.models.list()] == [MODEL]
    assert openai_client.models.retrieve(MODEL).owned_by == "autospec"


def test_openai_errors(openai_client):
    """The backend's refusal is the backend's; an unknown model is ours and lists what exists."""
    import openai

    with pytest.raises(openai.APIStatusError) as refused:
        openai_client.embeddings.create(model=MODEL, input="x", encoding_format="float")
    assert "embedding" in str(refused.value)
    with pytest.raises(openai.NotFoundError) as unknown:
        openai_client.chat.completions.create(model="gpt-9", messages=MESSAGES)
    assert MODEL in str(unknown.value)
    assert unknown.value.code == "model_not_found"


def test_openai_responses(openai_client):
    """The newer endpoint, both ways."""
    answer = openai_client.responses.create(model=MODEL, input="Say a word.", max_output_tokens=4)
    assert answer.usage.output_tokens == 4
    kinds = [
        e.type
        for e in openai_client.responses.create(model=MODEL, input="Say.", max_output_tokens=4, stream=True)
    ]
    assert kinds[-1] == "response.completed"


def test_anthropic_messages(anthropic_client):
    """One answer, and the same streamed."""
    greedy = {"extra_body": {"temperature": 0}}  # newer SDKs have no such argument
    asked = {"model": MODEL, "messages": MESSAGES, "max_tokens": 6, **greedy}
    answer = anthropic_client.messages.create(**asked)
    assert answer.usage.output_tokens == 6
    with anthropic_client.messages.stream(**asked) as stream:
        text = "".join(stream.text_stream)
    assert text == answer.content[0].text


def test_anthropic_errors_and_models(anthropic_client):
    """An unknown model is Anthropic's own kind of error; the list of models reads."""
    import anthropic

    with pytest.raises(anthropic.NotFoundError) as unknown:
        anthropic_client.messages.create(model="claude-9", messages=MESSAGES, max_tokens=2)
    assert unknown.value.body["error"]["type"] == "not_found_error"
    assert [m.id for m in anthropic_client.models.list()] == [MODEL]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_sees_the_same_stream_as_without_the_proxy(url, server):
    """`curl -N` on both: event for event equal, but for ids, clocks and whatever the cache saved."""

    def stream(base: str) -> list[object]:
        body = {"messages": MESSAGES, "max_tokens": 6, "temperature": 0, "seed": 1, "stream": True}
        done = subprocess.run(
            ["curl", "-sN", f"{base}/v1/chat/completions", "-d", json.dumps({"model": MODEL, **body})],
            capture_output=True,
            text=True,
            check=True,
            timeout=CLIENT_TIMEOUT_S,
        )
        *events, last = [e.removeprefix("data: ") for e in done.stdout.split("\n\n") if e]
        assert last == "[DONE]"
        return [_comparable(json.loads(e)) for e in events]

    direct = stream(server.base_url)
    assert len(direct) > 6
    assert stream(url) == direct


def _comparable(event: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in event.items() if key not in ("id", "created", "timings")}


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/completion", {"prompt": "a", "n_predict": 2, "temperature": 0}, "content"),
        ("/infill", {"input_prefix": "a", "input_suffix": "b", "n_predict": 2}, None),
        ("/tokenize", {"content": "a b"}, "tokens"),
        ("/apply-template", {"messages": MESSAGES}, "prompt"),
        ("/v1/messages/count_tokens", {"model": MODEL, "messages": MESSAGES}, "input_tokens"),
    ],
)
def test_llama_cpps_own_paths_answer_as_without_the_proxy(url, server, path, body, field):
    """Same status, and the same answer where it has no clock in it."""
    direct, through = (
        httpx.post(base + path, json=body, trust_env=False, timeout=60) for base in (server.base_url, url)
    )
    assert through.status_code == direct.status_code
    if field is not None:
        assert through.json()[field] == direct.json()[field]


@pytest.mark.parametrize("path", ["/props", "/slots", "/health", "/no/such/path", "/"])
def test_reading_paths_answer_as_without_the_proxy(url, server, path):
    """Also the web page, and also where there is nothing."""
    direct, through = (httpx.get(base + path, trust_env=False, timeout=60) for base in (server.base_url, url))
    assert through.status_code == direct.status_code
    assert through.headers.get("content-type") == direct.headers.get("content-type")


def test_samples_of_live_traffic_are_in_the_store(url, database):
    """Numbers by the server's own clock, from a stream and from a whole answer."""
    store = open_store(f"sqlite:///{database}")
    since = max((s.at for s in store.samples(since=0)), default=0.0)
    for stream in (False, True):
        body = {"model": MODEL, "messages": MESSAGES, "max_tokens": 7, "stream": stream}
        httpx.post(f"{url}/v1/chat/completions", json=body, trust_env=False, timeout=60)
    wait_until(
        lambda: len([s for s in store.samples(since=since, build="x1") if s.predicted_tokens == 7]) >= 2
    )
    newest = store.samples(since=since, model=MODEL, prompt_type=PromptType.CHAT, drafting=OFF)[-1]
    assert newest.predicted_ms > 0
    assert (newest.drafted, newest.accepted) == (0, 0)
    metrics = httpx.get(f"{url}/autospec/metrics", trust_env=False).text
    assert (
        f'autospec_tokens_total{{drafting="off",kind="predicted",model="{MODEL}",prompt_type="chat"}}'
        in metrics
    )
    store.close()


def _in_a_child(program: str, url: str, **environ: str) -> str:
    """Run a client in its own interpreter: they warn at import, and read the environment."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, url],
        capture_output=True,
        text=True,
        check=False,
        timeout=CLIENT_TIMEOUT_S,
        env={**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", **environ},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(
    importlib.util.find_spec("litellm") is None, reason="litellm is not installed (extra: clients)"
)
def test_litellm(url):
    """As a client of an OpenAI-compatible server, whole and streamed."""
    program = f"""
import sys, litellm
asked = dict(model="openai/{MODEL}", api_base=sys.argv[1] + "/v1", api_key="none", messages={MESSAGES!r},
             max_tokens=5, temperature=0)
whole = litellm.completion(**asked).choices[0].message.content
parts = "".join(p.choices[0].delta.content or "" for p in litellm.completion(**asked, stream=True))
assert whole == parts, (whole, parts)
print("same")
"""
    assert _in_a_child(program, url).strip().endswith("same")


@pytest.mark.skipif(importlib.util.find_spec("llm") is None, reason="llm is not installed (extra: clients)")
def test_llm(url, tmp_path):
    """Simon Willison's llm with an OpenAI-compatible model in its configuration."""
    config = f"- model_id: tiny\n  model_name: {MODEL}\n  api_base: {url}/v1\n  api_key_name: none\n"
    (tmp_path / "extra-openai-models.yaml").write_text(config)
    program = """
import sys
from llm.cli import cli
cli(["-m", "tiny", "Say a word.", "-o", "max_tokens", "5", "--no-log", "--key", "none"])
"""
    assert _in_a_child(program, url, LLM_USER_PATH=str(tmp_path)).strip()
