"""The dashboard at ``/autospec/``: its files, its headers, the documents that it reads, and that reading them is no use."""

from __future__ import annotations

import json
import re
from pathlib import Path

import httpx
import pytest

from autospec.cells import PromptType
from autospec.drafting import OFF
from autospec.errors import NothingKnownError
from autospec.measure.measurements import Sample
from autospec.proxy.access import Access
from autospec.proxy.app import Rules
from autospec.proxy.dashboard import PAGE_PATHS, LiveFigures
from autospec.proxy.serve import listen
from autospec.settings import parse_duration
from tests.backends.waiting import wait_until
from tests.proxy.harness import OneModel, no_type, proxy_over
from tests.proxy.stand_in import SSE
from tests.serving.scene import LOOKUP, Scene, recommend, wanted

WEB = Path(__file__).parents[2] / "autospec" / "proxy" / "web"
# What the page asks for while it is open; the stream of events beside them.
READ = ("v1/status", "v1/plan", "v1/live", "v1/daemon", "../v1/models")
DOCUMENTS = (
    "/autospec/v1/status",
    "/autospec/v1/plan",
    "/autospec/v1/live",
    "/autospec/v1/daemon",
    "/v1/models",
)


def get(proxy, path: str, **headers: str) -> httpx.Response:
    """One GET; redirects are not followed."""
    return httpx.get(proxy.base_url + path, trust_env=False, timeout=20, headers=headers)


@pytest.mark.parametrize("path", sorted(PAGE_PATHS - {"/autospec"}))
def test_the_page_may_load_nothing_but_its_own_files(proxy, path):
    """No script, style or frame of anybody else, and no other guess at what a file is."""
    answer = get(proxy, path)
    assert answer.status_code == 200
    assert len(answer.content) > 100
    assert answer.headers["content-security-policy"].startswith("default-src 'self';")
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"


def test_the_address_without_its_slash_leads_to_the_page(proxy):
    """The location is relative: another proxy in front may add a prefix."""
    answer = get(proxy, "/autospec")
    assert (answer.status_code, answer.headers["location"]) == (302, "autospec/")


def test_the_page_names_only_files_that_are_served():
    """Every src and href is relative and leads to a file of the page, or to a document."""
    named = re.findall(r'(?:src|href)="([^"]+)"', (WEB / "index.html").read_text("utf-8"))
    assert len(named) > 5
    documents = {"v1/status", "v1/plan", "v1/live", "v1/daemon", "metrics"}
    for link in named:
        assert link.startswith("#") or link in documents or f"/autospec/{link}" in PAGE_PATHS, link
    assert {f"/autospec/web/{file.name}" for file in WEB.iterdir()} | {
        "/autospec/",
        "/autospec",
    } == PAGE_PATHS | {"/autospec/web/index.html"}


def test_no_data_becomes_markup():
    """The policy forbids inline code; the script has no way to make markup out of a model's name."""
    page, script, style = (
        (WEB / name).read_text("utf-8") for name in ("index.html", "dashboard.js", "dashboard.css")
    )
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=|javascript:", page)
    made = r"innerHTML|outerHTML|insertAdjacentHTML|createContextualFragment|document\.write|\beval\(|new Function|srcdoc"
    assert not re.search(made, script)
    assert not re.search(r"@import|url\(", style)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page + script + style)


def test_the_page_asks_for_what_is_tested_here():
    """So that `DOCUMENTS` below is all of it."""
    script = (WEB / "dashboard.js").read_text("utf-8")
    assert set(re.findall(r'read\("([^"]+)"\)', script)) == set(READ)
    assert re.findall(r'ask\("([^"]+)"', script) == ["v1/events"]


def test_with_a_key_the_files_pass_and_the_facts_do_not(loop, dispatch, storage):
    """A browser cannot send a key with the first request; the page asks the person for it."""
    with proxy_over(loop, dispatch, storage, rules=Rules(Access(api_key="secret"))) as proxy:
        assert {get(proxy, path).status_code for path in PAGE_PATHS} == {200, 302}
        assert {get(proxy, path).status_code for path in DOCUMENTS} == {401}
        with_key = {get(proxy, path, Authorization="Bearer secret").status_code for path in DOCUMENTS}
        assert with_key == {200}
        assert httpx.post(proxy.base_url + "/autospec/", trust_env=False).status_code == 401


@pytest.mark.parametrize("path", ["/favicon.ico", "/apple-touch-icon.png", "/robots.txt"])
def test_what_browsers_ask_for_by_themselves_starts_no_model(proxy, dispatch, path):
    """A page of the proxy's is open, and no model runs."""
    dispatch.running = False
    assert get(proxy, path).status_code == 503
    assert dispatch.wanted == []


def test_an_open_page_keeps_no_model_loaded_and_is_no_traffic(loop, storage):
    """A model is unloaded while the page reads its documents and its events, and nothing was counted."""
    scene = Scene(stored=[recommend(LOOKUP)])
    opened = scene.opened()
    supervisor = loop.run(opened.__aenter__())

    async def use() -> None:
        (await supervisor.lease(wanted())).give_back()

    def look(proxy) -> dict:
        answers = [get(proxy, path) for path in DOCUMENTS]
        assert [answer.status_code for answer in answers] == [200] * len(DOCUMENTS)
        return answers[0].json()

    with proxy_over(loop, supervisor, storage) as proxy:
        assert look(proxy)["busy"]["requests"] == 0
        assert not scene.backend.asked
        loop.run(use())
        wait_until(lambda: [s["state"] for s in look(proxy)["launches"]] == ["ready"])
        with httpx.stream(
            "GET", proxy.base_url + "/autospec/v1/events", trust_env=False, timeout=20
        ) as events:
            next(events.iter_lines())
            scene.clock.now_s += parse_duration(scene.settings.idle_unload) + 1
            loop.run(_kick(supervisor))
            wait_until(lambda: look(proxy)["launches"] == [])
        status = look(proxy)
        assert status["busy"]["requests"] == 1
        assert status["busy"]["now"] is False
        assert status["proxy"]["in_flight"] == 0
    loop.run(opened.__aexit__(None, None, None))


async def _kick(supervisor) -> None:
    supervisor._reconciler._changed()


def test_the_plan_says_what_was_proven(loop, storage):
    """The page holds live figures against them."""
    evidence = {"decode_drafting_tps": 41.5, "decode_baseline_tps": "no number"}
    scene = Scene(stored=[recommend(LOOKUP, **evidence)])
    opened = scene.opened()
    supervisor = loop.run(opened.__aenter__())

    async def use() -> None:
        (await supervisor.lease(wanted())).give_back()

    with proxy_over(loop, supervisor, storage) as proxy:
        loop.run(use())
        wait_until(lambda: get(proxy, "/autospec/v1/plan").json()["models"])
        (found,) = get(proxy, "/autospec/v1/plan").json()["models"][0]["recommendations"]
        assert found["proof"] == {"generation_tps": 41.5, "generation_off_tps": None, "acceptance": 0.7}
        assert found["speedup"] == 2.0
    loop.run(opened.__aexit__(None, None, None))


def test_an_answer_shows_in_the_live_figures(proxy, backend):
    """Speed and acceptance of what was served, as soon as it has ended."""
    timings = {
        "prompt_n": 5,
        "prompt_ms": 10.0,
        "predicted_n": 20,
        "predicted_ms": 500.0,
        "draft_n": 10,
        "draft_n_accepted": 4,
    }

    async def behave(asked):
        await asked.send(SSE)
        await asked.chunk(b"data: " + json.dumps({"timings": timings}).encode() + b"\n\ndata: [DONE]\n\n")
        await asked.end()

    backend.behaviour = behave
    assert get(proxy, "/autospec/v1/live").json()["live"] == []
    httpx.post(
        proxy.base_url + "/v1/chat/completions", json={"model": "main", "messages": []}, trust_env=False
    )
    wait_until(lambda: get(proxy, "/autospec/v1/live").json()["live"])
    (row,) = get(proxy, "/autospec/v1/live").json()["live"]
    assert (row["model"], row["label"], row["answers"], row["generation_tps"]) == ("main", "off", 1, 40.0)
    assert row["acceptance"] is None  # an answer without drafting has none, whatever the server says


def sample(speed_tps: float, **changes) -> Sample:
    """An answer of twenty tokens."""
    facts = {"drafting": LOOKUP, "drafted": 10, "accepted": 5} | changes
    return Sample(
        1.0, facts.pop("model", "main"), "x", "1", PromptType.CODING, 5, 20, 1.0, 20_000 / speed_tps, **facts
    )


def test_live_figures_are_of_the_last_answers():
    """The median of speed follows a change, one slow answer does not move it, and a short one does not count."""
    live = LiveFigures()
    for speed_tps in [10.0] * 60 + [30.0] * 50 + [1.0]:
        live.add(sample(speed_tps))
    live.add(Sample(2.0, "main", "x", "1", PromptType.CODING, 5, 1, 1.0, 1.0, LOOKUP, 0, 0))
    (row,) = live.to_json()["live"]
    assert row["generation_tps"] == 30.0
    assert row["answers"] == 112
    assert len(row["recent_tps"]) == 30
    assert row["acceptance"] == 0.5


def test_live_figures_do_not_grow_for_ever():
    """The kinds that were used least recently are forgotten."""
    live = LiveFigures()
    for number in range(500):
        live.add(sample(10.0, model=f"m{number}"))
        live.add(sample(10.0, model="often", drafting=OFF, drafted=None, accepted=None))
    rows = live.to_json()["live"]
    assert len(rows) == 240
    assert rows[0]["model"] == "often"
    assert rows[0]["answers"] == 500
    assert rows[1]["model"] == "m499"


def test_the_daemons_status_is_passed_on(loop, lent, storage):
    """And that none runs is an answer: a page asks every five seconds, and errors are counted."""
    asked = []

    def ask(message):
        asked.append(message)
        if len(asked) == 1:
            raise NothingKnownError("No daemon is running.", "Start it.")
        return {"state": "resting", "why": "a request is being served"}

    context = listen(
        OneModel([lent]), Rules(), host="127.0.0.1", port=0, storage=f"sqlite:///{storage}", classify=no_type, grace_s=1.0,
        ask_daemon=ask,
    )  # fmt: skip
    proxy = loop.run(context.__aenter__())
    assert get(proxy, "/autospec/v1/daemon").json() == {
        "schema": 1,
        "daemon": None,
        "why": "No daemon is running. Start it.",
    }
    assert get(proxy, "/autospec/v1/daemon").json()["daemon"]["why"] == "a request is being served"
    assert asked == [{"ask": "status"}] * 2
    refused = "autospec_refused_requests_total{"
    assert refused not in get(proxy, "/autospec/metrics").text
    loop.run(context.__aexit__(None, None, None))
