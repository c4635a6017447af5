"""A proxy over a real supervisor whose servers, daemon and live figures a test directs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autospec.cells import PromptType
from autospec.drafting import OFF
from autospec.measure.measurements import Sample
from autospec.proxy.app import Rules
from autospec.proxy.serve import ListeningProxy, listen
from autospec.recommendations import Recommendation
from autospec.store.database import open_store
from tests.proxy.harness import Loop, no_type
from tests.serving.scene import ALPHA, BETA, HERE, LOOKUP, Scene, model, recommend, wanted

__all__ = ["EVIL", "RESTING", "WORK", "Stage", "set_up"]

# A name that would be markup, if anything made markup of it.
EVIL = model("<img src=x onerror=document.title='hacked'>")
WORK = {
    "model": "alpha-1b",
    "prompt_type": "coding",
    "backend": "embedded",
    "cost_s": 600.0,
    "value_s_per_day": 12.0,
    "why": "its recommendation is stale: the build changed; it is used 40 min a day",
}
RESTING: dict[str, Any] = {
    "schema": 1,
    "pid": 1,
    "state": "resting",
    "why": "the last request ended 20 s ago",
    "tuning": None,
    "queue": [WORK, {**WORK, "prompt_type": "chat"}],
    "later": {},
    "spent_today_s": 1500.0,
    "budget": "2h",
    "checks": [
        {"name": "traffic", "state": "no", "allows": False, "words": "the last request ended 20 s ago"},
        {"name": "power", "state": "ok", "allows": True, "words": "on mains power"},
    ],
    "trouble": [],
    "gaps": [],
    "notes": [],
    "events": [{"at": 1_795_000_000.0, "what": "Tuned alpha-1b, chat for 600 s."}],
}


@dataclass
class Stage:
    """A proxy, its servers and its daemon, all of which the test directs.

    Attributes:
        loop: Where the proxy lives.
        scene: Its servers.
        supervisor: Over them.
        listening: The proxy.
        storage: The URL of the database that the events are read from.
        daemon: What the daemon answers; an error if none runs.
        asked: What the daemon was asked, without its status.
    """

    loop: Loop
    scene: Scene
    supervisor: Any
    listening: ListeningProxy
    storage: str
    daemon: dict[str, Any] | Exception
    asked: list[dict[str, Any]] = field(default_factory=list)

    @property
    def url(self) -> str:
        """The page."""
        return f"{self.listening.base_url}/autospec/"

    def use(self, name: str = "alpha", kind: PromptType = PromptType.CODING, *, times: int = 1) -> None:
        """Requests that are answered at once."""

        async def once() -> None:
            async with await self.supervisor.lease(wanted(name, kind)) as lease:
                lease.answered(400)

        for _ in range(times):
            self.loop.run(once())

    def hold(self, name: str = "alpha") -> Any:
        """A request that is being answered."""
        return self.loop.run(self.supervisor.lease(wanted(name)))

    def give_back(self, lease: Any) -> None:
        """It has ended."""
        self.loop.loop.call_soon_threadsafe(lease.give_back)

    def live(
        self,
        speeds_tps: list[float],
        *,
        of: str = "alpha-1b",
        kind: PromptType = PromptType.CODING,
        **facts: Any,
    ) -> None:
        """Answers with these speeds."""
        facts = {"drafting": LOOKUP, "drafted": 100, "accepted": 62} | facts
        for speed in speeds_tps:
            sample = Sample(
                time.time(), of, "embedded", "fake-1", kind, 20, 100, 10.0, 100_000 / speed, **facts
            )
            self.listening.proxy._live.add(sample)

    def store(self, *found: Recommendation) -> None:
        """Into the database that the events are read from, as a tune does."""
        store = open_store(self.storage)
        for recommendation in found:
            store.save_recommendation(
                recommendation, HERE, f"{recommendation.model} {recommendation.prompt_type}"
            )
        store.close()

    def answer(self, message: dict[str, Any]) -> dict[str, Any]:
        """The daemon."""
        if isinstance(self.daemon, Exception):
            raise self.daemon
        if message == {"ask": "status"}:
            return self.daemon
        self.asked.append(message)
        return {"event": "asked", "model": message["model"], "why": "it looks for what there is to measure"}


@contextmanager
def set_up(folder: Path, rules: Rules) -> Iterator[Stage]:
    """Two models with recommendations for the first one, and one with a hostile name."""
    loop = Loop()
    advice = [
        recommend(LOOKUP, decode_drafting_tps=52.0, decode_baseline_tps=30.0),
        recommend(OFF, PromptType.CHAT, decode_drafting_tps=24.0, decode_baseline_tps=30.0),
    ]
    scene = Scene(stored=advice, models=(ALPHA, BETA, EVIL), clock=time.monotonic)
    opened = scene.opened()
    supervisor = loop.run(opened.__aenter__())
    made: list[Stage] = []
    storage = f"sqlite:///{folder / 'autospec.db'}"
    proxy: Any = listen(
        supervisor, rules, host="127.0.0.1", port=0, storage=storage, classify=no_type, grace_s=1.0,
        ask_daemon=lambda message: made[0].answer(message),  # noqa: PLW0108 - it is made below
    )  # fmt: skip
    listening = loop.run(proxy.__aenter__())
    made.append(Stage(loop, scene, supervisor, listening, storage, dict(RESTING)))
    try:
        yield made[0]
    finally:
        loop.run(proxy.__aexit__(None, None, None))
        loop.run(opened.__aexit__(None, None, None))
        loop.close()
