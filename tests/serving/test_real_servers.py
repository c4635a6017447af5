"""The supervisor with real embedded servers on the tiny model: start, switch, death, idleness, the end."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from autospec.backends.llama_cpp.embedded import Embedded
from autospec.catalog.scan import scan
from autospec.cells import Cell, PromptType
from autospec.drafting import OFF, Drafting, Mode
from autospec.hardware import identify
from autospec.proxy.serve import open_supervisor
from autospec.recommendations import Recommendation, Status, Verdict
from autospec.serving.dispatch import Lease, RouteRequest
from autospec.serving.supervisor import Supervisor
from autospec.settings import Settings, load_settings
from autospec.store.database import open_store
from tests.backends.waiting import gone
from tests.serving.scene import prompt_of

LOOKUP = Drafting(Mode.NGRAM_MOD, ngram_n=4, n_max=8, n_min=0)
DEADLINE_S = 90.0
WANTED = RouteRequest("main", prompt_of(PromptType.CODING))
BODY = {"messages": [{"role": "user", "content": "Say something."}], "max_tokens": 200, "temperature": 0}


@pytest.fixture
def settings(only_model: Path) -> Settings:
    """A home with one model, served by the embedded backend."""
    overrides = {"model_dirs": [only_model], "backend": "embedded", "server_args": ["-c", "2048", "-t", "1"]}
    return load_settings(overrides=overrides)


def recommend(settings: Settings, drafting: Drafting) -> None:
    """Store a recommendation for coding, as a tune would."""
    model, hardware = scan(settings).find("main"), identify()
    build = Embedded(settings.state_dir).capabilities().build
    cell = Cell(model.ref, PromptType.CODING, build, hardware, settings.server_args)
    found = Recommendation(
        model.name, str(model.path), "embedded", build.version, PromptType.CODING, Verdict.ENABLE, drafting, drafting,
        20.0, 60.0, 3.0, (2.0, 4.0), 8, 0.9, "Because.", Status.PROVEN, "2026-11-20T10:00:00+00:00",
        {"settings": list(settings.server_args)},
    )  # fmt: skip
    store = open_store(settings.storage)
    store.save_recommendation(found, hardware, cell)
    store.close()


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Supervisor]:
    """The supervisor, closed at the end; nothing of it lives on."""
    pids: set[int] = set()
    async with await open_supervisor(settings) as supervisor:
        try:
            yield supervisor
        finally:
            pids |= {pid for row in supervisor.status()["launches"] for pid in row["pids"]}
    assert gone(pids)
    assert not list((settings.state_dir / "launches").glob("*.json"))


async def ask(lease: Lease) -> dict[str, Any]:
    """One answer of a leased server."""
    async with httpx.AsyncClient(trust_env=False, timeout=DEADLINE_S) as client:
        answer = await client.post(f"{lease.base_url}/v1/chat/completions", json=BODY)
    return answer.raise_for_status().json()


async def until(true: Any) -> None:
    """Poll until something holds; fail when the deadline has passed."""
    async with asyncio.timeout(DEADLINE_S):
        while not true():  # noqa: ASYNC110 - what is waited for tells nobody
            await asyncio.sleep(0.02)


def run(scenario: Coroutine[Any, Any, None]) -> None:
    """Play a scenario to its end."""
    asyncio.run(scenario)


def test_a_new_recommendation_takes_over_while_requests_are_answered(settings):
    """Started on demand without drafting; the tuned drafting takes over beside it, and the old server ends its answers."""

    async def scenario():
        async with opened(settings) as supervisor:
            async with await supervisor.lease(WANTED) as lease:
                assert lease.drafting == OFF
                answer = await ask(lease)
                assert "draft_n" not in answer["timings"]
                assert answer["model"] == "main"
                lease.answered(100_000)  # enough for a switch to pay
            old = await supervisor.lease(WANTED)
            recommend(settings, LOOKUP)
            await until(lambda: LOOKUP in supervisor.offered()[0].running)
            async with await supervisor.lease(WANTED) as new:
                assert new.drafting == LOOKUP
                both = await asyncio.gather(ask(old), ask(new))
                assert all(answer["choices"] for answer in both)
            old.give_back()
            await until(lambda: supervisor.offered()[0].running == (LOOKUP,))
            await until(lambda: len(supervisor.status()["launches"]) == 1)

    run(scenario())


def test_kill_9_in_mid_answer(settings):
    """The request breaks; asked again, the model has a new server, and the dead one left no record."""

    async def scenario():
        async with opened(settings) as supervisor:
            lease = await supervisor.lease(WANTED)
            (row,) = supervisor.status()["launches"]
            asked = asyncio.create_task(ask(lease))
            await asyncio.sleep(0)
            for pid in row["pids"]:
                os.kill(pid, signal.SIGKILL)
            with pytest.raises(httpx.HTTPError):
                await asked
            lease.died()
            lease.give_back()
            async with await supervisor.lease(WANTED) as again:
                assert again.base_url != lease.base_url
                assert (await ask(again))["choices"]

    run(scenario())


def test_idle_servers_stop(settings):
    """Unused for as long as the setting says, it is gone; a request brings it back."""

    async def scenario():
        short = load_settings(
            overrides={
                "model_dirs": list(settings.model_dirs),
                "backend": "embedded",
                "server_args": list(settings.server_args),
                "idle_unload": "1s",
            }
        )
        async with opened(short) as supervisor:
            async with await supervisor.lease(WANTED):
                (row,) = supervisor.status()["launches"]
            await until(lambda: not supervisor.status()["launches"])
            assert gone(row["pids"])
            async with await supervisor.lease(WANTED) as lease:
                assert (await ask(lease))["choices"]

    run(scenario())
