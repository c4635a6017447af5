"""The dashboard's actions: who may, what they say, and what they do."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from autospec.errors import NothingKnownError, OverloadedError
from autospec.proxy.access import Access, refuse_action
from autospec.proxy.app import Rules
from autospec.proxy.serve import listen
from tests.proxy.harness import OneModel, no_type, proxy_over

JSON = {"Content-Type": "application/json"}
HOST = "127.0.0.1:8686"


@dataclass
class Controlled(OneModel):
    """A `Dispatch` that keeps what it was told."""

    told: list[tuple[Any, ...]] = field(default_factory=list)
    servers_running: int = 1

    async def switch_drafting(self, name: str, *, off: bool) -> str:
        """Kept."""
        self.told.append(("drafting", name, off))
        return name

    async def unload(self, name: str) -> tuple[str, int]:
        """Kept, or refused."""
        self.told.append(("unload", name))
        if self.refusal is not None:
            raise self.refusal
        return name, self.servers_running


@pytest.fixture
def dispatch(lent) -> Controlled:
    """What is controlled."""
    return Controlled([lent])


def post(proxy, action: str, body: Any, **headers: str) -> httpx.Response:
    """One POST of JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.post(
        f"{proxy.base_url}/autospec/v1/{action}", content=content, headers={**JSON, **named}, trust_env=False
    )


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (JSON, None),  # curl
        ({"Content-Type": "application/json; charset=utf-8"}, None),
        ({**JSON, "Origin": f"http://{HOST}", "Sec-Fetch-Site": "same-origin"}, None),
        (
            {**JSON, "Origin": "https://admin.example.org", "Sec-Fetch-Site": "cross-site"},
            None,
        ),  # the settings name it
        ({**JSON, "Sec-Fetch-Site": "none"}, None),
        # A form of another page: the browser sends it without asking first.
        (
            {"Content-Type": "text/plain", "Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"},
            415,
        ),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content-Type": "multipart/form-data; boundary=x"}, 415),
        ({"Content-Type": "text/plain"}, 415),  # an old browser that says nothing else
        ({}, 415),
        # Other pages of this machine may use the API, and no action.
        ({**JSON, "Origin": "http://localhost:3000", "Sec-Fetch-Site": "same-site"}, 403),
        ({**JSON, "Origin": "http://localhost:3000"}, 403),
        ({**JSON, "Origin": "http://127.0.0.1:9999"}, 403),
        ({**JSON, "Origin": "tauri://localhost"}, 403),
        ({**JSON, "Origin": "null"}, 403),
        ({**JSON, "Sec-Fetch-Site": "same-site"}, 403),
        ({**JSON, "Sec-Fetch-Site": "cross-site"}, 403),
    ],
)
def test_who_may_act(headers, status):
    """The proxy's own page, pages in the settings, and programs that are no browser."""
    access = Access(machine=frozenset(), origins=frozenset({"https://admin.example.org"}))
    problem = refuse_action(access, {"Host": HOST, **headers})
    assert (problem.status if problem else None) == status


FORMS = (
    {"Content-Type": "application/x-www-form-urlencoded", "Origin": "https://evil.example"},
    {"Content-Type": "text/plain", "Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"},
    {"Content-Type": "text/plain", "Sec-Fetch-Site": "cross-site"},
    {"Content-Type": "text/plain", "Origin": "http://localhost:3000", "Sec-Fetch-Site": "same-site"},
    {"Content-Type": "text/plain"},
    {"Content-Type": "application/json", "Origin": "http://localhost:3000"},
)


def test_a_form_of_another_site_does_nothing(proxy, dispatch):
    """Whatever it posts, in whatever encoding a form has: refused, and nothing was told."""
    body = json.dumps({"model": "main", "drafting": "off"}).encode()
    with httpx.Client(base_url=f"{proxy.base_url}/autospec/v1", trust_env=False) as client:
        for action, headers in itertools.product(("drafting", "tune", "unload"), FORMS):
            answer = client.post(f"/{action}", content=body, headers=headers)
            assert answer.status_code in (403, 415), (action, headers)
    assert dispatch.told == []


def test_a_preflight_of_another_site_is_refused(proxy):
    """So that its fetch with JSON is never sent."""
    asks = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    answer = httpx.request("OPTIONS", f"{proxy.base_url}/autospec/v1/unload", headers=asks, trust_env=False)
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers


def test_the_key_is_asked_for(loop, dispatch, storage):
    """The same rules as for the API."""
    with proxy_over(loop, dispatch, storage, rules=Rules(Access(api_key="secret"))) as proxy:
        assert post(proxy, "unload", {"model": "main"}).status_code == 401
        assert post(proxy, "unload", {"model": "main"}, Authorization="Bearer secret").status_code == 200
    assert dispatch.told == [("unload", "main")]


def test_drafting_is_switched(proxy, dispatch):
    """Both ways, and each answer says in a sentence what holds now."""
    off = post(proxy, "drafting", {"model": "main", "drafting": "off"}).json()
    assert off == {
        "schema": 1,
        "model": "main",
        "drafting": "off",
        "said": "Drafting is off for main until it is switched on again.",
    }
    assert (
        "recommended drafting"
        in post(proxy, "drafting", {"model": "main", "drafting": "recommended"}).json()["said"]
    )
    assert dispatch.told == [("drafting", "main", True), ("drafting", "main", False)]


def test_unloading(proxy, dispatch):
    """One that does not run is told so; one whose requests wait is refused and may be tried again."""
    assert "being unloaded" in post(proxy, "unload", {"model": "main"}).json()["said"]
    dispatch.servers_running = 0
    assert post(proxy, "unload", {"model": "main"}).json()["said"] == "main is not running."
    dispatch.refusal = OverloadedError("2 requests for main wait for a server.", "Try again.")
    refused = post(proxy, "unload", {"model": "main"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "in_use")


MISTAKES: tuple[tuple[str, Any, int, str], ...] = (
    ("drafting", {"model": "main", "drafting": "on"}, 400, "off or recommended"),
    ("drafting", {"model": "main"}, 400, "`drafting`"),
    ("unload", {}, 400, "`model`"),
    ("unload", {"model": " "}, 400, "`model`"),
    ("unload", {"model": 5}, 400, "`model`"),
    ("unload", ["main"], 400, "object"),
    ("unload", b"{", 400, "object"),
    ("unload", b"", 400, "object"),
    ("unload", b"[" * 9000, 400, "object"),
    ("unload", b"\xff\xfe", 400, "object"),
    ("unload", b" " * 20_000, 413, "16384 bytes"),
    ("unload", {"model": "x" * 5000}, 404, "characters"),
    ("tune", {"model": "other"}, 404, "no model"),
)


def test_what_is_no_action(proxy, dispatch):
    """A sentence for each mistake, and nothing was told."""
    with httpx.Client(base_url=f"{proxy.base_url}/autospec/v1", headers=JSON, trust_env=False) as client:
        for action, body, status, words in MISTAKES:
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            answer = client.post(f"/{action}", content=content)
            assert answer.status_code == status, (action, body)
            assert words in answer.json()["error"]["message"]
    assert dispatch.told == []


def test_reading_does_nothing(proxy, dispatch):
    """A link, an image or a crawler sends a GET."""
    for action in ("drafting", "tune", "unload"):
        answer = httpx.get(f"{proxy.base_url}/autospec/v1/{action}", trust_env=False)
        assert answer.status_code == 405
        assert "POST" in answer.json()["error"]["message"]
    assert dispatch.told == []


@pytest.fixture
def asked() -> list[Any]:
    """What the daemon was asked, after what it answers."""
    return [{"event": "asked", "model": "main", "why": "it looks"}]


@pytest.fixture
def with_daemon(loop, dispatch, storage, asked):
    """A proxy whose daemon answers with the first entry of `asked`."""

    def ask(message: dict[str, Any]) -> dict[str, Any]:
        asked.append(message)
        if isinstance(asked[0], Exception):
            raise asked[0]
        return asked[0]

    context = listen(
        dispatch, Rules(), host="127.0.0.1", port=0, storage=f"sqlite:///{storage}", classify=no_type, grace_s=1.0,
        ask_daemon=ask,
    )  # fmt: skip
    yield loop.run(context.__aenter__())
    loop.run(context.__aexit__(None, None, None))


def test_the_daemon_is_asked_to_tune(with_daemon, asked):
    """With the model's name in the catalogue, however the person wrote it; its answer is passed on."""
    answer = post(with_daemon, "tune", {"model": "MAIN"})
    assert (
        answer.json()["said"] == "The daemon measures main next: it looks. A request to the proxy stops it."
    )
    assert asked[1:] == [{"ask": "tune", "model": "main"}]


def test_without_a_daemon_the_page_says_so(with_daemon, asked):
    """404 with the sentence that the command line has."""
    asked[0] = NothingKnownError("No daemon is running for /x.", "Start it with `autospec daemon`.")
    answer = post(with_daemon, "tune", {"model": "main"})
    assert answer.status_code == 404
    assert "Start it with `autospec daemon`." in answer.json()["error"]["message"]


def test_a_daemon_that_does_not_know_the_question(with_daemon, asked):
    """An older version answers nothing, and the link closes; a newer one may answer something else."""
    asked[0] = {"event": "tuning"}
    assert post(with_daemon, "tune", {"model": "main"}).json()["error"]["code"] == "daemon_too_old"
