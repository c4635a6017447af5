"""A proxy in a thread of its own, over servers that the test chooses: real clients then ask it from the test's thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pytest

from autospec.cells import PromptType
from autospec.drafting import OFF, Drafting
from autospec.errors import AutospecError, UnknownModelError
from autospec.proxy.app import Rules
from autospec.proxy.request import Classify
from autospec.proxy.serve import ListeningProxy, listen
from autospec.serving.dispatch import FollowedAnswer, Limit, Offered, RouteRequest, WhyOff

START_TIMEOUT_S = 30.0

# For tests of what the two loops do differently: uvloop's transports raise where asyncio's only warn.
on_both_loops = pytest.mark.parametrize("loop", ["asyncio", "uvloop"], indirect=True)


@dataclass
class LentServer:
    """A lease on a server that runs already."""

    base_url: str
    model: str = "main"
    backend: str = "llama-server"
    build: str = "b1"
    drafting: Drafting = OFF
    likely: frozenset[PromptType | None] = frozenset()
    fields: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    limit: Limit | None = None
    why_off: Mapping[PromptType | None, WhyOff] = field(default_factory=dict)
    why_else: WhyOff | None = None
    concurrent: int = 1
    temperature: float | None = None
    keeps_cache: bool = True
    deaths: int = 0
    tokens: float = 0
    prompt_tokens: int = 0
    leases: int = 0
    returned: int = 0
    followed: FollowedAnswer | None = None

    def died(self) -> None:
        """Counted."""
        self.deaths += 1

    def follow(self, answer: FollowedAnswer) -> None:
        """Remembered."""
        self.followed = answer

    def answered(self, tokens: float, prompt_tokens: int | None = None) -> None:
        """Counted."""
        self.tokens += tokens
        self.prompt_tokens += prompt_tokens or 0

    async def __aenter__(self) -> Self:
        self.leases += 1
        return self

    async def __aexit__(self, *_error: object) -> None:
        self.returned += 1


@dataclass
class OneModel:
    """A `Dispatch` of one model: each lease takes the next of its servers, the last one for ever."""

    servers: Sequence[LentServer]
    aliases: tuple[str, ...] = ()
    running: bool = True
    refusal: AutospecError | None = None
    wanted: list[RouteRequest] = field(default_factory=list)
    closed: bool = False

    async def lease(self, wanted: RouteRequest) -> LentServer:
        """The next server."""
        self.wanted.append(wanted)
        if self.refusal is not None:
            raise self.refusal
        name = self.servers[0].model
        if wanted.model.lower() not in {name.lower(), *(a.lower() for a in self.aliases)}:
            raise UnknownModelError(f"There is no model {wanted.model}.", "Look.", known=(name,))
        return self.servers[min(len(self.wanted), len(self.servers)) - 1]

    def offered(self) -> Sequence[Offered]:
        """The one model."""
        server = self.servers[0]
        running = (server.drafting,) if self.running else ()
        return [Offered(server.model, self.aliases, server.backend, running, 1000)]

    def plan(self) -> dict[str, Any]:
        """A document."""
        return {"schema": 1, "launches": []}

    def status(self) -> dict[str, Any]:
        """A document."""
        return {"launches": []}

    async def close(self) -> None:
        """Remembered."""
        self.closed = True


@dataclass
class LoadingModel(OneModel):
    """A model that loads until the test says so; then it is lent, or refused by `refusal`."""

    loaded: threading.Event = field(default_factory=threading.Event)
    given_up: int = 0

    async def lease(self, wanted: RouteRequest) -> LentServer:
        """Wait, then as `OneModel`."""
        try:
            while not self.loaded.is_set():  # noqa: ASYNC110 - set by another thread
                await asyncio.sleep(0.005)
        except asyncio.CancelledError:
            self.given_up += 1
            raise
        return await super().lease(wanted)


class Loop:
    """An event loop in a thread, for what must run while the test's thread waits.

    Args:
        new_event_loop: Makes it.
    """

    def __init__(
        self, new_event_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    ) -> None:
        self.loop = new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, coroutine: Any) -> Any:
        """Run a coroutine there and wait for its result."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(START_TIMEOUT_S)

    def close(self) -> None:
        """End it."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(START_TIMEOUT_S)
        self.loop.close()


def no_type(_document: Mapping[str, Any]) -> None:
    """A classifier that knows nothing."""


@contextmanager
def proxy_over(
    loop: Loop,
    dispatch: Any,
    storage: Path,
    *,
    rules: Rules | None = None,
    classify: Classify = no_type,
    serving: Callable[[], AbstractContextManager[None]] = nullcontext,
    host: str = "127.0.0.1",
    port: int = 0,
) -> Iterator[ListeningProxy]:
    """A running proxy, on a free port unless one is given."""
    context = listen(
        dispatch,
        rules or Rules(),
        host=host,
        port=port,
        storage=f"sqlite:///{storage}",
        classify=classify,
        serving=serving,
        grace_s=1.0,
    )
    listening = loop.run(context.__aenter__())
    try:
        yield listening
    finally:
        loop.run(context.__aexit__(None, None, None))
