"""What the proxy says over HTTP: every document, every header of its own, the names in the metrics."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from autospec.errors import LaunchError, OverloadedError
from autospec.serving.dispatch import Limit, WhyOff
from tests.golden.conftest import Place, environment, make_known
from tests.golden.golden import check_json, normalized
from tests.proxy.harness import LentServer, Loop, OneModel, proxy_over
from tests.proxy.stand_in import SSE, Asked, StandIn

KEY = {"authorization": "Bearer golden"}
CHAT = {"model": "main", "messages": [{"role": "user", "content": "Write a function in Python."}]}
TIMEOUT_S = 60.0
# The proxy's answers in the order in which they are asked for: later ones tell of what earlier ones started.
REQUESTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "models": ("GET", "/v1/models", {}),
    "model": ("GET", "/v1/models/main", {}),
    "status-before": ("GET", "/autospec/v1/status", {}),
    "plan-before": ("GET", "/autospec/v1/plan", {}),
    "health-before": ("GET", "/health", {}),
    "chat": ("POST", "/v1/chat/completions", {"json": CHAT, "headers": {"x-autospec-prompt-type": "coding"}}),
    "chat-off": ("POST", "/v1/chat/completions", {"json": CHAT, "headers": {"x-autospec-drafting": "off"}}),
    "messages": ("POST", "/v1/messages", {"json": {**CHAT, "max_tokens": 8}}),
    "status": ("GET", "/autospec/v1/status", {}),
    "plan": ("GET", "/autospec/v1/plan", {}),
    "models-running": ("GET", "/v1/models", {}),
    "recommendations": ("GET", "/autospec/v1/recommendations?model=main&prompt_type=coding&backend=llama-server", {}),
    "preflight": (
        "OPTIONS",
        "/v1/chat/completions",
        {"headers": {"origin": "http://localhost:3000", "access-control-request-method": "POST",
                     "access-control-request-headers": "content-type"}},
    ),
    "page": ("GET", "/v1/models/nosuch", {"headers": {"origin": "http://localhost:3000"}}),
    "error-key": ("GET", "/v1/models", {"headers": {"authorization": "Bearer wrong"}}),
    "key-as-anthropic-sends-it": (
        "GET",
        "/v1/models/main",
        {"headers": {"authorization": "", "x-api-key": "golden"}},
    ),
    "error-key-anthropic": ("POST", "/v1/messages", {"json": CHAT, "headers": {"authorization": "Bearer wrong"}}),
    "error-origin": ("GET", "/v1/models", {"headers": {"origin": "https://page.example"}}),
    "error-model": ("POST", "/v1/chat/completions", {"json": {**CHAT, "model": "nosuch"}}),
    "error-model-anthropic": ("POST", "/v1/messages", {"json": {**CHAT, "model": "nosuch"}}),
    "error-json": ("POST", "/v1/chat/completions", {"content": b"{", "headers": {"content-type": "application/json"}}),
    "error-large": ("POST", "/v1/chat/completions", {"json": {**CHAT, "x": "x" * 30_000}}),
    "error-large-anthropic": ("POST", "/v1/messages", {"json": {**CHAT, "x": "x" * 30_000}}),
    "error-path": ("GET", "/autospec/v1/nosuch", {}),
    "error-method": ("POST", "/autospec/v1/plan", {}),
    "error-parameter": ("GET", "/autospec/v1/recommendations?modell=main", {}),
    "error-prompt-type": ("GET", "/autospec/v1/recommendations?prompt_type=poem", {}),
    "error-unknown": ("GET", "/autospec/v1/recommendations?model=nosuch", {}),
    "live": ("GET", "/autospec/v1/live", {}),
    "daemon": ("GET", "/autospec/v1/daemon", {}),
    "error-tune": ("POST", "/autospec/v1/tune", {"json": {"model": "main"}}),
    "error-action": ("POST", "/autospec/v1/unload", {"content": b"model=main", "headers": {"content-type": "text/plain"}}),
    "drafting": ("POST", "/autospec/v1/drafting", {"json": {"model": "main", "drafting": "off"}}),
    "error-header": ("POST", "/v1/chat/completions", {"json": CHAT, "headers": {"x-autospec-prompt-type": "poem"}}),
}  # fmt: skip
# Headers whose value is said by the machine or by aiohttp.
_ANY_VALUE = ("date", "server", "content-length")


@contextmanager
def serving(place: Place) -> Iterator[str]:
    """The proxy as a program; its address."""
    (place.home / "config.toml").write_text(
        'backend = "llama-server"\nserver_args = ["-ngl", "99"]\nmemory_limit = 8.0\nrequest_limit_mib = 0.02\n',
        encoding="utf-8",
    )
    with subprocess.Popen(
        [sys.executable, "-m", "autospec", "proxy", "--port", "0", "--json"],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(place) | {"AUTOSPEC_PROXY_API_KEY": "golden"},
        cwd=place.folder,
    ) as program:
        try:
            text = ""
            while not text.endswith("}\n"):
                line = program.stdout.readline()
                assert line, "the proxy ended"
                text += line
            yield text
        finally:
            program.send_signal(signal.SIGTERM)


@pytest.fixture(scope="module")
def said(tmp_path_factory, model_files, server_program, this_machine) -> dict[str, Any]:
    """Everything that one proxy answers, by the names of the copies."""
    folder = tmp_path_factory.mktemp("proxy")
    place = Place(folder, folder / "home", model_files, server_program)
    make_known(place, this_machine)
    answers: dict[str, Any] = {}
    with serving(place) as text:
        answers["program"] = normalized(json.loads(text), place.names)
        url = json.loads(text)["base_url"]
        with httpx.Client(base_url=url, trust_env=False, timeout=TIMEOUT_S) as client:
            for name, (method, path, more) in REQUESTS.items():
                answer = client.request(method, path, **{**more, "headers": KEY | more.get("headers", {})})
                answers[name] = _told(answer, place)
            # Long enough to tell a speed.
            client.post(
                "/v1/chat/completions", json={**CHAT, "max_tokens": 16}, headers=KEY
            ).raise_for_status()
            answers["metrics"] = _metrics(client.get("/autospec/metrics", headers=KEY))
            with client.stream("GET", "/autospec/v1/events", headers=KEY) as events:
                answers["events"] = _first_event(events, place)
    return answers


def _told(answer: httpx.Response, place: Place) -> dict[str, Any]:
    headers = {
        name: f"<{name}>" if name in _ANY_VALUE else normalized(value, place.names)
        for name, value in answer.headers.items()
    }
    body = normalized(json.loads(answer.content) if answer.content else None, place.names)
    return {"status": answer.status_code, "headers": headers, "body": _without_timing(body)}


def _without_timing(body: Any) -> Any:
    """Without what depends on how fast things went: whether the launch with drafting off is still there, or ends."""
    if not isinstance(body, dict):
        return body
    if "queue" in body:
        body["launches"] = [row for row in body["launches"] if row["drafting"]["mode"] != "off"]
        for row in body["launches"]:
            row["state"] = "<state>"
    for part in body.get("models", ()):
        for key in ("launches", "starts", "stops"):
            assert isinstance(part[key], list)
            part[key] = "<draftings>"
        part["memory_bytes"] = "<number>"
    if "models" in body:
        body["memory_bytes"] = "<number>"
    for row in body.get("data", ()):
        row["autospec"]["running"] = [d for d in row["autospec"]["running"] if d["mode"] != "off"]
    return body


def _first_event(answer: httpx.Response, place: Place) -> dict[str, Any]:
    lines = answer.iter_lines()
    event = next(lines)
    data = json.loads(next(lines).removeprefix("data: "))
    data["changed"] = sorted(data["changed"], key=lambda r: (r["model"], r["prompt_type"]))
    return {
        "content-type": answer.headers["content-type"],
        "cache-control": answer.headers["cache-control"],
        "event": event,
        "data": normalized(data, place.names),
    }


def _metrics(answer: httpx.Response) -> dict[str, Any]:
    """Names with types, and each series with the names of its labels; of `le` and `kind` the values, too."""
    # prometheus_client's own, in some versions and not in others.
    text = "\n".join(
        line for line in answer.text.splitlines() if not re.match(r"(# \w+ )?\w+_created\b", line)
    )
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    series: dict[str, dict[str, set[str]]] = {}
    for name, labels in re.findall(r"^([a-z]\w*)(?:\{(.*)\})? \S+$", text, re.MULTILINE):
        found = series.setdefault(name, {})
        for label, value in re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', labels):
            found.setdefault(label, set()).add(value)
    return {
        "content-type": answer.headers["content-type"].partition(";")[0],
        "types": types,
        "series": {
            name: {
                label: sorted(values) if label in ("le", "kind", "code") else "<text>"
                for label, values in found.items()
            }
            for name, found in series.items()
        },
    }


@pytest.mark.parametrize("name", ["program", *REQUESTS, "metrics", "events"])
def test_the_proxy_says_what_it_said(said, name):
    """Status, headers and document of one answer."""
    check_json(f"proxy/{name}.json", said[name])


@pytest.fixture
def loop() -> Iterator[Loop]:
    """An event loop in a thread."""
    running = Loop()
    yield running
    running.close()


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
def test_what_goes_wrong_behind_the_proxy(loop, tmp_path, path):
    """A full queue, a launch that failed, a server that is gone, a stream that breaks: status, headers, shape."""
    said: dict[str, Any] = {}
    shapes = "anthropic" if path == "/v1/messages" else "openai"

    async def breaks(asked: Asked) -> None:
        await asked.send(SSE)
        await asked.chunk(b"data: {}\n\n")

    backend = loop.run(StandIn(breaks).start())
    facts: dict[str, Any] = {"limit": Limit.CONTEXT, "why_else": WhyOff.LIMIT}
    dispatch = OneModel([LentServer(backend.base_url, likely=frozenset({None}), **facts)])
    with proxy_over(loop, dispatch, tmp_path / "autospec.db") as proxy:
        for name, refusal in {
            "overloaded": OverloadedError("Full."),
            "launch-failed": LaunchError("No."),
            "broken-stream": None,
        }.items():
            dispatch.refusal = refusal
            with httpx.stream(
                "POST", proxy.base_url + path, json=CHAT, trust_env=False, timeout=TIMEOUT_S
            ) as answer:
                said[name] = _broken(answer)
    loop.run(backend.stop())
    check_json(f"proxy/behind-{shapes}.json", said)


def _broken(answer: httpx.Response) -> dict[str, Any]:
    text = ""
    with contextlib.suppress(httpx.RemoteProtocolError):
        for part in answer.iter_text():
            text += part
    body: Any
    if answer.headers["content-type"].startswith("text/event-stream"):
        body = [
            normalized(json.loads(line.removeprefix("data: ")), {}) if line.startswith("data: ") else line
            for line in text.splitlines()
            if line
        ]
    else:
        body = normalized(json.loads(text), {})
    headers = {name: f"<{name}>" if name in _ANY_VALUE else value for name, value in answer.headers.items()}
    return {"status": answer.status_code, "headers": headers, "body": body}
