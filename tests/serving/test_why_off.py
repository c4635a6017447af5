"""Why a request gets no drafting: each value of `WhyOff`, where it is decided, and which one a lease tells."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from autospec.cells import PromptType
from autospec.drafting import OFF, Drafting, Mode
from autospec.errors import LaunchError
from autospec.recommendations import LimitCheck, Limits, LimitVerdict, Status, Verdict
from autospec.serving.advice import FAILED_LAUNCH, AdviceKey, known_of, without_drafting
from autospec.serving.dispatch import OFF_BECAUSE, WhyOff
from autospec.serving.plan import make_plan
from autospec.serving.plan_inputs import advice_from
from tests.serving.scene import (
    ALPHA,
    ARGS,
    BUILD,
    HERE,
    LOOKUP,
    Scene,
    prompt_of,
    recommend,
    states,
    until,
    wanted,
)
from tests.serving.test_plan import AMPLE, CODER, needs, possible

PLACE = AdviceKey(HERE, BUILD, ARGS)
TRUST = frozenset({Status.PROVEN, Status.STALE})
DRAFTED = Drafting(Mode.DRAFT_MODEL, draft="/gone.gguf", n_max=8)
CODING = wanted()
MARK = {"build": BUILD.version, "fingerprint": BUILD.fingerprint, "error": "No."}


def known(*stored):
    """What is known of alpha, whose draft models do not exist."""
    return known_of(ALPHA, PLACE, stored, TRUST, exists=lambda _: False)


def undecided():
    """A proof that found no gain."""
    entry = recommend(OFF)
    return replace(entry, recommendation=replace(entry.recommendation, verdict=Verdict.UNDECIDED))


@pytest.mark.parametrize(
    ("stored", "why"),
    [
        ([], WhyOff.NOT_TUNED),
        ([recommend(LOOKUP, PromptType.CHAT)], WhyOff.TYPE_NOT_MEASURED),
        ([recommend(OFF)], WhyOff.DISABLE),
        ([undecided()], WhyOff.UNDECIDED),
        ([recommend(LOOKUP, status=Status.IMPORTED)], WhyOff.STATUS),
        ([recommend(DRAFTED)], WhyOff.DRAFT_MISSING),
        ([recommend(LOOKUP, **{FAILED_LAUNCH: MARK})], WhyOff.FAILED_LAUNCH),
        ([recommend(LOOKUP)], None),
        ([recommend(OFF, None)], WhyOff.DISABLE),
        ([recommend(LOOKUP, None)], None),
        ([recommend(LOOKUP, None), recommend(OFF)], WhyOff.DISABLE),
    ],
)
def test_what_the_recommendations_say(stored, why):
    """Of coding; a recommendation for any type fills the gaps."""
    advice = known(*stored)
    assert advice.why_off.get(PromptType.CODING) is why
    by_hand = without_drafting(advice, "2026-11-29")
    assert by_hand.why_off == OFF_BECAUSE[WhyOff.BY_HAND]


def test_every_type_has_a_drafting_or_a_reason():
    """Also a prompt whose type is not known; before the first look at the database, too."""
    advice = known(recommend(LOOKUP), recommend(OFF, PromptType.CHAT))
    assert set(advice.why_off) == {*PromptType, None} - {PromptType.CODING}
    assert advice.why_off[None] is WhyOff.TYPE_NOT_MEASURED
    assert known().why_off == OFF_BECAUSE[WhyOff.NOT_TUNED]


def test_what_the_plan_adds():
    """Coding has a drafting that is not used: another server is kept, or its own may not be launched now."""
    why = {PromptType.CHAT: WhyOff.DISABLE, None: WhyOff.TYPE_NOT_MEASURED}
    others = dict.fromkeys(PromptType, WhyOff.TYPE_NOT_MEASURED) | why
    del others[PromptType.CODING]
    used = make_plan([needs(why_off=others)], AMPLE).models[0]
    assert CODER in used.launches
    assert PromptType.CODING not in used.why_off
    rare = needs(why_off=others, tokens_per_s={PromptType.CODING: 0.001}, running=(OFF,))
    kept = make_plan([rare], AMPLE).models[0]
    assert (kept.launches, kept.why_off[PromptType.CODING]) == ((OFF,), WhyOff.PLAN)
    assert kept.why_off[PromptType.CHAT] is WhyOff.DISABLE
    failing = make_plan([replace(rare, possible=(possible(OFF),))], AMPLE).models[0]
    assert failing.why_off[PromptType.CODING] is WhyOff.FAILED_LAUNCH
    assert failing.to_json()["why_off"]["coding"] == "failed-launch"
    assert "None" not in failing.to_json()["why_off"]


def test_a_lease_tells_the_request_s_own_reason():
    """A server that starts, a client that asks for off, a limit, a person; none while it drafts."""
    slower = LimitCheck(8192, 0.7, (0.6, 0.8), 8, LimitVerdict.SLOWER)
    limits = Limits(context=(slower,), deepest_context=4096)
    long = replace(wanted(), prompt=prompt_of(text_bytes=30_000))

    async def scenario():
        scene = Scene(stored=[recommend(LOOKUP, limits=limits.to_json())])
        async with scene.opened() as supervisor:

            async def why(request=CODING):
                async with await supervisor.lease(request) as lease:
                    assert (lease.why_else is not None) is lease.drafting.is_off
                    return lease.why_off.get(PromptType.CODING, lease.why_else)

            scene.backend.hold.clear()
            first = asyncio.create_task(supervisor.lease(wanted()))
            await until(lambda: states(supervisor) == {f"alpha-1b {LOOKUP.label}": "starting"})
            scene.backend.hold.set()
            (await first).give_back()
            assert await why() is None
            assert await why(wanted(off=True)) is WhyOff.ASKED
            assert await why(long) is WhyOff.LIMIT
            await supervisor.switch_drafting("alpha", off=True)
            await until(lambda: states(supervisor) == {"alpha-1b off": "ready"})
            assert await why() is WhyOff.BY_HAND
            assert supervisor.plan()["models"][0]["why_off"]["coding"] == "by-hand"
            scene.backend.hold.clear()
            await supervisor.switch_drafting("alpha", off=False)
            await until(lambda: "starting" in states(supervisor).values())
            assert await why() is WhyOff.NOT_READY
            scene.backend.hold.set()

    asyncio.run(scenario())


def test_a_server_that_gave_way_to_off_is_not_said_to_start():
    """For ten minutes after another client asked for off, where two servers do not fit; then the plan's server starts."""

    async def scenario():
        scene = Scene(stored=[recommend(LOOKUP)])
        scene.limit(400)
        async with scene.opened() as supervisor:

            async def why():
                async with await supervisor.lease(CODING) as lease:
                    return lease.drafting, lease.why_off.get(PromptType.CODING, lease.why_else)

            assert await why() == (LOOKUP, None)
            (await supervisor.lease(wanted(off=True))).give_back()
            assert states(supervisor) == {"alpha-1b off": "ready"}
            assert await why() == (OFF, WhyOff.PLAN)

    asyncio.run(scenario())


def test_a_drafting_whose_server_does_not_start_says_so():
    """At once, before its recommendation is marked, and for a reason that passes."""

    async def scenario():
        scene = Scene(stored=[recommend(LOOKUP)])
        scene.backend.refuses[LOOKUP] = LaunchError("The port is taken.")
        async with scene.opened() as supervisor, await supervisor.lease(wanted()) as lease:
            assert lease.why_off[PromptType.CODING] is WhyOff.FAILED_LAUNCH

    asyncio.run(scenario())


def test_an_enable_without_a_gain_is_not_planned():
    """The plan cannot weigh it, as where its energy is unknown: another server is kept."""
    entry = recommend(LOOKUP, speedup=2.0)
    advice = advice_from([replace(entry.recommendation, speedup=None)])
    part = make_plan([needs(advice=advice, why_off={})], AMPLE).models[0]
    assert part.why_off[PromptType.CODING] is WhyOff.PLAN
