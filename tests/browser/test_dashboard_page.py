"""The dashboard in a real browser, over a real supervisor whose servers are switched by the test."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from autospec.cells import PromptType
from autospec.drafting import OFF
from autospec.errors import NothingKnownError
from autospec.proxy.access import Access
from autospec.proxy.app import Rules
from tests.browser.stage import EVIL, RESTING, WORK, Stage
from tests.serving.scene import LOOKUP, LOOKUP_2, recommend

pytestmark = pytest.mark.real


def busy(stage: Stage) -> None:
    """A model in use with live figures, recommendations, and one answer in progress."""
    stage.use(times=3)
    stage.use(kind=PromptType.CHAT)
    stage.live([51.0, 53.0, 49.0, 52.5, 50.0, 54.0, 47.0, 52.0])
    stage.live([21.0, 20.0, 22.0, 19.5], kind=PromptType.CHAT, drafting=OFF)
    stage.store(*(entry.recommendation for entry in stage.scene.stored))


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_can_be_read_at_every_width(stage, page, axe, dark):
    """On a phone, a tablet and a screen: nothing to scroll sideways, nothing that axe-core objects to, no markup from a name."""
    busy(stage)
    lease = stage.hold()
    for width, height in ((360, 740), (768, 1024), (1440, 900)):
        if width == 360:
            page.open(stage.url, width=width, height=height, dark=dark)
            page.wait_for("Connected", "#connection")
            page.wait_for("1 with drafting, 1 off", "#recommendations")
            page.script("document.querySelectorAll('details').forEach(d => { d.open = true; })")
            page.wait_for("tok/s", "#requests")
        page.size(width, height)
        wide = page.script(
            "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        assert wide == 0, f"{wide} pixels too wide at {width}"
        assert page.problems(axe) == []
        page.picture(f"dashboard-{width}-{'dark' if dark else 'light'}")
    text = page.text()
    for words in (
        *(
            "alpha-1b",
            LOOKUP.label,
            "beta-1b",
            EVIL.name,
            "1 request",
            "Aim of drafting\nspeed",
            "52.0 tok/s in the proof",
            "62 %, 70 % in the proof",
        ),
        *("its recommendation is stale: the build changed", "on mains power", "×2.00"),
    ):
        assert words in text, words
    assert page.driver.title == "autospec"
    stage.give_back(lease)


def test_it_shows_a_switch_while_it_happens(stage, page):
    """A server starts beside the old one, which ends after its answer; a screen reader is told each change once."""
    stage.use()
    page.open(stage.url)
    page.wait_for("ready", "#models")
    lease = stage.hold()
    stage.scene.backend.hold.clear()
    stage.scene.learn(recommend(LOOKUP_2, speedup=3.0))
    stage.loop.run(stage.supervisor.refresh())
    stage.use()
    page.wait_for("starting", "#models")
    page.wait_for(f"{LOOKUP_2.label}: a server is starting.", "#log")
    page.picture("dashboard-switch-starting")
    stage.scene.backend.hold.set()
    page.wait_for("draining", "#models")
    page.wait_for(f"{LOOKUP_2.label}: the server is ready.", "#log")
    page.picture("dashboard-switch-draining")
    stage.give_back(lease)
    page.wait_for(f"{LOOKUP.label}: the server has ended.", "#log")
    assert "the server has ended" in page.script("return document.getElementById('announcement').textContent")


def test_it_says_why_there_is_no_drafting(stage, page):
    """Nothing was measured for one model; the other one is switched off by hand."""
    stage.use("beta")
    stage.use()
    page.open(stage.url)
    page.wait_for("off, because: nothing was measured for this model", "#requests")
    stage.loop.run(stage.supervisor.switch_drafting("alpha", off=True))
    page.wait_for("off, because: switched off by hand", "#requests")


def test_it_shows_a_tune_and_its_result(stage, page):
    """Asked for by keyboard; the step's progress; the new recommendation as soon as it is stored."""
    stage.use()
    stage.store(stage.scene.stored[0].recommendation)
    page.open(stage.url)
    page.wait_for("It rests.", "#daemon")
    page.wait_for("1 with drafting", "#recommendations")
    page.press("[aria-label='Tune now: alpha-1b']", " ")
    page.wait_for("The daemon measures alpha-1b next: it looks for what there is to measure.", "#models")
    assert stage.asked == [{"ask": "tune", "model": "alpha-1b"}]
    assert page.focused() == "Tune now: alpha-1b"
    stage.daemon = {
        **RESTING,
        "state": "tuning",
        "tuning": {**WORK, "for_s": 150.0},
        "why": "it tunes alpha-1b, coding",
    }
    page.press("[aria-label='Tune now: alpha-1b']", "\ue007")
    page.wait_for("It measures alpha-1b on coding prompts: 3 min of at most 10 min.", "#daemon")
    assert page.script("return document.querySelector('#daemon progress').value") == pytest.approx(0.25)
    page.picture("dashboard-tune")
    stage.store(
        replace(
            stage.scene.stored[0].recommendation,
            speedup=2.4,
            reason="Again.",
            created_at="2026-11-29T01:00:00+00:00",
        )
    )
    page.wait_for("New recommendation for alpha-1b, coding: enable, ×2.40.", "#log")
    stage.daemon = NothingKnownError("No daemon is running for /x.", "Start it with `autospec daemon`.")
    page.press("[aria-label='Tune now: alpha-1b']", " ")
    page.wait_for("Start it with `autospec daemon`.", "#models")
    page.wait_for("No daemon is running for /x.", "#daemon")
    page.expected_errors = ["v1/tune"]


def test_it_shows_a_crash_and_what_follows(stage, page):
    """The server that was killed, its failure, and the one that takes over."""
    stage.use()
    page.open(stage.url)
    page.wait_for("ready", "#models")
    lease = stage.hold()
    stage.scene.backend.running[0].kill("SIGSEGV")
    stage.loop.loop.call_soon_threadsafe(lease.died)
    page.wait_for("alpha-1b with " + LOOKUP.label + ": a server died.", "#log")
    page.wait_for("failed 1 time", "#models")
    page.picture("dashboard-crash")
    stage.give_back(lease)
    stage.use()
    page.wait_for("ready", "#models")


def test_drafting_is_switched_off_and_on_with_the_keyboard(stage, page):
    """The switch says its state, keeps the focus, and the server without drafting takes over; then a model is unloaded."""
    stage.use()
    page.open(stage.url)
    page.wait_for("ready", "#models")
    toggle = "[aria-label='Drafting: alpha-1b']"

    def checked() -> str:
        return page.script("return document.querySelector(arguments[0]).getAttribute('aria-checked')", toggle)

    assert checked() == "true"
    page.press(toggle, " ")
    page.wait_for("Drafting is off for alpha-1b until it is switched on again.", "#models")
    page.wait(lambda: checked() == "false")
    page.wait_for("off ready", "#models")
    page.wait_for("was switched off for this model by hand on", "#models")
    assert page.focused() == "Drafting: alpha-1b"
    page.picture("dashboard-drafting-off")
    page.press(toggle, " ")
    page.wait(lambda: checked() == "true")
    page.press("[aria-label='Unload: alpha-1b']", " ")
    page.wait_for("alpha-1b is being unloaded.", "#models")
    page.wait_for("not loaded", "#models li")
    assert not page.has("[aria-label='Unload: alpha-1b']")


def test_it_asks_only_the_proxy_and_not_while_it_is_hidden(stage, page):
    """Nothing from elsewhere, no icon that would reach a model; a hidden page asks for nothing."""
    page.open(stage.url)
    page.wait_for("Connected", "#connection")
    asked = page.asked()
    assert {path.split("?")[0] for path in asked} <= {
        *(
            "/autospec/web/dashboard.css",
            "/autospec/web/dashboard.js",
            "/autospec/web/icon.svg",
            "/v1/models",
        ),
        *(f"/autospec/v1/{name}" for name in ("status", "plan", "live", "daemon", "events")),
    }
    assert stage.supervisor.status()["busy"]["requests"] == 0
    assert not stage.scene.backend.asked
    page.script(
        "Object.defineProperty(document, 'hidden', {value: true, configurable: true});"
        "document.dispatchEvent(new Event('visibilitychange'))"
    )
    time.sleep(0.5)  # what was under way ends
    page.script("performance.clearResourceTimings()")
    time.sleep(2.2)
    assert page.asked() == []
    page.script("delete document.hidden; document.dispatchEvent(new Event('visibilitychange'))")
    page.wait(lambda: "/autospec/v1/status" in page.asked())


class TestWithAKey:
    """A proxy for a network."""

    @pytest.fixture
    def rules(self) -> Rules:
        """It has a key."""
        return Rules(Access(api_key="secret"))

    def test_the_page_asks_for_the_key(self, stage, page, axe):
        """A wrong one is asked for again; the right one is used for everything, and kept nowhere."""
        page.expected_errors = ["401"]
        page.open(stage.url, width=360, height=740)
        page.wait_for("The proxy needs its key.", "#connection")
        assert page.problems(axe) == []
        page.press("#key-value", "wrong\ue007")
        page.wait_for("The proxy needs its key.", "#connection")
        page.wait(lambda: page.has("#key"))
        page.press("#key-value", "secret\ue007")
        page.wait_for("Connected", "#connection")
        page.wait(lambda: not page.has("#key"))
        page.press("[aria-label='Drafting: alpha-1b']", " ")
        page.wait_for("Drafting is off for alpha-1b", "#models")
        kept = page.script(
            "return [localStorage.length, sessionStorage.length, document.cookie, location.href]"
        )
        assert kept == [0, 0, "", stage.url]
