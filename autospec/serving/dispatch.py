"""The seam of the proxy: the data path asks for a running server, the supervisor lends one. Values and protocols, no I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

from autospec.cells import PromptType
from autospec.drafting import Drafting

__all__ = ["Dispatch", "Lease", "Offered", "RouteRequest"]


@dataclass(frozen=True, slots=True)
class RouteRequest:
    """What one request needs.

    Attributes:
        model: As the client named it: a catalogue name, an alias or an unambiguous part of one.
        prompt_type: By header or classifier; ``None`` where the request has no prompt (``/tokenize``).
        drafting_off: True if the client's header asks for no drafting.
    """

    model: str
    prompt_type: PromptType | None = None
    drafting_off: bool = False


@dataclass(frozen=True, slots=True)
class Offered:
    """One model that clients may ask for.

    Attributes:
        name: The id in ``/v1/models``.
        aliases: Other names that find it.
        backend: What would serve it.
        running: Draftings of its launches that run now.
        size_bytes: Of its files.
        fingerprint: Of its file's metadata: copies of one file count as one model. Empty for a model that has none.
    """

    name: str
    aliases: tuple[str, ...]
    backend: str
    running: tuple[Drafting, ...] = ()
    size_bytes: int = 0
    fingerprint: str = ""


class Lease(Protocol):
    """A server lent for one request. An async context manager: leaving it gives the server back.

    While a lease is held its server is not stopped, unless it dies or the proxy ends.
    """

    @property
    def base_url(self) -> str:
        """``http://127.0.0.1:PORT`` without a final slash."""

    @property
    def model(self) -> str:
        """Catalogue name."""

    @property
    def backend(self) -> str:
        """Backend name."""

    @property
    def build(self) -> str:
        """The build's own name."""

    @property
    def drafting(self) -> Drafting:
        """What is in force for this request."""

    @property
    def likely(self) -> frozenset[PromptType | None]:
        """Prompt types for which the drafting is likely and not proven; ``None`` among them stands for any type."""

    @property
    def fields(self) -> Mapping[str, Any]:
        """Fields that the request's JSON must carry, for backends that take drafting per request; mostly empty."""

    def died(self) -> None:
        """Tell that the connection broke: the supervisor looks whether the process lives, and replaces it."""

    def answered(self, tokens: float) -> None:
        """Tell how many tokens were generated; plans count with them. Optional: else the time held stands for them."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Dispatch(Protocol):
    """What the data path knows of the supervisor."""

    async def lease(self, wanted: RouteRequest) -> Lease:
        """The best running server for a request, started first where none runs.

        Raises:
            UnknownModelError: No model answers to the name; carries the names that exist.
            ModelChoiceError: Several do.
            OverloadedError: The queue is full, or the deadline passed before a server was free; try later.
            LaunchError: It does not start, not even without drafting.
        """

    def offered(self) -> Sequence[Offered]:
        """Every model that may be asked for, in the catalogue's order."""

    def plan(self) -> dict[str, Any]:
        """The document of ``GET /autospec/v1/plan``: which launches are kept, and why."""

    def status(self) -> dict[str, Any]:
        """The document of ``GET /autospec/v1/status``: launches with state, use, memory; queues."""

    async def close(self) -> None:
        """Drain within a bound, then stop every server."""
