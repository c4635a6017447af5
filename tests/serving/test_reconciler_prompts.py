"""Which prompts are read before a server is lent: only those whose type or length chooses the server or the drafting."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from autospec.cells import PromptType
from autospec.recommendations import LimitCheck, Limits, LimitVerdict
from autospec.serving.dispatch import Prompt, PromptFacts
from tests.serving.scene import LOOKUP, Scene, recommend, states, until, wanted

SHORT = Limits(
    context=(LimitCheck(8192, 0.7, (0.6, 0.8), 8, LimitVerdict.SLOWER),), deepest_context=4096
).to_json()


class Unread:
    """The prompts of requests, and how many of them were read."""

    def __init__(self) -> None:
        self.read = 0

    def request(self):
        """A request for code."""
        return replace(wanted(), prompt=Prompt(self._read))

    def _read(self) -> PromptFacts:
        self.read += 1
        return PromptFacts(PromptType.CODING)


def test_facts_are_read_once():
    """Whatever asks for them again."""
    prompts = Unread()
    request = prompts.request()
    assert prompts.read == 0
    assert request.facts.prompt_type is request.facts.prompt_type is PromptType.CODING
    assert prompts.read == 1


@pytest.mark.parametrize(
    ("stored", "servers", "read"),
    [
        ([], 1, 0),
        ([recommend(LOOKUP, kind) for kind in PromptType], 1, 0),
        ([recommend(LOOKUP)], 2, 1),
        ([recommend(LOOKUP, kind, limits=SHORT) for kind in PromptType], 1, 1),
    ],
    ids=["nothing tuned", "one for all", "two servers", "a limit"],
)
def test_a_prompt_is_read_where_it_decides(stored, servers, read):
    """With one way for all prompts the request is sent first; the traffic knows its type all the same."""

    async def scenario():
        prompts = Unread()
        async with Scene(stored=stored).opened() as supervisor:
            for kind in (PromptType.CODING, PromptType.CHAT):
                async with await supervisor.lease(wanted(kind=kind)) as lease:
                    lease.answered(10_000)
            # A plan that knows of the traffic.
            supervisor._reconciler._changed()
            await until(lambda: [*states(supervisor).values()] == ["ready"] * servers)
            async with await supervisor.lease(prompts.request()):
                assert prompts.read == read
                counts = supervisor.status()["traffic"]["models"]["alpha-1b"]
            assert counts["coding"]["requests"] == pytest.approx(2, abs=0.1)
            assert prompts.read == 1

    asyncio.run(scenario())


def test_a_request_that_waits_is_read():
    """There is time, and what is not read holds the whole parsed request."""

    async def scenario():
        prompts, scene = Unread(), Scene()
        scene.backend.hold.clear()
        async with scene.opened() as supervisor:
            first = asyncio.create_task(supervisor.lease(wanted()))
            await until(lambda: scene.backend.asked)  # planned, so that the second request makes no plan
            second = asyncio.create_task(supervisor.lease(prompts.request()))
            await until(lambda: len(supervisor._reconciler.queue) == 2)
            assert prompts.read == 1
            scene.backend.hold.set()
            for lease in await asyncio.gather(first, second):
                lease.give_back()

    asyncio.run(scenario())
