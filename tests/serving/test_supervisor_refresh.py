"""The supervisor reads recommendations and disk again: a fault loses nothing, and the newest reading counts."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import threading

import pytest

from autospec.drafting import OFF
from autospec.errors import (
    AutospecError,
    OverloadedError,
    SpeculationInactiveError,
    StoreError,
    UnknownModelError,
)
from autospec.recommendations import Status
from autospec.serving import supervisor as supervisor_module
from autospec.serving.model_registry import ModelRegistry
from tests.serving.scene import ALPHA, BETA, LOOKUP, Scene, recommend, until, wanted


class FaultyScene(Scene):
    """A disk that cannot be read while `fault` is set, and whose scan waits for `hold`."""

    fault: Exception | None = None
    hold: threading.Event | None = None

    def _scan_models(self) -> ModelRegistry:
        found = super()._scan_models()
        if self.fault is not None:
            raise self.fault
        if self.hold is not None:
            hold, self.hold = self.hold, None
            hold.wait(20)
        return found


def test_what_could_not_be_learnt_is_tried_again():
    """A fault between the reading and the learning leaves the recommendation new."""

    async def scenario() -> None:
        scene = FaultyScene()
        async with scene.opened() as supervisor:
            scene.learn(recommend(LOOKUP))
            scene.fault = KeyError("layers")
            with pytest.raises(KeyError):
                await supervisor.refresh()
            scene.fault = None
            scans = scene.scans
            await supervisor.refresh()
            assert scene.scans == scans + 1
            await supervisor.refresh()  # and then no more
            assert scene.scans == scans + 1

    asyncio.run(scenario())


def test_no_fault_ends_the_watch(monkeypatch, caplog):
    """Whatever it is, it is logged once, and the next look is made."""
    monkeypatch.setattr(supervisor_module, "_POLL_S", 0.005)
    monkeypatch.setattr(supervisor_module, "_RESCAN_S", 0.005)

    async def scenario() -> None:
        scene = FaultyScene()
        async with scene.opened():
            scene.fault = OSError("the disk is gone")
            scene.learn(recommend(LOOKUP))
            scans = scene.scans
            await until(lambda: scene.scans > scans + 3)
            scene.fault = None
            scans = scene.scans
            await until(lambda: scene.scans > scans)

    with caplog.at_level(logging.WARNING):
        asyncio.run(scenario())
    assert sum("not up to date" in record.getMessage() for record in caplog.records) == 1


def test_looks_end_in_the_order_they_began_in():
    """A slow scan of what was must not undo a later one of what is."""

    async def scenario() -> None:
        scene = FaultyScene(models=(ALPHA,))
        async with scene.opened() as supervisor:
            hold = scene.hold = threading.Event()
            scans = scene.scans
            scene.learn(recommend(LOOKUP))
            slow = asyncio.ensure_future(supervisor.refresh())
            await until(lambda: scene.scans > scans and scene.hold is None)
            scene.models = (ALPHA, BETA)
            scene.learn(recommend(LOOKUP))
            quick = asyncio.ensure_future(supervisor.refresh())
            await asyncio.sleep(0.05)  # enough for a look that does not wait to end
            hold.set()
            await asyncio.gather(slow, quick)
            assert len(supervisor.offered()) == 2

    asyncio.run(scenario())


def test_a_scan_that_hangs_keeps_nobody_waiting(monkeypatch, caplog):
    """A dead network disk in `model_dirs`: unknown names waited for ever, and drafting could not be switched."""
    monkeypatch.setattr(supervisor_module, "_SCAN_WAIT_S", 0.2)

    async def scenario() -> None:
        scene = FaultyScene(models=(ALPHA,))
        async with scene.opened() as supervisor:
            hold = scene.hold = threading.Event()
            scans = scene.scans
            for _ in range(3):
                scene.clock.now_s += 31.0
                with pytest.raises(UnknownModelError):
                    await supervisor.lease(wanted("beta"))
                await until(lambda: supervisor._scan is None)
            assert scene.scans == scans + 1  # the one that hangs
            assert await supervisor.switch_drafting("alpha", off=True) == "alpha-1b"
            scene.learn(recommend(LOOKUP))
            await supervisor.refresh()
            assert "could not be scanned" in caplog.text
            scene.models = (ALPHA, BETA)
            hold.set()
            await until(lambda: supervisor._scanning is None or supervisor._scanning.done())
            for _ in range(2):  # the late result, then a new one
                scene.clock.now_s += 31.0
                await supervisor._rescanned()
            (await supervisor.lease(wanted("beta"))).give_back()

    asyncio.run(scenario())


def test_a_draft_on_a_disk_that_hangs_keeps_nobody_waiting(monkeypatch):
    """What is recommended is read again when the disk answers; meanwhile who asks for a change is told."""
    monkeypatch.setattr(supervisor_module, "_SCAN_WAIT_S", 0.2)
    answers, known_of = threading.Event(), supervisor_module.known_of
    answers.set()
    asked = []

    def slowly(*args, **more):
        asked.append(args)
        assert answers.wait(20)
        return known_of(*args, **more)

    monkeypatch.setattr(supervisor_module, "known_of", slowly)

    async def scenario() -> None:
        scene = FaultyScene(models=(ALPHA,))
        async with scene.opened() as supervisor:
            answers.clear()
            asked.clear()
            for _ in range(3):
                with pytest.raises(AutospecError, match="a folder does not answer"):
                    await supervisor.switch_drafting("alpha", off=True)
            assert len(asked) == 1
            (await supervisor.lease(wanted())).give_back()
            answers.set()
            await until(supervisor._learning.done)
            await supervisor.refresh()
            assert "alpha-1b" in supervisor.status()["drafting_off"]

    asyncio.run(scenario())


def folder_that_hangs(monkeypatch) -> threading.Event:
    """While the event is not set, the folder of a draft does not answer who reads the recommendations. It is set at first."""
    answers, known_of = threading.Event(), supervisor_module.known_of
    answers.set()

    def slowly(*args, **more):
        assert answers.wait(20)
        return known_of(*args, **more)

    monkeypatch.setattr(supervisor_module, "known_of", slowly)
    return answers


def test_a_drafting_that_does_not_start_is_marked_while_a_folder_hangs(monkeypatch, caplog):
    """It was given up, but its recommendation stayed proven and nothing said why."""
    monkeypatch.setattr(supervisor_module, "_SCAN_WAIT_S", 0.2)
    answers = folder_that_hangs(monkeypatch)

    async def scenario() -> None:
        scene = FaultyScene(models=(ALPHA,), stored=[recommend(LOOKUP)])
        scene.backend.refuses[LOOKUP] = SpeculationInactiveError("It runs without speculation.")
        async with scene.opened() as supervisor:
            answers.clear()
            async with await supervisor.lease(wanted()) as lease:
                assert lease.drafting == OFF
            await until(lambda: scene.saved)
            assert "could not be checked: a folder does not answer" in caplog.text
            answers.set()
            await until(supervisor._learning.done)
            await supervisor.refresh()
            assert LOOKUP not in supervisor._reconciler.options.of(ALPHA.name).draftings
        (marked,) = scene.saved
        assert marked.status is Status.STALE

    asyncio.run(scenario())


def test_a_folder_that_hangs_at_the_start_keeps_no_port_closed(monkeypatch, caplog):
    """The proxy waited for it without a word; its models are there as soon as it answers."""
    monkeypatch.setattr(supervisor_module, "_SCAN_WAIT_S", 0.2)
    monkeypatch.setattr(supervisor_module, "_POLL_S", 0.005)

    async def scenario() -> None:
        scene = FaultyScene(models=(ALPHA,), stored=[recommend(LOOKUP)])
        hold = scene.hold = threading.Event()
        async with scene.opened() as supervisor:
            assert "No model is known yet" in caplog.text
            assert not supervisor.offered()
            for name in ("alpha", ""):
                with pytest.raises(OverloadedError, match="models are not known yet"):
                    await supervisor.lease(wanted(name))
            hold.set()
            await until(supervisor.offered)
            await until(lambda: supervisor._reconciler.options.of(ALPHA.name).recommendations)
            async with await supervisor.lease(wanted("")) as lease:
                assert lease.drafting == LOOKUP
            assert scene.scans == 1

    asyncio.run(scenario())


def test_a_draft_that_hangs_at_the_start_ends_no_proxy(monkeypatch):
    """A supervisor restarted it for ever; it serves without drafting until the folder answers."""
    monkeypatch.setattr(supervisor_module, "_SCAN_WAIT_S", 0.2)
    monkeypatch.setattr(supervisor_module, "_POLL_S", 0.005)
    answers, known_of = threading.Event(), supervisor_module.known_of

    def slowly(*args, **more):
        assert answers.wait(20)
        return known_of(*args, **more)

    monkeypatch.setattr(supervisor_module, "known_of", slowly)

    async def scenario() -> None:
        async with FaultyScene(models=(ALPHA,), stored=[recommend(LOOKUP)]).opened() as supervisor:
            async with await supervisor.lease(wanted()) as lease:
                assert lease.drafting == OFF
            answers.set()
            await until(lambda: supervisor._reconciler.options.of(ALPHA.name).recommendations)

    asyncio.run(scenario())


class Damaged(list):
    """What a damaged database holds."""

    def __iter__(self):
        raise StoreError("The database is damaged.")


def test_a_damaged_database_is_told_at_the_start():
    """Without its recommendations nobody would know why nothing is drafted."""

    async def scenario() -> None:
        with pytest.raises(StoreError, match="damaged"):
            async with Scene(stored=Damaged()).opened():
                pass

    asyncio.run(scenario())


def test_a_slow_scan_finds_its_models(monkeypatch):
    """It took longer than a client waits: the model was unknown again and again, until a scan was fast by chance."""
    monkeypatch.setattr(supervisor_module, "_SCAN_WAIT_S", 0.2)

    async def scenario() -> None:
        scene = FaultyScene(models=(ALPHA,))
        async with scene.opened() as supervisor:
            hold = scene.hold = threading.Event()
            scene.models = (ALPHA, BETA)
            scene.clock.now_s += 31.0
            with pytest.raises(UnknownModelError):
                await supervisor.lease(wanted("beta"))
            await until(lambda: supervisor._scan is None)
            hold.set()
            await until(supervisor._scanning.done)
            assert supervisor._scan_is_due()
            scans = scene.scans
            scene.clock.now_s += 1.0
            (await supervisor.lease(wanted("beta"))).give_back()
            assert scene.scans == scans
            assert not supervisor._scan_is_due()

    asyncio.run(scenario())


def test_a_scan_that_took_hours_is_made_again(monkeypatch):
    """Its result is of another time."""
    monkeypatch.setattr(supervisor_module, "_SCAN_WAIT_S", 0.2)

    async def scenario() -> None:
        scene = FaultyScene(models=(ALPHA,))
        async with scene.opened() as supervisor:
            hold = scene.hold = threading.Event()
            scene.clock.now_s += 31.0
            with pytest.raises(UnknownModelError):
                await supervisor.lease(wanted("beta"))
            await until(lambda: supervisor._scan is None)
            scene.models = (ALPHA, BETA)
            hold.set()
            await until(supervisor._scanning.done)
            scene.clock.now_s += 7200.0
            monkeypatch.setattr(supervisor_module, "_SCAN_WAIT_S", 20.0)
            (await supervisor.lease(wanted("beta"))).give_back()

    asyncio.run(scenario())


def test_a_database_that_hangs_keeps_nobody_waiting(monkeypatch):
    """A PostgreSQL whose host has vanished: drafting could not be switched, and no new model was found."""
    monkeypatch.setattr(supervisor_module, "_SCAN_WAIT_S", 0.2)
    answers, asked = threading.Event(), []

    def newest() -> int:
        asked.append("newest")
        assert answers.wait(20)
        return 7

    async def scenario() -> None:
        scene = FaultyScene(models=(ALPHA,))
        async with scene.opened() as supervisor:
            supervisor._dependencies = dataclasses.replace(supervisor._dependencies, newest=newest)
            for _ in range(3):
                with pytest.raises(StoreError, match="does not answer"):
                    await supervisor.refresh()
            assert len(asked) == 1
            assert await supervisor.switch_drafting("alpha", off=True) == "alpha-1b"
            answers.set()
            await until(supervisor._reading.done)
            await supervisor.refresh()
            assert supervisor._newest == 7

    asyncio.run(scenario())


def test_a_new_model_gets_its_recommendations_when_its_draft_answers(monkeypatch):
    """A scan found it while the folder of its draft hung, and nothing read its recommendations again."""
    monkeypatch.setattr(supervisor_module, "_SCAN_WAIT_S", 0.2)
    monkeypatch.setattr(supervisor_module, "_POLL_S", 0.005)
    answers = folder_that_hangs(monkeypatch)

    async def scenario() -> None:
        scene = FaultyScene(models=(ALPHA,), stored=[recommend(LOOKUP, of=BETA)])
        async with scene.opened() as supervisor:
            answers.clear()
            scene.models = (ALPHA, BETA)
            scene.clock.now_s += 31.0
            async with await supervisor.lease(wanted("beta")) as lease:
                assert lease.drafting == OFF
            await until(lambda: supervisor._scan is None)
            answers.set()
            await until(lambda: supervisor._reconciler.options.of(BETA.name).recommendations)

    asyncio.run(scenario())
