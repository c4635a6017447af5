"""The interface between the proxy's data path, which asks for a server, and the supervisor, which lends one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final, Protocol, Self

from autospec.cells import PromptType
from autospec.drafting import Drafting

__all__ = [
    "OFF_BECAUSE",
    "Dispatch",
    "FollowedAnswer",
    "Lease",
    "Limit",
    "Offered",
    "Prompt",
    "PromptFacts",
    "RouteRequest",
    "WhyOff",
]


class Limit(StrEnum):
    """The limit of a recommendation that a request is beyond, see `autospec.recommendations.Limits`."""

    CONCURRENT = "concurrent"
    CONTEXT = "context"
    TEMPERATURE = "temperature"


class WhyOff(StrEnum):
    """Why a request is answered without drafting: the values of ``x-autospec-why``."""

    # Of the model's recommendations.
    NOT_TUNED = "not-tuned"  # there are none
    TYPE_NOT_MEASURED = "type-not-measured"  # there are others, for other prompt types
    DISABLE = "disable"  # their verdict
    UNDECIDED = "undecided"  # likewise
    STATUS = "status"  # which `serve_statuses` does not allow
    DRAFT_MISSING = "draft-missing"  # its file does not exist
    BY_HAND = "by-hand"  # a person has switched drafting off
    # Of the plan, where drafting is recommended.
    FAILED_LAUNCH = "failed-launch"  # its server does not start, or keeps dying
    PLAN = "plan"  # the plan keeps another server: see its reason
    # Of the request.
    ASKED = "asked"  # by the client
    LIMIT = "limit"  # it is beyond the one that ``x-autospec-limit`` names
    IMAGE = "image"  # only the server without drafting can see
    NOT_READY = "not-ready"  # the server with drafting still starts


# Each reason for every prompt type.
OFF_BECAUSE: Final[Mapping[WhyOff, Mapping[PromptType | None, WhyOff]]] = MappingProxyType(
    {why: MappingProxyType(dict.fromkeys((*PromptType, None), why)) for why in WhyOff}
)


@dataclass(frozen=True, slots=True)
class PromptFacts:
    """What a prompt is like.

    Attributes:
        prompt_type: By header or classifier; ``None`` if the classifier failed.
        text_bytes: Length of its text in UTF-8.
        token_ids: Number of its tokens that the client gave as ids.
    """

    prompt_type: PromptType | None = None
    text_bytes: int = 0
    token_ids: int = 0


class Prompt:
    """A prompt whose facts are read when they are first asked for.

    Reading takes longer than all else on the way to a server. Where every prompt gets the same server and drafting, a request is
    sent first, and its prompt is read while the server works.
    """

    __slots__ = ("_facts", "_read")

    def __init__(self, read: Callable[[], PromptFacts]) -> None:
        """Call `read` at most once."""
        self._read: Callable[[], PromptFacts] | None = read
        self._facts = PromptFacts()

    @property
    def facts(self) -> PromptFacts:
        """Its facts. After the first time the request's document is no longer held."""
        if self._read is not None:
            self._facts, self._read = self._read(), None
        return self._facts

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Prompt) and self.facts == other.facts

    def __hash__(self) -> int:
        return hash(self.facts)


@dataclass(frozen=True, slots=True)
class RouteRequest:
    """What the data path asks a server for.

    Attributes:
        model: The client's name for it: a catalogue name, an alias or an unambiguous part of one.
        prompt: ``None`` where the request has none (``/tokenize``).
        drafting_off: True if the client's header asks for no drafting.
        temperature: As the client asks for; ``None`` for the server's default.
        is_probe: True for a health check, a dashboard or a page of a running server, which is no use of its model.
        waited_s: How long the request has already waited for a server that then broke.
        images: True if the prompt has an image, a sound or a video, which takes a server with a projector.
        embeds: True if it asks for embeddings, or for texts to be ranked.
        answers: How many answers it asks for, which the server writes at once.
        sets_drafting: True if its fields may change the server's drafting.
        number: The same for all attempts at one request.
    """

    model: str
    prompt: Prompt | None = None
    drafting_off: bool = False
    temperature: float | None = None
    is_probe: bool = False
    waited_s: float = 0.0
    images: bool = False
    embeds: bool = False
    answers: int = 1
    sets_drafting: bool = False
    number: int = field(default_factory=itertools.count(1).__next__, compare=False, kw_only=True)

    @property
    def facts(self) -> PromptFacts:
        """The facts of its prompt, which this reads; empty ones without a prompt."""
        return PromptFacts() if self.prompt is None else self.prompt.facts


@dataclass(frozen=True, slots=True)
class Offered:
    """A model that clients may request.

    Attributes:
        name: Its id in ``/v1/models``.
        aliases: Other names that find it.
        backend: The backend that serves it.
        running: The draftings of its running servers.
        size_bytes: Size of its files.
        fingerprint: Of its file's metadata, so that copies of one file count as one model. May be empty.
        last_used: True for the model of the last request, whether or not it runs still.
    """

    name: str
    aliases: tuple[str, ...]
    backend: str
    running: tuple[Drafting, ...] = ()
    size_bytes: int = 0
    fingerprint: str = ""
    last_used: bool = False


class FollowedAnswer(Protocol):
    """An answer of a server while it passes to its client."""

    @property
    def generated_bytes(self) -> int:
        """How much of it has arrived that only a working model sends: its text, no page, error or comment."""

    @property
    def generates(self) -> bool:
        """False for what other threads than the model's write: a page, an error, a stream that is no answer to a prompt."""

    @property
    def unread_bytes(self) -> int:
        """How much waits for its client, which takes it more slowly than it arrives; 0 if the server is waited for."""

    def give_up(self) -> None:
        """End it as if its client had gone."""


class Lease(Protocol):
    """A server lent to one request; leaving the async context gives it back.

    A lent server is not stopped, unless it dies or the proxy ends.

    Attributes:
        base_url: ``http://127.0.0.1:PORT``, without a final slash.
        model: Catalogue name.
        backend: Backend name.
        build: The build's version.
        drafting: The drafting of this request.
        likely: Prompt types for which the drafting is likely but not proven; ``None`` stands for any type.
        fields: Fields to set in the request's JSON, for backends that choose the drafting per request; usually empty.
        headers: Headers to set in the request, e.g. the key of an attached server; usually empty.
        limit: The limit of the recommended drafting that the request is beyond; ``None`` if it is within all of them.
        why_off: Why there is no drafting, by prompt type, because a prompt may be read later; empty with a drafting.
        why_else: The same for other prompt types: the request's own reason; ``None`` with a drafting.
        concurrent: Most answers that the model wrote at once during the lease, those to this request included.
        temperature: Of this request, the server's default included; ``None`` if it generates nothing.
        keeps_cache: False if the server has no prompt cache because a draft is loaded, whether this request drafts or not.
    """

    base_url: str
    model: str
    backend: str
    build: str
    drafting: Drafting
    likely: frozenset[PromptType | None]
    fields: Mapping[str, Any]
    headers: Mapping[str, str]
    limit: Limit | None
    why_off: Mapping[PromptType | None, WhyOff]
    why_else: WhyOff | None
    concurrent: int
    temperature: float | None
    keeps_cache: bool

    def died(self) -> None:
        """Report a broken connection: the supervisor checks the process and replaces it if it has ended."""

    def follow(self, answer: FollowedAnswer) -> None:
        """Watch an answer: a server that is silent for minutes is looked at, and an answer that its client does not take ends."""

    def answered(self, tokens: float, prompt_tokens: int | None = None) -> None:
        """Report the generated tokens, for planning. Without a report the duration of the lease is used.

        `prompt_tokens` are those of the whole prompt, cached or not; ``None`` if they are unknown.
        """

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *_error: object) -> None: ...


class Dispatch(Protocol):
    """The supervisor, as the data path sees it."""

    async def lease(self, wanted: RouteRequest) -> Lease:
        """Lend the best server for a request; start one if none runs.

        Raises:
            UnknownModelError: No model has the name; holds the names that exist.
            ModelChoiceError: Several models match the name.
            OverloadedError: The queue is full, or no server was free before the deadline.
            LaunchError: The server does not start, not even without drafting.
        """

    def offered(self) -> Sequence[Offered]:
        """All models that clients may request, in the catalogue's order."""

    def plan(self) -> dict[str, Any]:
        """The document of ``GET /autospec/v1/plan``: which servers are kept, and why."""

    def status(self) -> dict[str, Any]:
        """The document of ``GET /autospec/v1/status``: servers with state, use and memory; the queue."""

    async def switch_drafting(self, name: str, *, off: bool) -> str:
        """Switch drafting off for a model until it is switched on again; returns the model's name."""

    async def unload(self, name: str) -> tuple[str, int]:
        """Stop a model's servers as soon as their answers have ended; returns its name and the number of servers."""

    async def close(self) -> None:
        """Let requests end for a bounded time, then stop every server."""
