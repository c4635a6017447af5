"""A launch lent for one request."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

from autospec.cells import PromptType
from autospec.drafting import Drafting
from autospec.proxy.launch import Launch, Look
from autospec.proxy.offers import Engine

__all__ = ["LaunchLease"]


class LaunchLease:
    """See `autospec.proxy.dispatch.Lease`. The launch is held from the making to the leaving.

    Args:
        launch: A launch that is `lendable`.
        engine: What it runs on.
        drafting: In force for this request.
        likely: Prompt types for which that is likely and not proven; ``None`` among them stands for any type.
        returned: Told the generated tokens, or ``None`` where nobody told them, when the lease ends.
    """

    def __init__(
        self,
        launch: Launch,
        engine: Engine,
        drafting: Drafting,
        *,
        likely: frozenset[PromptType | None] = frozenset(),
        returned: Callable[[float | None], None] = lambda _: None,
    ) -> None:
        launch.lend()
        assert launch.server is not None
        self.base_url = launch.server.base_url
        self.model = launch.model
        self.backend = engine.capabilities.build.backend
        self.build = engine.capabilities.build.version
        self.drafting = drafting
        self.likely = likely
        self.launch = launch
        self.fields: Mapping[str, Any] = engine.request_fields(drafting)
        self._returned = returned
        self._then: Callable[[], None] = lambda: None
        self._tokens: float | None = None
        self._held = True

    def when_sent(self, then: Callable[[], None]) -> None:
        """Have something done when the request is on its way, once."""
        self._then = then

    def sent(self) -> None:
        """Tell that the request is on its way."""
        then, self._then = self._then, lambda: None
        then()

    def died(self) -> None:
        """Tell that the connection broke: nobody gets this server until it is known whether it lives."""
        self.launch.send(Look(suspected=True))

    def answered(self, tokens: float) -> None:
        """Tell how many tokens were generated: what plans are made from. Optional."""
        self._tokens = tokens

    def give_back(self) -> None:
        """End the lease. Safe to call twice."""
        if self._held:
            self._held = False
            self.launch.give_back()
            self._returned(self._tokens)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.give_back()
