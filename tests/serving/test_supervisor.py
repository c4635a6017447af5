"""The supervisor on a backend with fault switches: which request gets which launch, and what starts and stops."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from autospec.backends.attached.backend import KEY_VARIABLE, Attached
from autospec.backends.protocol import LaunchSettings
from autospec.cells import Aim, PromptType
from autospec.drafting import OFF, Drafting, Mode
from autospec.errors import (
    LaunchError,
    ModelChoiceError,
    OverloadedError,
    SpeculationInactiveError,
    UnknownModelError,
    UsageError,
)
from autospec.recommendations import Status, StoredRecommendation
from autospec.serving import supervisor as supervisor_module
from autospec.serving.advice import FAILED_LAUNCH
from autospec.serving.dispatch import RouteRequest
from autospec.serving.launch_options import LaunchOptions
from autospec.serving.model_registry import ModelRegistry
from autospec.settings import load_settings
from tests.backends.fake_attached import LM_STUDIO, ROUTER, FakeAttached, running
from tests.serving.scene import (
    ALPHA,
    BETA,
    BUILD,
    DEADLINE_S,
    HERE,
    LOOKUP,
    LOOKUP_2,
    MIB,
    FakeBackend,
    FakeMlx,
    FakeServer,
    Scene,
    model,
    recommend,
    states,
    until,
    wanted,
)

# None of its models is loaded, so that nothing is known of their limits.
PLAIN_ROUTER = {page: value for page, value in ROUTER.items() if "model=main" not in page}


def run(scenario: Coroutine[Any, Any, None]) -> None:
    """Play a scenario to its end."""
    asyncio.run(scenario)


def test_a_server_is_started_on_demand_and_lent_again():
    """The first request starts it, for users and not for measuring; the second takes the same."""

    async def scenario():
        scene = Scene()
        async with scene.opened() as supervisor:
            assert not scene.backend.asked
            async with await supervisor.lease(wanted()) as first:
                assert (first.model, first.drafting, first.backend, first.build) == (
                    "alpha-1b",
                    OFF,
                    "embedded",
                    "fake-1",
                )
            async with await supervisor.lease(wanted()) as second:
                assert second.base_url == first.base_url
        path, drafting, settings = scene.backend.asked[0]
        assert len(scene.backend.asked) == 1
        assert (path, drafting, settings.serving, settings.args) == (str(ALPHA.path), OFF, True, ("-t", "1"))
        assert not scene.backend.running

    run(scenario())


def test_requests_wait_for_one_start():
    """Many requests while a server loads make one launch, and all get it."""

    async def scenario():
        scene = Scene()
        scene.backend.hold.clear()
        async with scene.opened() as supervisor:
            requests = [asyncio.create_task(supervisor.lease(wanted())) for _ in range(10)]
            await until(lambda: supervisor.status()["queue"]["waiting"] == 10)
            assert supervisor.status()["busy"] == {
                "now": True,
                "leases": 0,
                "waiting": 10,
                "requests": 10,
                "last_request_s_ago": 0.0,
            }
            scene.backend.hold.set()
            leases = await asyncio.gather(*requests)
            assert len({lease.base_url for lease in leases}) == len(scene.backend.asked) == 1
            assert supervisor.status()["busy"]["leases"] == 10
            for lease in leases:
                lease.give_back()

    run(scenario())


def test_the_recommended_drafting_is_served():
    """Enable is put to work; a type that is to be off has a launch of its own where memory allows."""

    async def scenario():
        scene = Scene(stored=[recommend(LOOKUP), recommend(OFF, PromptType.CHAT)])
        async with scene.opened() as supervisor:
            async with await supervisor.lease(wanted()) as lease:
                lease.answered(10_000)
            async with await supervisor.lease(wanted(kind=PromptType.CHAT)) as lease:
                lease.answered(10_000)
            scene.learn(*scene.stored, recommend(LOOKUP, PromptType.EDITING))  # planned again
            await supervisor.refresh()
            await until(
                lambda: len(states(supervisor)) == 2 and set(states(supervisor).values()) == {"ready"}
            )
            async with await supervisor.lease(wanted()) as coding:
                assert coding.drafting == LOOKUP
            async with await supervisor.lease(wanted(kind=PromptType.CHAT)) as chat:
                assert chat.drafting == OFF

    run(scenario())


@pytest.mark.parametrize(("aim", "served"), [(Aim.ENERGY, LOOKUP), (Aim.SPEED, OFF)])
def test_the_verdict_of_the_configured_aim_is_served(monkeypatch, aim, served):
    """Where this machine cannot pursue it, that of speed; the plan says so."""
    note = "" if aim is Aim.ENERGY else "The aim is speed instead."
    monkeypatch.setattr(supervisor_module, "aim_in_force", lambda _configured, _hardware: (aim, note))
    found = dataclasses.replace(
        recommend(LOOKUP).recommendation, aim=Aim.ENERGY, evidence={"energy": {"ratio": 0.5}}
    )
    frugal = StoredRecommendation("energy", HERE, dataclasses.replace(found, status=Status.STALE))

    async def scenario():
        scene = Scene(stored=[recommend(OFF), frugal])
        async with scene.opened() as supervisor:
            async with await supervisor.lease(wanted()) as lease:
                assert lease.drafting == served
                lease.answered(10_000)
            scene.learn(*scene.stored)  # planned again
            await supervisor.refresh()
            await until(lambda: supervisor.plan()["models"])
            (part,) = supervisor.plan()["models"]
            assert [r["aim"] for r in part["recommendations"]] == [aim]
            assert supervisor.status()["aim"] == aim  # the dashboard shows it
            assert (note in part["notes"]) == bool(note)

    run(scenario())


def test_the_plan_counts_a_request_before_its_answer():
    """One request of its prompt type, with the least number of tokens, as long as the lease is held."""

    async def scenario():
        scene = Scene()
        async with scene.opened() as supervisor:
            async with await supervisor.lease(wanted()):
                pass
            async with await supervisor.lease(wanted(kind=PromptType.MATH)):
                seen = supervisor.status()["traffic"]["models"]["alpha-1b"]["math"]
                assert (seen["requests"], seen["tokens"]) == (1, 1)

    run(scenario())


def test_new_recommendations_take_effect_without_a_restart():
    """The new launch is ready before the old one drains, and the request under way ends on the old one."""

    async def scenario():
        scene = Scene(stored=[recommend(LOOKUP)])
        async with scene.opened() as supervisor:
            old = await supervisor.lease(wanted())
            assert old.drafting == LOOKUP
            scene.backend.hold.clear()
            scene.learn(recommend(LOOKUP_2, speedup=3.0))
            await supervisor.refresh()
            await until(lambda: "starting" in states(supervisor).values())
            async with await supervisor.lease(wanted()) as meanwhile:
                assert meanwhile.base_url == old.base_url
            scene.backend.hold.set()
            await until(lambda: states(supervisor).get(f"alpha-1b {LOOKUP.label}") == "draining")
            async with await supervisor.lease(wanted()) as new:
                assert new.drafting == LOOKUP_2
            assert not scene.backend.servers[0].stopped
            old.give_back()
            await until(lambda: scene.backend.servers[0].stopped)
            assert scene.backend.most == 2

    run(scenario())


def test_where_two_do_not_fit_requests_wait_for_the_switch():
    """The old server drains first; the new one serves requests that come meanwhile, and no stopped server does."""

    async def scenario():
        scene = Scene(stored=[recommend(LOOKUP)])
        scene.limit(600)
        async with scene.opened() as supervisor:
            old = await supervisor.lease(wanted())
            scene.clock.now_s += 600.0  # as long as a better server waits for a moment without requests
            scene.learn(recommend(LOOKUP_2, speedup=3.0))
            await supervisor.refresh()
            await until(lambda: "draining" in states(supervisor).values())
            waiting = asyncio.create_task(supervisor.lease(wanted()))
            await until(lambda: supervisor.status()["queue"]["waiting"] == 1)
            assert not scene.backend.servers[0].stopped
            old.give_back()
            async with await waiting as lease:
                assert lease.drafting == LOOKUP_2
            assert scene.backend.most == 1

    run(scenario())


def test_where_two_do_not_fit_a_long_answer_refuses_nobody():
    """A better drafting waits for it; and if that took too long, new requests get the old server while it drains."""

    async def scenario():
        scene = Scene(stored=[recommend(LOOKUP)])
        scene.limit(600)
        async with scene.opened() as supervisor:
            old = await supervisor.lease(wanted())
            scene.learn(recommend(LOOKUP_2, speedup=3.0))
            await supervisor.refresh()
            await until(lambda: supervisor.plan()["models"][0]["launches"] == [LOOKUP_2.to_json()])
            async with await supervisor.lease(wanted()) as lease:
                assert lease.drafting == LOOKUP
            scene.clock.now_s += 600.0
            await until(lambda: "draining" in states(supervisor).values())
            waiting = asyncio.create_task(supervisor.lease(wanted()))
            await until(lambda: supervisor.status()["queue"]["waiting"] == 1)
            scene.clock.now_s += 60.0
            async with await waiting as lease:
                assert (lease.drafting, lease.base_url) == (LOOKUP, old.base_url)
            await until(lambda: supervisor.status()["launches"][0]["leases"] == 1)
            assert states(supervisor) == {f"alpha-1b {LOOKUP.label}": "ready"}
            old.give_back()
            await until(lambda: states(supervisor) == {f"alpha-1b {LOOKUP_2.label}": "ready"})

    run(scenario())


def test_a_load_that_nobody_waits_for_any_more_is_ended():
    """The next model does not wait for the minutes that a large one takes to load."""

    async def scenario():
        scene = Scene()
        scene.limit(400)
        scene.backend.hold.clear()
        async with scene.opened() as supervisor:
            abandoned = asyncio.create_task(supervisor.lease(wanted()))
            await until(lambda: scene.backend.asked)
            abandoned.cancel()
            waiting = asyncio.create_task(supervisor.lease(wanted("beta")))
            await until(lambda: len(scene.backend.asked) == 2)
            assert not scene.backend.servers
            scene.backend.hold.set()
            async with await waiting as lease:
                assert lease.model == BETA.name
        assert len(scene.backend.servers) == 1

    run(scenario())


def test_a_load_that_is_ended_says_nothing_of_its_projector(monkeypatch):
    """What the log had until then names the projector; the model is not loaded again without it."""

    class Seeing(FakeBackend):
        def launch(self, model_path: str, drafting: Drafting, settings: LaunchSettings) -> FakeServer:
            try:
                return super().launch(model_path, drafting, settings)
            except LaunchError as error:
                raise LaunchError(error.message, log_tail=("clip_model_loader: loaded",)) from error

    async def scenario():
        scene = Scene(backend=Seeing())
        scene.backend.hold.clear()
        monkeypatch.setattr(LaunchOptions, "projector", lambda *_: Path("/models/mmproj.gguf"))
        async with scene.opened() as supervisor:
            waiting = asyncio.create_task(supervisor.lease(wanted()))
            await until(lambda: scene.backend.asked)
            waiting.cancel()
            await asyncio.wait([waiting])
            await supervisor.unload("alpha")
            await until(lambda: not states(supervisor))
            assert len(scene.backend.asked) == 1

    run(scenario())


def test_a_drafting_that_does_not_start_is_off_at_once_and_marked():
    """The user gets an answer without drafting; the verdict is stale, with the reason, and is not tried again."""

    async def scenario():
        scene = Scene(stored=[recommend(LOOKUP)])
        scene.backend.refuses[LOOKUP] = SpeculationInactiveError("It runs without speculation.")
        async with scene.opened() as supervisor:
            async with await supervisor.lease(wanted()) as lease:
                assert lease.drafting == OFF
            await until(lambda: scene.saved)
            await supervisor.refresh()
            async with await supervisor.lease(wanted()):
                pass
            assert supervisor.plan()["models"][0]["notes"]
        (marked,) = scene.saved
        assert marked.status is Status.STALE
        assert "no longer starts: It runs without speculation." in marked.reason
        assert marked.drafting == LOOKUP
        assert marked.evidence[FAILED_LAUNCH]["build"] == "fake-1"
        assert [drafting for _, drafting, _ in scene.backend.asked] == [LOOKUP, OFF]

    run(scenario())


def test_a_drafting_that_fails_for_a_passing_reason_is_tried_again_later():
    """A taken port says nothing about the verdict: it is off for a minute, and nothing is marked."""

    async def scenario():
        scene = Scene(stored=[recommend(LOOKUP)])
        scene.backend.refuses[LOOKUP] = LaunchError("The port was taken.")
        async with scene.opened() as supervisor:
            async with await supervisor.lease(wanted()) as lease:
                assert lease.drafting == OFF
                lease.answered(100_000)  # enough for a switch to pay
            scene.backend.refuses.clear()
            scene.clock.now_s += 100.0
            await until(lambda: states(supervisor).get(f"alpha-1b {LOOKUP.label}") == "ready")
        assert not scene.saved

    run(scenario())


def test_a_model_that_does_not_start_at_all_is_an_error_for_those_who_wait():
    """Not even off: the sentence of the backend, at once, and another chance a moment later."""

    async def scenario():
        scene = Scene()
        scene.backend.refuses[OFF] = LaunchError("The model file is damaged.", permanent=True)
        async with scene.opened() as supervisor:
            for _ in range(2):
                with pytest.raises(LaunchError, match="damaged"):
                    await supervisor.lease(wanted())
            assert len(scene.backend.asked) == 1
            scene.backend.refuses.clear()
            scene.clock.now_s += 5.0
            async with await supervisor.lease(wanted()) as lease:
                assert lease.drafting == OFF

    run(scenario())


def test_a_server_that_dies_is_replaced():
    """After `died` nobody gets the dead one; the retried request gets its successor."""

    async def scenario():
        scene = Scene(stored=[recommend(LOOKUP)])
        async with scene.opened() as supervisor:
            lease = await supervisor.lease(wanted())
            scene.backend.servers[0].kill()
            lease.died()
            lease.give_back()
            async with await supervisor.lease(wanted()) as again:
                assert again.base_url != lease.base_url
                assert again.drafting == LOOKUP
            await until(lambda: scene.backend.servers[0].stopped)  # its record is taken away

    run(scenario())


def test_closing_waits_until_a_dead_servers_record_is_removed():
    """Its successor was ready sooner, and the proxy closed before the record of the dead one was gone."""

    async def scenario():
        scene = Scene()
        async with scene.opened() as supervisor:
            lease = await supervisor.lease(wanted())
            dead = scene.backend.servers[0]
            stop, may_stop = dead.stop, threading.Event()

            def slow():
                may_stop.wait(5)
                stop()

            dead.stop = slow
            dead.kill()
            lease.died()
            lease.give_back()
            async with await supervisor.lease(wanted()):
                pass
            asyncio.get_running_loop().call_later(0.2, may_stop.set)
        assert dead.stopped

    run(scenario())


def test_a_broken_connection_to_a_living_server_changes_nothing_in_the_end():
    """Nobody gets it until it is sure that it lives; then it serves on."""

    async def scenario():
        scene = Scene()
        async with scene.opened() as supervisor:
            lease = await supervisor.lease(wanted())
            lease.died()
            lease.give_back()
            waiting = asyncio.create_task(supervisor.lease(wanted()))
            await until(lambda: supervisor.status()["queue"]["waiting"] == 1)
            scene.clock.now_s += 4.0
            async with await waiting as again:
                assert again.base_url == lease.base_url
        assert len(scene.backend.asked) == 1

    run(scenario())


def test_a_server_that_dies_unseen_is_found():
    """Nobody was connected: the next look, once a second, finds it, and the model is not left without a server."""

    async def scenario():
        scene = Scene()
        async with scene.opened() as supervisor:
            async with await supervisor.lease(wanted()):
                pass
            scene.backend.servers[0].kill()
            await until(lambda: len(scene.backend.running) == 1)
        assert len(scene.backend.servers) == 2

    run(scenario())


def test_a_drafting_that_keeps_dying_is_given_up():
    """Three deaths in a row: off for an hour. It did start, so the recommendation stays as it was measured."""

    async def scenario():
        scene = Scene(stored=[recommend(LOOKUP)])
        async with scene.opened() as supervisor:
            async with await supervisor.lease(wanted()) as lease:
                lease.answered(100_000)  # enough for a switch back to pay
            for times in range(1, 4):
                await until(lambda times=times: len(scene.backend.of(LOOKUP)) == times)
                scene.backend.of(LOOKUP)[-1].kill("SIGABRT")
                await until(
                    lambda times=times: times in [s["times"] for s in supervisor.status()["setbacks"]]
                )
                scene.clock.now_s += 100.0
            await until(lambda: "ready" in states(supervisor).values())
            async with await supervisor.lease(wanted()) as lease:
                assert lease.drafting == OFF
            assert supervisor.status()["setbacks"][0]["again_in_s"] > 3000
            assert len(scene.backend.of(LOOKUP)) == 3
            scene.clock.now_s += 3600.0
            await until(lambda: states(supervisor) == {})
            async with await supervisor.lease(wanted()) as lease:
                assert lease.drafting == LOOKUP
        assert not scene.saved

    run(scenario())


def test_what_is_unused_is_unloaded_and_comes_back():
    """After the time in the settings; a request starts it again."""

    async def scenario():
        scene = Scene()
        async with scene.opened() as supervisor:
            held = await supervisor.lease(wanted())
            scene.clock.now_s += 10_000.0
            await until(lambda: supervisor.status()["busy"]["leases"] == 1)
            held.give_back()
            assert scene.backend.running
            scene.clock.now_s += 899.0
            await asyncio.sleep(0)
            assert scene.backend.running
            scene.clock.now_s += 2.0
            await until(lambda: not scene.backend.running)
            await until(lambda: states(supervisor) == {})
            async with await supervisor.lease(wanted()):
                assert len(scene.backend.running) == 1

    run(scenario())


def test_memory_goes_to_the_model_that_is_asked_for():
    """What nobody uses makes room, and not more than is needed."""

    async def scenario():
        scene = Scene(models=(ALPHA, BETA, model("gamma-1b")))
        scene.limit(800)
        async with scene.opened() as supervisor:
            for name in ("alpha", "beta"):
                async with await supervisor.lease(wanted(name)):
                    scene.clock.now_s += 1.0
            assert len(scene.backend.running) == 2
            async with await supervisor.lease(wanted("gamma")):
                assert len(scene.backend.running) == 2
            assert scene.backend.most == 2

    run(scenario())


def test_a_model_in_use_gives_way_to_one_that_waits_but_not_in_the_middle_of_a_request():
    """It drains, and stops when its last request is done."""

    async def scenario():
        scene = Scene()
        scene.limit(600)
        async with scene.opened() as supervisor:
            alpha = await supervisor.lease(wanted("alpha"))
            beta = asyncio.create_task(supervisor.lease(wanted("beta")))
            await until(lambda: supervisor.status()["queue"]["waiting"] == 1)
            scene.clock.now_s += 6.0
            await until(lambda: "draining" in states(supervisor).values())
            assert len(scene.backend.running) == 1
            alpha.give_back()
            async with await beta as lease:
                assert lease.model == "beta-1b"

    run(scenario())


def test_who_wants_no_drafting_gets_none():
    """A launch without drafting is started beside, and stays for the next one who asks."""

    async def scenario():
        scene = Scene(stored=[recommend(LOOKUP)])
        async with scene.opened() as supervisor:
            async with await supervisor.lease(wanted()) as lease:
                assert lease.drafting == LOOKUP
            for _ in range(2):
                async with await supervisor.lease(wanted(off=True)) as lease:
                    assert lease.drafting == OFF
            async with await supervisor.lease(wanted()) as lease:
                assert lease.drafting == LOOKUP
            assert len(scene.backend.servers) == 2
            scene.clock.now_s += 700.0
            await until(lambda: len(scene.backend.running) == 1)

    run(scenario())


def test_who_wants_no_drafting_where_two_do_not_fit():
    """The server is switched, and then serves everybody without drafting for a while."""

    async def scenario():
        scene = Scene(stored=[recommend(LOOKUP)])
        scene.limit(500)
        async with scene.opened() as supervisor:
            async with await supervisor.lease(wanted()):
                pass
            for off in (True, False):
                async with await supervisor.lease(wanted(off=off)) as lease:
                    assert lease.drafting == OFF
            assert scene.backend.most == 1

    run(scenario())


def test_the_queue_has_a_limit_and_a_deadline():
    """Too many are refused at once, too late ones when their time is over; both may try again."""

    async def scenario():
        scene = Scene()
        scene.settings = dataclasses.replace(scene.settings, queue_limit=2)
        scene.backend.hold.clear()
        async with scene.opened() as supervisor:
            waiting = [asyncio.create_task(supervisor.lease(wanted())) for _ in range(2)]
            await until(lambda: supervisor.status()["queue"]["waiting"] == 2)
            with pytest.raises(OverloadedError, match="2 requests are already waiting"):
                await supervisor.lease(wanted())
            scene.clock.now_s += 301.0
            for late in waiting:
                with pytest.raises(OverloadedError, match="within 300 s"):
                    await late
            scene.backend.hold.set()

    run(scenario())


def test_a_client_that_goes_away_leaves_the_queue():
    """Also in the very moment in which its server has come: nothing stays held."""

    async def scenario():
        scene = Scene()
        scene.backend.hold.clear()
        async with scene.opened() as supervisor:
            gone, late = (asyncio.create_task(supervisor.lease(wanted())) for _ in range(2))
            await until(lambda: supervisor.status()["queue"]["waiting"] == 2)
            gone.cancel()
            await until(lambda: supervisor.status()["queue"]["waiting"] == 1)
            scene.backend.hold.set()
            await until(lambda: supervisor.status()["queue"]["waiting"] == 0)
            late.cancel()
            await asyncio.wait([gone, late])
            if not late.cancelled():
                late.result().give_back()
            assert supervisor.status()["busy"]["leases"] == 0

    run(scenario())


def test_names():
    """Parts and other spellings find a model; several and none are told; a path outside the catalogue opens nothing."""

    async def scenario():
        scene = Scene(models=(ALPHA, BETA, model("beta-2b")))
        async with scene.opened() as supervisor:
            for name in ("alpha-1b", "ALPHA_1B", "alpha", str(ALPHA.path)):
                async with await supervisor.lease(wanted(name)) as lease:
                    assert lease.model == "alpha-1b"
            async with await supervisor.lease(wanted("")) as lease:  # /tokenize names none: the one used last
                assert lease.model == "alpha-1b"
            with pytest.raises(ModelChoiceError, match="could be any of 2"):
                await supervisor.lease(wanted("beta"))
            for name in ("delta", "/etc/passwd"):
                with pytest.raises(UnknownModelError) as told:
                    await supervisor.lease(wanted(name))
                assert told.value.known == ("alpha-1b", "beta-1b", "beta-2b")
            assert [row.name for row in supervisor.offered()] == ["alpha-1b", "beta-1b", "beta-2b"]
            assert supervisor.offered()[0].running == (OFF,)

    run(scenario())


def test_a_model_that_is_new_on_the_disk_is_found():
    """An unknown name makes the proxy look again, at most every half minute."""

    async def scenario():
        scene = Scene()
        async with scene.opened() as supervisor:
            scene.models = (*scene.models, model("gamma-1b"))
            with pytest.raises(UnknownModelError):
                await supervisor.lease(wanted("gamma"))
            scene.clock.now_s += 31.0
            both = [supervisor.lease(wanted("gamma")), supervisor.lease(wanted("nobody"))]
            found, unknown = await asyncio.gather(*both, return_exceptions=True)
            assert found.model == "gamma-1b"
            assert isinstance(unknown, UnknownModelError)
            assert scene.scans == 2
            found.give_back()

    run(scenario())


def test_a_model_that_left_the_disk_is_unloaded():
    """Its server stops when its requests are done."""

    async def scenario():
        scene = Scene()
        async with scene.opened() as supervisor:
            held = await supervisor.lease(wanted())
            scene.models = (BETA,)
            scene.clock.now_s += 31.0
            with pytest.raises(UnknownModelError):
                await supervisor.lease(wanted("nobody"))
            await until(lambda: "draining" in states(supervisor).values())
            held.give_back()
            await until(lambda: not scene.backend.running)
            async with await supervisor.lease(wanted("beta")) as lease:
                assert lease.model == "beta-1b"

    run(scenario())


def test_drafting_that_goes_with_the_request(tmp_path):
    """One launch for all types; the fields say what is in force for each, and nothing is cached."""

    async def scenario():
        draft = dataclasses.replace(model("draft"), path=tmp_path)
        drafting = Drafting(Mode.DRAFT_MODEL, draft=str(draft.path), n_max=4)
        scene = Scene(
            FakeMlx(), models=(ALPHA, draft), stored=[recommend(drafting), recommend(OFF, PromptType.CHAT)]
        )
        async with scene.opened() as supervisor:
            for kind, off, tokens in (
                (PromptType.CODING, False, 4),
                (PromptType.CHAT, False, 0),
                (PromptType.CODING, True, 0),
            ):
                async with await supervisor.lease(wanted("alpha", kind, off=off)) as lease:
                    assert lease.fields == {"num_draft_tokens": tokens}
                    assert lease.drafting.is_off == (tokens == 0)
                    assert not lease.keeps_cache
        assert [settings.serving for *_, settings in scene.backend.asked] == [True, False]

    run(scenario())


def test_no_drafting_for_one_request_starts_no_second_server(tmp_path):
    """MLX: the running server leaves it out. Another one would hold the model's weights twice, or take this one's place."""

    async def scenario():
        draft = dataclasses.replace(model("draft"), path=tmp_path)
        drafting = Drafting(Mode.DRAFT_MODEL, draft=str(draft.path), n_max=4)
        scene = Scene(FakeMlx(), models=(ALPHA, draft), stored=[recommend(drafting)])
        async with scene.opened() as supervisor:
            for off in (False, True):
                async with await supervisor.lease(wanted(off=off)) as lease:
                    assert lease.drafting.is_off == off
            supervisor._reconciler.reconcile()
            assert list(states(supervisor)) == [f"alpha-1b {drafting.label}"]

    run(scenario())


def test_until_another_draft_is_loaded_each_type_keeps_to_its_own_recommendation(tmp_path):
    """MLX: the server that still runs is the old draft's, which is recommended for one of the types only."""
    drafts = [dataclasses.replace(model(name), path=tmp_path / name) for name in ("old", "new")]
    for draft in drafts:
        draft.path.mkdir()
    old, new = (Drafting(Mode.DRAFT_MODEL, draft=str(draft.path), n_max=4) for draft in drafts)

    async def scenario():
        off = recommend(OFF, PromptType.CHAT)
        scene = Scene(FakeMlx(), models=(ALPHA, *drafts), stored=[recommend(old), off])
        async with scene.opened() as supervisor:
            async with await supervisor.lease(wanted()) as lease:
                lease.answered(10_000)
                assert lease.drafting == old
            scene.backend.hold.clear()  # the new server does not get ready
            scene.learn(recommend(new), recommend(old, PromptType.QA, speedup=1.1), off)
            await supervisor.refresh()
            await until(lambda: states(supervisor).get(f"alpha-1b {new.label}") == "starting")
            used = {}
            for kind in (PromptType.CODING, PromptType.CHAT, PromptType.QA, PromptType.MATH):
                async with await supervisor.lease(wanted(kind=kind)) as lease:
                    used[kind] = lease.drafting
            scene.backend.hold.set()
        assert used == {
            PromptType.CODING: OFF,
            PromptType.CHAT: OFF,
            PromptType.QA: old,
            PromptType.MATH: OFF,
        }

    run(scenario())


@pytest.mark.parametrize(
    ("pages", "name", "fields"),
    [
        (PLAIN_ROUTER, "small", {"model": "small"}),
        # Off goes with the request here, so there is nothing that could draft.
        (ROUTER, "main", {"model": "main", "speculative.n_max": 0}),
        (LM_STUDIO, "qwen2.5-7b-instruct", {"model": "qwen2.5-7b-instruct"}),
    ],
)
def test_what_an_attached_server_needs_goes_with_every_request(monkeypatch, pages, name, fields):
    """The server's own name for the model, and the key from the environment."""
    monkeypatch.setenv(KEY_VARIABLE, "secret")
    served = dataclasses.replace(model("served-1b"), path=Path(f"/models/{name}.gguf"))

    async def scenario(url):
        settings = load_settings(overrides={"memory_limit": 64.0})
        scene = Scene(Attached(url), models=(served,), settings=settings)
        async with scene.opened() as supervisor, await supervisor.lease(wanted("served-1b")) as lease:
            assert lease.base_url == url
            assert lease.fields == fields
            assert lease.headers == {"authorization": "Bearer secret"}
            assert "secret" not in str(supervisor.status())

    with running(FakeAttached(pages)) as server:
        run(scenario(server.url))
        assert {key for _, key, _ in server.bodies} == {"Bearer secret"}


def test_an_attached_server_is_asked_for_embeddings():
    """It is its owner's, who may have started it for that."""
    served = dataclasses.replace(model("served-1b"), path=Path("/models/qwen2.5-7b-instruct.gguf"))

    async def scenario(url):
        settings = load_settings(overrides={"memory_limit": 64.0})
        scene, asked = (
            Scene(Attached(url), models=(served,), settings=settings),
            RouteRequest("served-1b", embeds=True),
        )
        async with scene.opened() as supervisor, await supervisor.lease(asked) as lease:
            assert lease.base_url == url

    with running(FakeAttached(LM_STUDIO)) as server:
        run(scenario(server.url))


def test_a_cache_that_makes_wrong_text_is_never_served():
    """A backend that cannot leave its prompt cache out is refused: no answer is better than a wrong one."""

    async def scenario():
        scene = Scene(FakeMlx(cache_args=()))
        async with scene.opened() as supervisor:
            with pytest.raises(LaunchError, match="wrong text"):
                await supervisor.lease(wanted())
            assert not scene.backend.running

    run(scenario())


def test_a_cache_that_is_right_after_drafting_is_served():
    """An mlx-lm whose cache is: the first launch, which keeps its cache, stays."""

    async def scenario():
        scene = Scene(FakeMlx(cache_args=(), drafts_uncached=False))
        async with scene.opened() as supervisor, await supervisor.lease(wanted()) as lease:
            assert [settings.serving for *_, settings in scene.backend.asked] == [True]
            assert lease.keeps_cache

    run(scenario())


def test_closing_drains_and_refuses():
    """Started answers end, waiting requests are refused, and nothing is left."""

    async def scenario():
        scene = Scene()
        async with scene.opened() as supervisor:
            held = await supervisor.lease(wanted("alpha"))
            scene.backend.hold.clear()
            waiting = asyncio.create_task(supervisor.lease(wanted("beta")))
            await until(lambda: len(scene.backend.asked) == 2)
            closing = asyncio.create_task(supervisor.close())
            with pytest.raises(OverloadedError, match="shutting down"):
                await waiting
            with pytest.raises(OverloadedError, match="shutting down"):
                await supervisor.lease(wanted())
            assert len(scene.backend.running) == 1
            scene.backend.hold.set()
            held.give_back()
            await closing
            assert not scene.backend.running

    run(scenario())


def test_a_launch_that_hangs_does_not_keep_the_proxy_from_ending(monkeypatch):
    """Its server is stopped as soon as there is one."""
    monkeypatch.setattr("autospec.serving.supervisor._DRAIN_S", 0.05)
    monkeypatch.setattr("autospec.serving.supervisor._STOP_S", 0.05)
    scene = Scene()
    scene.backend.stuck = True
    scene.backend.hold.clear()

    async def scenario():
        async with scene.opened() as supervisor:
            waiting = asyncio.create_task(supervisor.lease(wanted()))
            await until(lambda: scene.backend.asked)
        with pytest.raises(OverloadedError):
            await waiting

    run(scenario())
    scene.backend.hold.set()
    for thread in threading.enumerate():
        if thread.name == "autospec-proxy":
            thread.join(10.0)
    assert scene.backend.servers
    assert not scene.backend.running


def test_fifty_switches_under_sixty_four_clients_lose_nothing():
    """Drafting is switched fifty times under 64 clients that ask and ask: none fails, none has a server that is stopped."""

    async def scenario():
        scene = Scene(stored=[recommend(LOOKUP)])
        scene.limit(900)
        wrong: list[str] = []
        served = 0
        over = False

        async def client():
            nonlocal served
            while not over:
                async with await supervisor.lease(wanted()) as lease:
                    server = next(s for s in scene.backend.servers if s.base_url == lease.base_url)
                    for _ in range(3):
                        await asyncio.sleep(0)
                        if server.stopped or server.drafting != lease.drafting:
                            wrong.append(lease.base_url)
                served += 1

        async with scene.opened() as supervisor:
            clients = [asyncio.create_task(client()) for _ in range(64)]
            for number in range(50):
                drafting = (LOOKUP, LOOKUP_2)[number % 2]
                scene.learn(recommend(drafting))
                # Every third time there is no room for two.
                supervisor._reconciler.memory_bytes = (900 if number % 3 else 500) * MIB
                # There is never a moment without requests; no request waits now, so that none is refused.
                scene.clock.now_s += 0.0 if number % 3 else 600.0
                await supervisor.refresh()
                label = f"alpha-1b {drafting.label}"
                await until(lambda label=label: states(supervisor) == {label: "ready"})
            over = True
            await asyncio.gather(*clients)
        assert not wrong
        assert served > 64
        assert len(scene.backend.servers) == 50
        assert not scene.backend.running

    run(scenario())


def test_the_documents():
    """Plan and status are JSON and say what is kept, why, and what is known against it."""

    async def scenario():
        scene = Scene(stored=[recommend(LOOKUP, status=Status.STALE)])
        async with scene.opened() as supervisor, await supervisor.lease(wanted()):
            plan, status = (json.loads(json.dumps(d)) for d in (supervisor.plan(), supervisor.status()))
        (part,) = plan["models"]
        assert part["launches"] == [LOOKUP.to_json()]
        assert "stale" in part["notes"][0]
        assert part["backend_build"] == "fake-1"
        (row,) = status["launches"]
        assert row["state"] == "ready"
        assert row["leases"] == row["served"] == 1
        assert 0 < status["memory"]["launches_bytes"] <= status["memory"]["limit_bytes"]

    run(scenario())


def test_a_build_that_was_replaced_while_no_server_ran_loads_the_model_once():
    """Nobody scans while no server runs: the first request afterwards does, before the model is loaded."""

    async def scenario():
        scene = Scene()
        async with scene.opened() as supervisor:
            scene.clock.now_s += 299.0
            with pytest.raises(OverloadedError):
                await supervisor.lease(wanted(probe=True))
            assert scene.scans == 1
            scene.clock.now_s += 1.0
            scene.backend.build = dataclasses.replace(BUILD, version="fake-2", fingerprint="other")
            with pytest.raises(OverloadedError):
                await supervisor.lease(wanted(probe=True))
            assert scene.scans == 1  # a probe starts nothing
            leases = await asyncio.gather(*(supervisor.lease(wanted()) for _ in range(3)))
            assert {lease.build for lease in leases} == {"fake-2"}
            assert (scene.scans, len(scene.backend.asked)) == (2, 1)
            for lease in leases:
                lease.give_back()

    run(scenario())


def test_a_folder_that_does_not_answer_delays_no_load():
    """Each scan would wait for it."""

    async def scenario():
        scene = Scene()
        async with scene.opened() as supervisor:
            supervisor._reconciler.options.registry.silent = (Path("/mnt/nas"),)
            scene.clock.now_s += 300.0
            async with await supervisor.lease(wanted()):
                pass
            assert [drafting for _, drafting, _ in scene.backend.asked] == [OFF]
            assert not any(scan for scan in (supervisor._scan, supervisor._scanning))
            assert scene.scans == 1

    run(scenario())


def test_a_model_whose_build_is_replaced_while_it_loads_is_not_loaded_twice_for_one_request():
    """It is lent before it is replaced, although nobody is on it in the moment when it becomes ready."""

    async def scenario():
        scene = Scene()
        scene.limit(400)
        scene.backend.hold.clear()
        async with scene.opened() as supervisor:
            waiting = asyncio.create_task(supervisor.lease(wanted()))
            await until(lambda: scene.backend.asked)
            scene.backend.build = dataclasses.replace(BUILD, version="fake-2", fingerprint="other")
            scene.version += 1
            await supervisor.refresh()
            scene.backend.hold.set()
            async with await waiting as lease:
                assert lease.build == BUILD.version
            assert len(scene.backend.asked) == 1
            await until(lambda: len(scene.backend.servers) == 2)

    run(scenario())


def test_a_scan_that_fails_before_a_model_is_loaded_fails_no_request():
    """The model is known. One that the end of the proxy interrupts is told as that end."""

    async def scenario():
        scene = Scene()
        gate = threading.Event()

        def fails() -> ModelRegistry:
            raise OSError("Too many open files")

        def hangs() -> ModelRegistry:
            assert gate.wait(DEADLINE_S)
            return scene._scan_models()

        async with scene.opened() as supervisor:
            dependencies = supervisor._dependencies
            supervisor._dependencies = dataclasses.replace(dependencies, registry=fails)
            scene.clock.now_s += 300.0
            async with await supervisor.lease(wanted()):
                pass
            supervisor._dependencies = dataclasses.replace(dependencies, registry=hangs)
            scene.clock.now_s += 300.0
            waiting = asyncio.create_task(supervisor.lease(wanted("beta")))
            await until(lambda: supervisor._scan is not None)
            closing = asyncio.create_task(supervisor.close())
            with pytest.raises(OverloadedError, match="shutting down"):
                await waiting
            gate.set()
            await closing

    run(scenario())


def test_mlx_lends_a_server_that_drains_again_for_another_number_of_tokens():
    """It has the draft model that is needed; the number goes with the request."""
    few, many = (Drafting(Mode.DRAFT_MODEL, draft=str(BETA.path), n_max=n) for n in (3, 5))

    async def scenario():
        scene = Scene(backend=FakeMlx(drafts_uncached=False), stored=[recommend(few)])
        async with scene.opened() as supervisor:
            old = await supervisor.lease(wanted())
            scene.learn(recommend(many), recommend(few, PromptType.REASONING))
            await supervisor.refresh()
            await supervisor.unload("alpha")
            await until(lambda: "draining" in states(supervisor).values())
            started = len(scene.backend.servers)
            async with await supervisor.lease(wanted()) as lease:
                assert lease.base_url == old.base_url
            assert len(scene.backend.servers) == started
            old.give_back()

    run(scenario())


def test_a_build_that_changes_while_it_runs_is_served_with_its_own_proof():
    """What is proven for the new build wins over what was proven for the old one, without a restart."""

    async def scenario():
        scene = Scene()
        scene.learn(recommend(LOOKUP))
        async with scene.opened() as supervisor:
            async with await supervisor.lease(wanted()) as before:
                assert (before.drafting, before.build) == (LOOKUP, BUILD.version)
            scene.backend.build = dataclasses.replace(BUILD, version="fake-2", fingerprint="other")
            scene.learn(recommend(LOOKUP, status=Status.STALE), recommend(OFF, build=scene.backend.build))
            await supervisor.refresh()
            plan = supervisor.plan()["models"][0]
            assert plan["backend_build"] == "fake-2"
            assert [r["status"] for r in plan["recommendations"]] == [Status.PROVEN]
            async with asyncio.timeout(DEADLINE_S):
                while True:
                    async with await supervisor.lease(wanted()) as after:
                        if after.drafting == OFF:
                            break
                    await asyncio.sleep(0.001)

    run(scenario())


@pytest.mark.parametrize("flags", [(), ("--embeddings", "--pooling", "mean"), ("--reranking",)])
def test_embeddings_start_a_server_only_if_it_makes_some(flags):
    """Each part of a document that a client embeds kept a model loaded, only to be told of a flag for a server that it has not."""

    async def scenario():
        scene = Scene()
        args = [*scene.settings.server_args, *flags]
        scene.settings = dataclasses.replace(scene.settings, server_args=tuple(args))
        async with scene.opened() as supervisor:
            asked = RouteRequest("alpha", embeds=True)
            if flags:
                async with await supervisor.lease(asked) as lease:
                    assert lease.model == ALPHA.name
                return
            with pytest.raises(UsageError, match=r"of alpha-1b writes text.*--embeddings"):
                await supervisor.lease(asked)
            with pytest.raises(UnknownModelError, match=r"No model matches text-embedding-3.*--embeddings"):
                await supervisor.lease(RouteRequest("text-embedding-3-small", embeds=True))
            assert not scene.backend.asked
            assert not supervisor.status()["busy"]["requests"]

    run(scenario())
