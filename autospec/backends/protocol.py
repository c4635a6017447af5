"""What every backend is: capabilities, launch, complete, stop. Values and protocols, no I/O.

A backend is one file beside this one and one line in `autospec.backends.registry`.

Whose drafting cycle a backend has. A value, no I/O.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol, runtime_checkable

from autospec.cells import Build
from autospec.drafting import Drafting, Mode

__all__ = [
    "Backend",
    "Capabilities",
    "Completion",
    "Cycle",
    "DraftsPerRequest",
    "LaunchSettings",
    "Proposal",
    "Request",
    "Server",
    "TokenAnswer",
    "Tokens",
    "Watched",
]


class Cycle(Enum):
    """How drafting and verifying take turns; `autospec.predict.replay` plays both on paper."""

    LLAMA_CPP = "llama.cpp"
    """The prompt's own batch gives the first token, and cycles follow. The draft, too, computes what is verified."""
    MLX_LM = "mlx_lm"
    """The first cycle begins at the prompt's end: the first token is verified like all others."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What one build of a backend really offers, probed and not assumed.

    Attributes:
        build: Which build answered the probe.
        modes: Modes that a launch of this build can be given; `off` is always among them.
        drafting_per_request: True if drafting goes with the request, so that nothing relaunches.
        tells_drafts: True if answers carry drafted and accepted counts.
        takes_p_min: False where the backend has no least probability for proposals.
        only: The one (n_max, p_min) with which it drafts, where neither can be chosen.
        measures_only: True if drafting cannot be chosen at all: what runs can be measured, nothing can be compared.
        notes: Sentences for `doctor`, e.g. which modes this build lacks.
        cycle: How drafting and verifying take turns.
    """

    build: Build
    modes: frozenset[Mode]
    drafting_per_request: bool = False
    tells_drafts: bool = True
    takes_p_min: bool = True
    only: tuple[int, float | None] | None = None
    measures_only: bool = False
    notes: tuple[str, ...] = ()
    cycle: Cycle = Cycle.LLAMA_CPP


@dataclass(frozen=True, slots=True)
class LaunchSettings:
    """The user's own launch settings: part of the cell, the same for off and for every drafting.

    Attributes:
        args: Server arguments as typed, e.g. ``("-ngl", "99", "-c", "32768", "--jinja")``.
        ready_timeout_s: How long a launch may take to load the model and answer /health.
        serving: True for a launch that users' requests go to: prompt cache and slots stay at the server's own defaults
            and the user's arguments, where measuring pins them. The drafting is pinned either way.
        served_as: The name that answers carry in a launch for users, where the backend can be told; empty leaves its own.
    """

    args: tuple[str, ...] = ()
    ready_timeout_s: float = 600.0
    serving: bool = False
    served_as: str = ""


@dataclass(frozen=True, slots=True)
class Request:
    """One question to a server.

    Attributes:
        messages: Chat messages in OpenAI's form (role, content, also tool calls and results).
        max_tokens: Most tokens to generate.
        temperature: 0 is greedy.
        seed: Fixed, so that sampled answers repeat.
        tools: Tool definitions in OpenAI's form, or none.
        timeout_s: The whole request may take this long.
        ignore_eos: Go on to `max_tokens` where the model would end.
    """

    messages: Sequence[dict[str, Any]]
    max_tokens: int
    temperature: float = 0.0
    seed: int = 42
    tools: Sequence[dict[str, Any]] = ()
    timeout_s: float = 600.0
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer with its times.

    Attributes:
        text: Everything that was generated (content, reasoning, tool calls), for the lossless check.
        prompt_tokens: Tokens of the prompt that were processed for this request, cached ones not counted.
        predicted_tokens: Tokens generated.
        prompt_ms: Time to process the prompt, by the server's clock.
        predicted_ms: Time to generate, by the server's clock.
        wall_ms: From sending the request to the end of the answer, by our clock. The whole request counts.
        drafted: Tokens proposed by drafting; 0 where the answer names none and the backend tells drafts;
            ``None`` where the backend does not tell.
        accepted: Of those, tokens that the main model took.
        finish_reason: ``stop``, ``length`` or ``tool_calls``.
    """

    text: str
    prompt_tokens: int
    predicted_tokens: int
    prompt_ms: float
    predicted_ms: float
    wall_ms: float
    drafted: int | None
    accepted: int | None
    finish_reason: str = ""

    @property
    def request_tps(self) -> float:
        """Tokens per second of the whole request: what a user waits for."""
        return 1000.0 * self.predicted_tokens / self.wall_ms if self.wall_ms > 0 else float("nan")

    @property
    def decode_tps(self) -> float:
        """Tokens per second of generation alone, by the server's clock."""
        return 1000.0 * self.predicted_tokens / self.predicted_ms if self.predicted_ms > 0 else float("nan")


@dataclass(frozen=True, slots=True)
class TokenAnswer:
    """One answer as token ids, with its times.

    Attributes:
        ids: Generated, in order; where the answer ended by itself, the last one is the token that ended it.
        ended: True if it ended by itself, false if it reached the most tokens allowed.
        prompt_tokens: Tokens of the prompt that were computed, cached ones not counted.
        prompt_ms: By the server's clock.
        predicted_ms: By the server's clock, for all tokens after the first.
        wall_ms: From sending the request to the end of the answer, by our clock.
    """

    ids: tuple[int, ...]
    ended: bool
    prompt_tokens: int
    prompt_ms: float
    predicted_ms: float
    wall_ms: float


@dataclass(frozen=True, slots=True)
class Proposal:
    """What a model holds for the most likely next token.

    Attributes:
        token: Its id.
        p: Its probability among the ten most likely tokens, which is what llama.cpp compares with p-min
            (``top_k = 10`` in common_speculative_impl_draft_simple, common/speculative.cpp, b11434); not a number where
            the server does not tell.
    """

    token: int
    p: float


class Tokens(Protocol):
    """A running server's model, asked in token ids: what predicting needs and no user asks for.

    Every method raises `RequestError` or `ServerDiedError` as `Server.complete` does.
    """

    def encode(self, request: Request) -> tuple[int, ...]:
        """The prompt of a chat request as the server would compute it, template and first token included."""

    def generate(self, ids: Sequence[int], request: Request) -> TokenAnswer:
        """Answer a prompt in ids with the sampling of `request`; nothing comes from the cache."""

    def propose(self, ids: Sequence[int], count: int) -> list[Proposal]:
        """Go on greedily after `ids` for at most `count` tokens; the prompt cache is used."""

    def batch_ms(self, ids: Sequence[int], extra: Sequence[int]) -> float:
        """Milliseconds to compute `extra` as one batch after `ids`, or behind nothing, by the server's clock."""


class Server(Protocol):
    """One launch: a running server with one drafting."""

    @property
    def launch_id(self) -> str:
        """Unique over all launches ever made; measurements name it."""

    @property
    def drafting(self) -> Drafting:
        """What it was launched with."""

    @property
    def base_url(self) -> str:
        """``http://127.0.0.1:PORT`` without a final slash."""

    @property
    def command(self) -> tuple[str, ...]:
        """The command line, for people to repeat."""

    @property
    def launch_ms(self) -> float:
        """Time from start to ready."""

    @property
    def pids(self) -> frozenset[int]:
        """Processes of this launch, so that their load is not taken for somebody else's."""

    @property
    def tokens(self) -> Tokens | None:
        """The model in token ids; ``None`` where the server has no such thing."""

    def complete(self, request: Request) -> Completion:
        """Ask and wait for the whole answer.

        Raises:
            ServerDiedError: The process ended; carries the log's last lines in its sentence.
            RequestError: Refused, timed out, cut off, or an answer that makes no sense.
        """

    def with_drafting(self, drafting: Drafting) -> Server | None:
        """This launch asked with a drafting, where that takes no other launch.

        Returns:
            The server itself for its own drafting; where drafting goes with the request, a view on the same process
            (stopping either stops both); else ``None``.
        """

    def stop(self) -> None:
        """End the process and wait until it has ended. Safe to call twice."""


@runtime_checkable
class Watched(Protocol):
    """A server whose process can be looked at; one that somebody else runs (`attached`) is none."""

    def ended(self) -> str | None:
        """How its process ended, as the end of a sentence (``was ended by SIGKILL``); ``None`` while it runs."""


@runtime_checkable
class DraftsPerRequest(Protocol):
    """A backend whose drafting goes with the request (`Capabilities.drafting_per_request`)."""

    def request_fields(self, drafting: Drafting) -> Mapping[str, Any]:
        """The fields of a request's JSON that put a drafting in force."""


class Backend(Protocol):
    """A kind of server."""

    @property
    def name(self) -> str:
        """The backend's name in `autospec.backends.registry`, e.g. ``llama-server``."""

    def capabilities(self) -> Capabilities:
        """Probe the installed build; cached for the life of the object.

        Raises:
            BackendMissingError: It is not installed; the hint is the one line that fixes it.
        """

    def command(self, model_path: str, drafting: Drafting, settings: LaunchSettings) -> tuple[str, ...]:
        """The command line of a launch, every drafting parameter pinned; starts nothing.

        Raises:
            UnsupportedError: This build lacks the mode or a flag that the drafting needs.
        """

    def drafting_args(
        self, model_path: str, drafting: Drafting, settings: LaunchSettings, /
    ) -> tuple[str, ...]:
        """The end of `command` that puts the drafting in force; empty for `off`.

        It is what a user adds to a command line without drafting. A backend whose settings are one JSON argument
        returns that argument.

        Raises:
            UnsupportedError: As `command`.
        """

    def launch(self, model_path: str, drafting: Drafting, settings: LaunchSettings) -> Server:
        """Start a server, wait until it is ready, and check that its drafting is in force.

        Raises:
            UnsupportedError: As `command`.
            LaunchError: It did not get ready.
            SpeculationInactiveError: It runs with another drafting than asked for.
        """
