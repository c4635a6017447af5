"""Requests that wait for a server, in order of arrival, with a maximum number and a maximum wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass, field

from autospec.errors import AutospecError, OverloadedError
from autospec.serving.dispatch import RouteRequest
from autospec.serving.server_pool import ServerLease

__all__ = ["RequestQueue", "WaitingRequest"]


@dataclass(frozen=True, slots=True, eq=False)
class WaitingRequest:
    """A request in the queue; `lease` gets a server, or the error that ends the wait."""

    request: RouteRequest
    since_s: float
    lease: asyncio.Future[ServerLease] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class RequestQueue:
    """At most `limit` requests, each for at most `deadline_s`."""

    def __init__(self, limit: int, deadline_s: float) -> None:
        self.limit = limit
        self.deadline_s = deadline_s
        self._waiting: list[WaitingRequest] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[WaitingRequest]:
        return iter(tuple(self._waiting))

    def add(self, waiting: WaitingRequest) -> None:
        """Append a request; raises `OverloadedError` if the queue is full."""
        if len(self._waiting) >= self.limit:
            raise OverloadedError(
                f"{self.limit} requests are already waiting for a server.",
                "Try again in a moment, or raise the setting queue_limit.",
            )
        self._waiting.append(waiting)

    def of(self, model: str) -> list[WaitingRequest]:
        """Requests for one model, the oldest first."""
        return [waiting for waiting in self._waiting if waiting.request.model == model]

    def discard(self, waiting: WaitingRequest) -> None:
        """Remove a request that no longer waits."""
        if waiting in self._waiting:
            self._waiting.remove(waiting)

    def serve(self, lend: Callable[[RouteRequest], ServerLease | None]) -> None:
        """Lend a server to every request that can have one now, in order."""
        for waiting in self:
            if waiting.lease.done():  # its client disconnected
                self.discard(waiting)
            elif (lease := lend(waiting.request)) is not None:
                self.discard(waiting)
                waiting.lease.set_result(lease)

    def expire(self, now_s: float) -> None:
        """Refuse the requests that have waited too long."""
        for waiting in self:
            if now_s - waiting.since_s >= self.deadline_s:
                self._refuse(
                    waiting,
                    OverloadedError(
                        f"No server for {waiting.request.model} was free within {self.deadline_s:g} s.",
                        "Try again, or raise the setting queue_deadline.",
                    ),
                )

    def refuse(
        self,
        error: AutospecError,
        model: str | None = None,
        *,
        only: Callable[[RouteRequest], bool] = lambda _: True,
    ) -> None:
        """Refuse all requests, or those for one model, or some of them."""
        for waiting in self:
            if model in (None, waiting.request.model) and only(waiting.request):
                self._refuse(waiting, error)

    def _refuse(self, waiting: WaitingRequest, error: AutospecError) -> None:
        self.discard(waiting)
        if not waiting.lease.done():
            waiting.lease.set_exception(copy(error))  # each raise would add its frames to a shared one
