"""Drafting switched off by hand, and unloading by hand."""

from __future__ import annotations

import asyncio
import errno
import json
from collections.abc import Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from autospec.cells import PromptType
from autospec.drafting import OFF, Drafting, Mode
from autospec.errors import AutospecError, OverloadedError, UnknownModelError
from autospec.serving.model_registry import DraftingSwitches, switches_path
from tests.serving.scene import ALPHA, LOOKUP, FakeMlx, Scene, recommend, states, until, wanted

NOW = datetime(2026, 11, 29, 3, 0, 0, tzinfo=UTC)
LATER = datetime(2026, 11, 30, 3, 0, 0, tzinfo=UTC)


def run(scenario: Coroutine[Any, Any, None]) -> None:
    """Play a scenario to its end."""
    asyncio.run(scenario)


async def use(supervisor, **what: Any) -> Drafting:
    """The drafting of one answered request."""
    async with await supervisor.lease(wanted(**what)) as lease:
        lease.answered(10_000)
        return lease.drafting


def test_the_file_keeps_what_is_off(tmp_path: Path):
    """A model that is off keeps its first time; another reader follows; what is on leaves no trace."""
    mine, other = (DraftingSwitches(tmp_path / "state" / "x.json") for _ in range(2))
    assert mine.read() == {}
    mine.switch("a", off=True, now=NOW)
    mine.switch("a", off=True, now=LATER)
    mine.switch("ü/b", off=True, now=LATER)
    assert other.read() == {"a": "2026-11-29T03:00:00+00:00", "ü/b": "2026-11-30T03:00:00+00:00"}
    other.switch("a", off=False, now=LATER)
    other.switch("nobody", off=False, now=LATER)
    assert list(mine.read()) == ["ü/b"]


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"schema": 2, "models": {"a": "x"}}', '{"schema": 1}', "[" * 50_000]
)
def test_a_damaged_file_switches_nothing_off(tmp_path: Path, content: str, caplog):
    """A warning, and the next switch writes it again."""
    (tmp_path / "x.json").write_text(content)
    switches = DraftingSwitches(tmp_path / "x.json")
    assert switches.read() == {}
    assert "is ignored" in caplog.text
    switches.switch("a", off=True, now=NOW)
    assert list(switches.read()) == ["a"]


def test_a_file_that_cannot_be_read_for_a_moment_switches_nothing(tmp_path: Path, monkeypatch, caplog):
    """The proxy has too many open files: drafting that a person switched off stays off, and the next look reads the file."""
    mine, other = (DraftingSwitches(tmp_path / "x.json") for _ in range(2))
    mine.switch("a", off=True, now=NOW)
    assert list(other.read()) == ["a"]
    mine.switch("b", off=True, now=NOW)

    def refused(path: Path) -> bytes:
        raise OSError(errno.EMFILE, "Too many open files", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", refused)
        assert list(other.read()) == ["a"]
        assert list(other.read()) == ["a"]
        assert caplog.text.count("Too many open files") == 1
        with pytest.raises(AutospecError, match="cannot be read: Too many open files"):
            other.switch("c", off=True, now=NOW)
    assert list(other.read()) == ["a", "b"]


def test_what_cannot_be_kept_is_not_done(tmp_path: Path):
    """The folder is a file."""
    (tmp_path / "state").touch()
    switches = DraftingSwitches(tmp_path / "state" / "x.json")
    with pytest.raises(AutospecError, match="cannot be written"):
        switches.switch("a", off=True, now=NOW)
    assert switches.read() == {}


def test_off_means_off_and_the_recommendation_comes_back():
    """The server without drafting takes over, the plan says why, and nothing that was measured has changed."""

    async def scenario():
        scene = Scene(stored=[recommend(LOOKUP)])
        async with scene.opened() as supervisor:
            assert await use(supervisor) == LOOKUP
            assert await supervisor.switch_drafting("alpha", off=True) == "alpha-1b"
            await until(lambda: states(supervisor) == {"alpha-1b off": "ready"})
            assert await use(supervisor) == OFF
            (part,) = supervisor.plan()["models"]
            assert "switched off for this model by hand on 20" in part["notes"][0]
            assert [p["drafting"]["mode"] for p in part["possible"]] == ["off"]
            assert part["recommendations"][0]["served_with"] == {"mode": "off"}
            assert list(supervisor.status()["drafting_off"]) == ["alpha-1b"]
            assert not scene.saved
            await supervisor.switch_drafting("alpha-1b", off=False)
            await until(lambda: states(supervisor) == {f"alpha-1b {LOOKUP.label}": "ready"})
            assert await use(supervisor) == LOOKUP
            assert supervisor.status()["drafting_off"] == {}

    run(scenario())


def test_it_survives_a_restart_and_another_proxy_follows():
    """Kept in the state folder: a new proxy starts without drafting, and one that runs sees it within a poll."""

    async def scenario():
        async with Scene(stored=[recommend(LOOKUP)]).opened() as first:
            assert await use(first) == LOOKUP
            async with Scene(stored=[recommend(LOOKUP)]).opened() as other:
                await other.switch_drafting("alpha", off=True)
            await first.refresh()
            await until(lambda: states(first) == {"alpha-1b off": "ready"})
        async with Scene(stored=[recommend(LOOKUP)]).opened() as again:
            assert await use(again) == OFF
            assert list(states(again)) == ["alpha-1b off"]

    run(scenario())


def test_the_answer_in_progress_goes_on():
    """Its server is drained, not stopped."""

    async def scenario():
        scene = Scene(stored=[recommend(LOOKUP)])
        async with scene.opened() as supervisor:
            lease = await supervisor.lease(wanted())
            await supervisor.switch_drafting("alpha", off=True)
            await until(lambda: states(supervisor).get("alpha-1b off") == "ready")
            await until(lambda: states(supervisor)[f"alpha-1b {LOOKUP.label}"] == "draining")
            assert len(scene.backend.running) == 2
            lease.give_back()
            await until(lambda: states(supervisor) == {"alpha-1b off": "ready"})

    run(scenario())


def test_where_the_drafting_goes_with_the_request_it_is_off_at_once():
    """MLX: the server that has the draft answers without it, before another one is there."""
    draft = Drafting(Mode.DRAFT_MODEL, draft=str(Path(__file__)), n_max=4)

    async def scenario():
        scene = Scene(backend=FakeMlx())
        scene.stored.append(recommend(draft, build=scene.backend.build))
        async with scene.opened() as supervisor:
            await use(supervisor)
            async with await supervisor.lease(wanted()) as before:
                assert before.fields["num_draft_tokens"] == 4
            scene.backend.hold.clear()  # a new server does not get ready
            await supervisor.switch_drafting("alpha", off=True)
            async with await supervisor.lease(wanted()) as after:
                assert after.base_url == before.base_url
                assert after.fields["num_draft_tokens"] == 0
            scene.backend.hold.set()

    run(scenario())


def test_a_likely_drafting_is_off_too():
    """And the recommendation is shown as what it is: undecided."""
    likely = recommend(LOOKUP)

    async def scenario():
        scene = Scene(stored=[likely, recommend(OFF, PromptType.CHAT)])
        async with scene.opened() as supervisor:
            await supervisor.switch_drafting("alpha", off=True)
            assert await use(supervisor) == OFF
            assert await use(supervisor, kind=PromptType.CHAT) == OFF
            assert len(scene.backend.asked) == 1

    run(scenario())


def test_a_model_that_does_not_exist_cannot_be_switched():
    """Its name is not kept either."""

    async def scenario():
        scene = Scene()
        async with scene.opened() as supervisor:
            for act in (supervisor.switch_drafting("nosuch", off=True), supervisor.unload("nosuch")):
                with pytest.raises(UnknownModelError):
                    await act
        assert not switches_path(scene.settings.state_dir).exists()

    run(scenario())


def test_unloading_stops_the_servers_and_the_next_request_starts_one():
    """A model that does not run is nothing to stop; the other model stays."""

    async def scenario():
        scene = Scene()
        async with scene.opened() as supervisor:
            assert await supervisor.unload("alpha") == ("alpha-1b", 0)
            await use(supervisor)
            await use(supervisor, name="beta")
            assert await supervisor.unload("alpha") == ("alpha-1b", 1)
            await until(lambda: list(states(supervisor)) == ["beta-1b off"])
            await use(supervisor)
            assert states(supervisor)["alpha-1b off"] == "ready"

    run(scenario())


def test_unloading_lets_answers_end():
    """The server goes with its last answer, and its end is no crash."""

    async def scenario():
        scene = Scene()
        async with scene.opened() as supervisor:
            lease = await supervisor.lease(wanted())
            await supervisor.unload("alpha")
            await until(lambda: states(supervisor) == {"alpha-1b off": "draining"})
            assert scene.backend.running
            lease.give_back()
            await until(lambda: not states(supervisor))
            assert supervisor.status()["totals"][0]["died"] == 0

    run(scenario())


def test_a_model_that_somebody_waits_for_is_not_unloaded():
    """Else the request would wait for its deadline."""

    async def scenario():
        scene = Scene()
        scene.backend.hold.clear()
        async with scene.opened() as supervisor:
            waiting = asyncio.create_task(supervisor.lease(wanted()))
            await until(lambda: supervisor.status()["queue"]["waiting"] == 1)
            with pytest.raises(OverloadedError, match="alpha-1b has 1 request waiting"):
                await supervisor.unload("alpha")
            scene.backend.hold.set()
            (await waiting).give_back()

    run(scenario())


def test_the_file_is_where_the_docs_say(tmp_path: Path):
    """`drafting-off.json` in the state folder, readable by people."""
    path = switches_path(tmp_path)
    DraftingSwitches(path).switch(ALPHA.name, off=True, now=NOW)
    assert path.name == "drafting-off.json"
    assert json.loads(path.read_text()) == {"schema": 1, "models": {"alpha-1b": "2026-11-29T03:00:00+00:00"}}
