"""Requests that wait for a server: first come, first served, with a limit on how many and how long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from autospec.cells import PromptType
from autospec.errors import AutospecError, OverloadedError
from autospec.serving.server_pool import LaunchLease

__all__ = ["RequestQueue", "Ticket"]


@dataclass(frozen=True, slots=True, eq=False)
class Ticket:
    """One request that wants a server.

    Attributes:
        model: Catalogue name.
        kind: As in `RouteRequest`.
        drafting_off: As in `RouteRequest`.
        since_s: When it came.
        lease: What it waits for.
    """

    model: str
    kind: Callable[[], PromptType | None]
    drafting_off: bool
    since_s: float
    lease: asyncio.Future[LaunchLease] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class RequestQueue:
    """The queue.

    Args:
        limit: Most requests in it.
        deadline_s: Longest that one stays in it.
    """

    def __init__(self, limit: int, deadline_s: float) -> None:
        self.limit = limit
        self.deadline_s = deadline_s
        self._tickets: list[Ticket] = []

    def __len__(self) -> int:
        return len(self._tickets)

    def __iter__(self) -> Iterator[Ticket]:
        return iter(tuple(self._tickets))

    def add(self, ticket: Ticket) -> None:
        """Let one more wait.

        Raises:
            OverloadedError: The queue is full.
        """
        if len(self._tickets) >= self.limit:
            raise OverloadedError(
                f"{self.limit} requests wait for a server already.", "Try again in a moment (queue_limit)."
            )
        self._tickets.append(ticket)

    def of(self, model: str) -> list[Ticket]:
        """Those that wait for one model, the oldest first."""
        return [ticket for ticket in self._tickets if ticket.model == model]

    def discard(self, ticket: Ticket) -> None:
        """Take one out that waits no longer."""
        if ticket in self._tickets:
            self._tickets.remove(ticket)

    def serve(self, lend: Callable[[Ticket], LaunchLease | None]) -> None:
        """Give servers to those that can have one now, in their order."""
        for ticket in self:
            if ticket.lease.done():  # its client went away
                self.discard(ticket)
            elif (lease := lend(ticket)) is not None:
                self.discard(ticket)
                ticket.lease.set_result(lease)

    def expire(self, now_s: float) -> None:
        """Turn away those that have waited too long."""
        for ticket in self:
            if now_s - ticket.since_s >= self.deadline_s:
                self._refuse(
                    ticket,
                    OverloadedError(
                        f"No server for {ticket.model} was free within {self.deadline_s:g} s.",
                        "Try again, or let requests wait longer (queue_deadline).",
                    ),
                )

    def refuse(self, error: AutospecError, model: str | None = None) -> None:
        """Turn away everybody, or those that wait for one model."""
        for ticket in self:
            if model in (None, ticket.model):
                self._refuse(ticket, error)

    def _refuse(self, ticket: Ticket, error: AutospecError) -> None:
        self.discard(ticket)
        if not ticket.lease.done():
            ticket.lease.set_exception(error)
