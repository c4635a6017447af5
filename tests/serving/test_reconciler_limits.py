"""Requests beyond the limits of their drafting: where they are served, what they start, what is told of them."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import pytest

from autospec.cells import PromptType
from autospec.drafting import OFF, Drafting, Mode
from autospec.recommendations import LimitCheck, Limits, LimitVerdict
from autospec.serving.dispatch import Limit, RouteRequest
from autospec.serving.launch_options import default_temperature
from autospec.serving.server_pool import ServerLease
from autospec.serving.supervisor import Supervisor
from tests.serving.scene import (
    ALPHA,
    LOOKUP,
    FakeMlx,
    Scene,
    model,
    prompt_of,
    recommend,
    states,
    until,
    wanted,
)

SLOWER = LimitVerdict.SLOWER
FASTER = LimitVerdict.FASTER
ALONE = Limits(concurrent=(LimitCheck(2, 0.7, (0.6, 0.8), 8, SLOWER),), most_concurrent=1)
IN_PAIRS = Limits(concurrent=(LimitCheck(2, 1.3, (1.2, 1.4), 8, FASTER),), most_concurrent=2)
SHORT = Limits(context=(LimitCheck(8192, 0.7, (0.6, 0.8), 8, SLOWER),), deepest_context=4096)
GREEDY = Limits(temperature=(LimitCheck(0.8, 0.7, (0.6, 0.8), 8, SLOWER),), highest_temperature=0.0)
GREEDY_REQUEST = replace(wanted(), temperature=0.0)
LONG = replace(wanted(), prompt=prompt_of(text_bytes=30_000))
HOT = replace(wanted(), temperature=0.9)


def run(scenario: Coroutine[Any, Any, None]) -> None:
    """Play a scenario to its end."""
    asyncio.run(scenario)


def limited(limits: Limits, drafting: Drafting = LOOKUP) -> Scene:
    """A model whose drafting for coding has these limits."""
    return Scene(stored=[recommend(drafting, limits=limits.to_json())])


async def with_off(scene: Scene, supervisor: Supervisor) -> None:
    """Let a server with the drafting and one without run."""
    off = replace(wanted(), drafting_off=True)
    for request in (wanted(), off, wanted()):
        async with await supervisor.lease(request):
            pass
    await until(lambda: set(states(supervisor).values()) == {"ready"} and len(states(supervisor)) == 2)


async def asked(supervisor: Supervisor, *requests: RouteRequest) -> list[tuple[Drafting, Limit | None]]:
    """What requests get that are all answered at once."""
    async with AsyncExitStack() as stack:
        leases = [await stack.enter_async_context(await supervisor.lease(r)) for r in requests]
        return [(lease.drafting, lease.limit) for lease in leases]


def test_a_burst_above_the_limit_goes_to_off():
    """Two at once are drafted, the third and fourth go to the server without drafting, and are marked."""

    async def scenario():
        scene = limited(IN_PAIRS)
        async with scene.opened() as supervisor:
            await with_off(scene, supervisor)
            first = await asked(supervisor, *4 * [wanted()])
            assert first == [(LOOKUP, None), (LOOKUP, None), (OFF, Limit.CONCURRENT), (OFF, Limit.CONCURRENT)]
            assert await asked(supervisor, wanted()) == [(LOOKUP, None)], "the burst is over"

    run(scenario())


def test_requests_on_off_count_as_well():
    """While a burst is answered without drafting, a drafted request would share the machine with it."""

    async def scenario():
        scene = limited(ALONE)
        async with scene.opened() as supervisor:
            await with_off(scene, supervisor)
            drafted = await supervisor.lease(wanted())
            other = await supervisor.lease(wanted())
            drafted.give_back()
            assert (other.drafting, other.limit) == (OFF, Limit.CONCURRENT)
            assert await asked(supervisor, wanted()) == [(OFF, Limit.CONCURRENT)]
            other.give_back()
            assert await asked(supervisor, wanted()) == [(LOOKUP, None)]

    run(scenario())


def test_what_generates_nothing_is_no_request_at_once():
    """A health check beside a request."""

    async def scenario():
        scene = limited(ALONE)
        async with scene.opened() as supervisor:
            await with_off(scene, supervisor)
            async with await supervisor.lease(wanted(kind=None)) as check:
                assert check.limit is None
                assert await asked(supervisor, wanted()) == [(LOOKUP, None)]

    run(scenario())


@pytest.mark.parametrize(
    ("limits", "request_", "limit"),
    [(SHORT, LONG, Limit.CONTEXT), (GREEDY, HOT, Limit.TEMPERATURE), (GREEDY, wanted(), Limit.TEMPERATURE)],
    ids=["long", "hot", "the server's default is hot"],
)
def test_one_request_beyond_a_limit(limits, request_, limit):
    """With off present it goes there; without, it stays. Either way it is marked."""

    async def scenario():
        scene = limited(limits)
        async with scene.opened() as supervisor:
            assert await asked(supervisor, request_) == [(LOOKUP, limit)]
            await with_off(scene, supervisor)
            assert await asked(supervisor, request_) == [(OFF, limit)]
            assert await asked(supervisor, GREEDY_REQUEST) == [(LOOKUP, None)]

    run(scenario())


def test_the_default_temperature_is_the_user_s():
    """`--temp 0` among the server's arguments: a request without a temperature is greedy."""

    async def scenario():
        scene = limited(GREEDY)
        args = (*scene.settings.server_args, "--temp", "0")
        scene.settings = replace(scene.settings, server_args=args)
        stored = scene.stored[0].recommendation
        evidence = {**stored.evidence, "settings": list(args)}
        scene.stored[0] = replace(scene.stored[0], recommendation=replace(stored, evidence=evidence))
        async with scene.opened() as supervisor:
            assert await asked(supervisor, wanted()) == [(LOOKUP, None)]
            assert await asked(supervisor, HOT) == [(LOOKUP, Limit.TEMPERATURE)]

    run(scenario())


def test_a_client_that_asks_for_off_is_beyond_nothing():
    """It would not be drafted within the limits either."""

    async def scenario():
        scene = limited(GREEDY)
        async with scene.opened() as supervisor:
            await with_off(scene, supervisor)
            assert await asked(supervisor, replace(HOT, drafting_off=True)) == [(OFF, None)]

    run(scenario())


@pytest.mark.parametrize(
    "limits", [None, {}, {"most_concurrent": "2"}, {"concurrent": 3}, [1], Limits().to_json()]
)
def test_without_known_limits_nothing_changes(limits):
    """None was measured, or an imported record cannot be read."""

    async def scenario():
        scene = Scene(stored=[recommend(LOOKUP, limits=limits)])
        async with scene.opened() as supervisor:
            await with_off(scene, supervisor)
            assert await asked(supervisor, LONG, HOT, wanted()) == 3 * [(LOOKUP, None)]

    run(scenario())


@pytest.mark.parametrize(
    ("limits", "requests"), [(ALONE, 2 * [GREEDY_REQUEST]), (SHORT, [LONG]), (GREEDY, [HOT])]
)
def test_a_backend_that_drafts_per_request_answers_it_without(limits, requests, tmp_path):
    """The same server, the same launch: off is free there."""

    async def scenario():
        draft = replace(model("draft"), path=tmp_path)
        drafting = Drafting(Mode.DRAFT_MODEL, draft=str(draft.path), n_max=4)
        stored = [recommend(drafting, limits=limits.to_json())]
        scene = Scene(FakeMlx(), models=(ALPHA, draft), stored=stored)
        async with scene.opened() as supervisor:
            assert (await asked(supervisor, GREEDY_REQUEST))[0] == (drafting, None)
            async with AsyncExitStack() as stack:
                for request in requests:
                    lease = await stack.enter_async_context(await supervisor.lease(request))
                assert (lease.drafting, lease.fields) == (OFF, {"num_draft_tokens": 0})
                assert lease.limit is not None
            await traffic(scene, supervisor, 6, 4, 500)
            assert len(scene.backend.running) == 1

    run(scenario())


def answered(lease: ServerLease, tokens: int) -> None:
    """End a request."""
    lease.answered(tokens)
    lease.give_back()


async def later(scene: Scene, supervisor: Supervisor, seconds: float) -> None:
    """Let time pass, and the loop look and plan."""
    scene.clock.now_s += seconds
    planned = supervisor._reconciler.planned_at_s
    supervisor._reconciler._kicked.set()
    await until(lambda: supervisor._reconciler.planned_at_s > planned or seconds < 30.0)


async def traffic(scene: Scene, supervisor: Supervisor, rounds: int, at_once: int, tokens: int) -> None:
    """Rounds of requests at once, one each 31 s."""
    for _ in range(rounds):
        leases = [await supervisor.lease(wanted()) for _ in range(at_once)]
        for lease in leases:
            answered(lease, tokens)
        await later(scene, supervisor, 31.0)


def test_a_burst_starts_no_server():
    """Twenty requests at once, and long answers; then what is usual."""

    async def scenario():
        scene = limited(ALONE)
        async with scene.opened() as supervisor:
            await traffic(scene, supervisor, 1, 20, 2000)
            await traffic(scene, supervisor, 8, 1, 500)
            assert [d for _, d, _ in scene.backend.asked] == [LOOKUP]
            assert supervisor.status()["beyond_limits"] == {"alpha-1b": {"concurrent": 19}}

    run(scenario())


def test_a_burst_each_quarter_of_an_hour_starts_no_server():
    """What came before the pause is not the beginning of anything."""

    async def scenario():
        scene = limited(ALONE)
        async with scene.opened() as supervisor:
            for _ in range(5):
                await traffic(scene, supervisor, 1, 4, 500)
                await later(scene, supervisor, 700.0)
            assert [d for _, d, _ in scene.backend.asked] == [LOOKUP]

    run(scenario())


def test_lasting_traffic_beyond_a_limit_starts_off_where_it_fits():
    """After a minute of several at once the plan has a server without drafting too, and says why."""

    async def scenario():
        scene = limited(ALONE)
        async with scene.opened() as supervisor:
            await traffic(scene, supervisor, 6, 4, 500)
            assert [d for _, d, _ in scene.backend.asked] == [LOOKUP, OFF]
            await until(lambda: len(scene.backend.running) == 2)
            assert await asked(supervisor, *2 * [wanted()]) == [(LOOKUP, None), (OFF, Limit.CONCURRENT)]
            (part,) = supervisor.plan()["models"]
            assert 0.5 < part["beyond_limits"] < 0.8
            assert "beyond the measured limits" in part["reason"]
            assert part["shares"] == {"coding": 1.0}
            # Nothing is switched to and fro afterwards, with a pause or without.
            await traffic(scene, supervisor, 10, 1, 500)
            await traffic(scene, supervisor, 10, 4, 500)
            await later(scene, supervisor, 700.0)
            await traffic(scene, supervisor, 3, 4, 500)
            assert len(scene.backend.asked) == 2

    run(scenario())


def test_where_two_servers_do_not_fit_the_better_one_is_kept():
    """Nearly all of the traffic is beyond the limit: one server, without drafting, and it is not switched back."""

    async def scenario():
        scene = limited(ALONE)
        scene.stored[0] = recommend(LOOKUP, limits=ALONE.to_json(), speedup=1.1)
        scene.limit(400)
        async with scene.opened() as supervisor:
            await traffic(scene, supervisor, 10, 8, 500)
            await until(lambda: [s.drafting for s in scene.backend.running] == [OFF])
            await traffic(scene, supervisor, 10, 8, 500)
            assert [d for _, d, _ in scene.backend.asked] == [LOOKUP, OFF]
            assert await asked(supervisor, *2 * [wanted()]) == [(OFF, None), (OFF, Limit.CONCURRENT)]

    run(scenario())


def test_a_limit_that_no_longer_holds_is_forgotten_with_it():
    """A new proof has no such limit: what came before is traffic like any other, and the drafting is served at once."""

    async def scenario():
        scene = limited(GREEDY)
        scene.limit(400)
        async with scene.opened() as supervisor:
            await traffic(scene, supervisor, 20, 2, 2000)
            await until(lambda: [s.drafting for s in scene.backend.running] == [OFF])
            scene.learn(recommend(LOOKUP, speedup=1.5))
            await supervisor.refresh()
            await traffic(scene, supervisor, 1, 1, 10)
            await until(lambda: [s.drafting for s in scene.backend.running] == [LOOKUP])
            (part,) = supervisor.plan()["models"]
            assert part["beyond_limits"] == 0.0
            assert "beyond the measured limits" not in part["reason"]

    run(scenario())


def test_a_model_that_was_unloaded_starts_with_what_its_traffic_needs():
    """Most of it was beyond the limit, and what it was like is not forgotten: one launch, without drafting."""

    async def scenario():
        scene = limited(ALONE)
        scene.limit(400)
        async with scene.opened() as supervisor:
            await traffic(scene, supervisor, 10, 8, 500)
            await until(lambda: [s.drafting for s in scene.backend.running] == [OFF])
            await later(scene, supervisor, 1000.0)
            await until(lambda: not scene.backend.running)
            assert await asked(supervisor, wanted()) == [(OFF, None)]
            assert [d for _, d, _ in scene.backend.asked] == [LOOKUP, OFF, OFF]

    run(scenario())


@pytest.mark.parametrize(
    ("backend", "args", "temperature"),
    [
        ("llama-server", (), 0.8),
        ("mlx", (), 0.0),
        ("mlx", ("--temp=0.6",), 0.6),
        ("llama-server", ("--temp", "0.2", "-t", "1", "--temp", "0.3"), 0.3),
        ("llama-server", ("--temperature", "1"), 1.0),
        ("llama-server", ("--temp", "warm"), 0.8),
        ("llama-server", ("--temp",), 0.8),
    ],
)
def test_the_temperature_of_requests_that_name_none(backend, args, temperature):
    """The user's last flag, else the server's own default."""
    assert default_temperature(backend, args) == temperature


def test_the_model_s_own_temperature_comes_before_the_server_s():
    """llama-server takes `general.sampling.temp` from the file, where no flag is given."""
    assert default_temperature("llama-server", (), 0.6) == 0.6
    assert default_temperature("llama-server", ("--temp", "0.2"), 0.6) == 0.2


def test_where_off_does_not_fit_requests_stay():
    """Two at once are a small part of the time: the drafting is kept, and the second request says so."""

    async def scenario():
        scene = limited(ALONE)
        scene.limit(400)
        async with scene.opened() as supervisor:
            for _ in range(10):
                await traffic(scene, supervisor, 1, 1, 5000)
                await traffic(scene, supervisor, 1, 2, 50)
            assert [d for _, d, _ in scene.backend.asked] == [LOOKUP]
            assert await asked(supervisor, *2 * [wanted()]) == [(LOOKUP, None), (LOOKUP, Limit.CONCURRENT)]

    run(scenario())


def test_the_length_of_prompts_is_learned():
    """A model with two bytes per token: what seems short is long."""

    async def scenario():
        scene = limited(SHORT)
        request = replace(GREEDY_REQUEST, prompt=prompt_of(text_bytes=12_000))
        async with scene.opened() as supervisor:
            assert await asked(supervisor, request) == [(LOOKUP, None)]
            for _ in range(3):
                lease = await supervisor.lease(request)
                lease.answered(10, 6000)
                lease.give_back()
            assert await asked(supervisor, request) == [(LOOKUP, Limit.CONTEXT)]
            ids = replace(GREEDY_REQUEST, prompt=prompt_of(token_ids=5000))
            assert await asked(supervisor, ids) == [(LOOKUP, Limit.CONTEXT)]

    run(scenario())


def test_each_answer_to_one_request_counts():
    """`n: 3`, or three prompts: the server writes three at once, as for three requests."""
    three = replace(GREEDY_REQUEST, answers=3)

    async def scenario():
        scene = limited(IN_PAIRS)
        async with scene.opened() as supervisor:
            assert await asked(supervisor, three) == [(LOOKUP, Limit.CONCURRENT)]
            async with await supervisor.lease(three) as alone:
                assert alone.concurrent == 3
                async with await supervisor.lease(GREEDY_REQUEST) as beside:
                    assert (beside.limit, beside.concurrent) == (Limit.CONCURRENT, 4)
                assert alone.concurrent == 4
            assert await asked(supervisor, GREEDY_REQUEST) == [(LOOKUP, None)]

    run(scenario())


def test_a_lease_knows_its_conditions():
    """The most requests at once while it lasted, and the temperature that the server used."""

    async def scenario():
        scene = limited(IN_PAIRS)
        async with scene.opened() as supervisor:
            first = await supervisor.lease(wanted())
            second = await supervisor.lease(HOT)
            second.give_back()
            third = await supervisor.lease(GREEDY_REQUEST)
            assert [first.concurrent, second.concurrent, third.concurrent] == [2, 2, 2]
            assert [first.temperature, second.temperature, third.temperature] == [0.8, 0.9, 0.0]
            first.give_back()
            third.give_back()
            async with await supervisor.lease(wanted(kind=PromptType.CHAT)) as alone:
                assert alone.concurrent == 1

    run(scenario())
