"""What every backend offers: capabilities, launch, complete, stop. Values and protocols, no I/O.

A backend is one file and one line in `autospec.backends.registry`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol, TypeAlias, runtime_checkable

from autospec.cells import Build
from autospec.drafting import Drafting, Engine, Mode

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
    "Slots",
    "Slotted",
    "Started",
    "TokenAnswer",
    "Tokens",
    "Watched",
    "WithEveryRequest",
]


class Cycle(Enum):
    """How drafting and verifying take turns; `autospec.predict.profile` simulates all of them."""

    LLAMA_CPP = "llama.cpp"
    """The prompt's batch gives the first token; cycles follow. The draft model also computes the verified tokens."""
    LLAMA_CPP_KEEPS_LAST = "llama.cpp before May 2026"
    """As above, but p_min ends a draft after the token below it, which is proposed, too; and the draft computes only what is new to it."""
    MLX_LM = "mlx_lm"
    """The first cycle begins at the prompt's end: the first token is verified like all others."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What one installed build of a backend offers, as probed.

    Attributes:
        build: Which build answered the probe.
        modes: Modes that this build can be launched with; `off` is always among them.
        drafting_per_request: True if the drafting goes with the request, so another one needs no relaunch.
        tells_drafts: True if answers carry drafted and accepted counts.
        takes_p_min: False if the backend has no p-min.
        only: The one (n_max, p_min) with which it drafts, where neither can be chosen.
        measures_only: True if drafting cannot be chosen at all: the server can be measured, draftings cannot be compared.
        notes: Sentences for `doctor`, e.g. which modes this build lacks.
        cycle: How drafting and verifying take turns.
        combines: True if one launch can draft with a model and in draft-free modes beside it.
        engines: What the server itself can adapt, with the modes in which it does.
        drafts_uncached: True if a server that drafts for users keeps no prompt cache, though one without drafting does.
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
    combines: bool = False
    engines: frozenset[tuple[Mode, Engine]] = frozenset()
    drafts_uncached: bool = False


Started: TypeAlias = Callable[[Callable[[], None]], None]
"""Gets a function that ends a server's process, see `LaunchSettings`."""


@dataclass(frozen=True, slots=True)
class LaunchSettings:
    """The user's own launch settings: part of the cell, the same with and without drafting.

    Attributes:
        args: Server arguments as typed, e.g. ``("-ngl", "99", "-c", "32768", "--jinja")``.
        ready_timeout_s: How long a launch may take to load the model and answer /health.
        serving: True for a launch that serves users: prompt cache and slots keep the server's defaults and the user's
            arguments. A launch for measuring pins them. Both pin the drafting.
        served_as: The model name in the answers of a launch that serves users, where the backend can set it; empty
            keeps the backend's own.
        started: Gets a function that ends the server's process, as soon as the process runs; once for each process of the
            launch. Another thread may call the function while the model loads: `Backend.launch` then raises a `LaunchError`.
    """

    args: tuple[str, ...] = ()
    ready_timeout_s: float = 600.0
    serving: bool = False
    served_as: str = ""
    started: Started | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Request:
    """One question to a server.

    Attributes:
        messages: Chat messages in OpenAI's form (role, content, also tool calls and results).
        max_tokens: Limit of generated tokens.
        temperature: 0 is greedy.
        seed: Fixed, so that sampled answers repeat.
        tools: Tool definitions in OpenAI's form, or none.
        timeout_s: Limit for the whole request.
        ignore_eos: Generate until `max_tokens`, even where the model would end.
        slot: The server's slot that answers, where it has several and lets a request choose.
        cached: Use and fill the server's prompt cache; measurements of whole prompts do not.
    """

    messages: Sequence[dict[str, Any]]
    max_tokens: int
    temperature: float = 0.0
    seed: int = 42
    tools: Sequence[dict[str, Any]] = ()
    timeout_s: float = 600.0
    ignore_eos: bool = False
    slot: int = 0
    cached: bool = False


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer with its times.

    Attributes:
        text: All generated text (content, reasoning, tool calls), for the lossless check.
        prompt_tokens: Tokens of the prompt that were processed for this request, without cached ones.
        predicted_tokens: Tokens generated.
        prompt_ms: Prompt processing, by the server's clock.
        predicted_ms: Token generation, by the server's clock.
        wall_ms: From sending the request to the end of the answer, by our clock.
        drafted: Tokens proposed by drafting, 0 for none; ``None`` if the backend does not tell.
        accepted: Of those, tokens that the main model accepted.
        finish_reason: ``stop``, ``length`` or ``tool_calls``.
        still_reasoning: True if the model was reasoning to the end, so that the text is nothing else, as far as the server tells.
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
    still_reasoning: bool = False

    @property
    def request_tps(self) -> float:
        """Tokens per second of the whole request, as a user sees it."""
        return 1000.0 * self.predicted_tokens / self.wall_ms if self.wall_ms > 0 else float("nan")

    @property
    def decode_tps(self) -> float:
        """Tokens per second of token generation alone, by the server's clock."""
        return 1000.0 * self.predicted_tokens / self.predicted_ms if self.predicted_ms > 0 else float("nan")


@dataclass(frozen=True, slots=True)
class TokenAnswer:
    """One answer as token ids, with its times.

    Attributes:
        ids: Generated, in order; if the answer ended by itself, the last one is the token that ended it.
        ended: True if it ended by itself, false if it reached the limit.
        prompt_tokens: Tokens of the prompt that were computed, without cached ones.
        prompt_ms: Prompt processing, by the server's clock.
        predicted_ms: All tokens after the first, by the server's clock.
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
    """A model's most likely next token.

    Attributes:
        token: Its id.
        p: Its probability among the ten most likely tokens, which llama.cpp compares with p-min (``top_k = 10`` in
            common_speculative_impl_draft_simple, common/speculative.cpp, b11434); NaN if the server does not tell.
    """

    token: int
    p: float


class Tokens(Protocol):
    """A running server's model, asked in token ids. Prediction uses it; users' requests do not.

    Every method raises `RequestError` or `ServerDiedError` as `Server.complete` does.
    """

    def encode(self, request: Request) -> tuple[int, ...]:
        """The token ids of a chat request's prompt, with chat template and first token, as the server computes it."""

    def generate(self, ids: Sequence[int], request: Request) -> TokenAnswer:
        """Answer the prompt `ids` with the sampling of `request`, without the prompt cache."""

    def propose(self, ids: Sequence[int], count: int) -> list[Proposal]:
        """Continue `ids` greedily for at most `count` tokens, with the prompt cache."""

    def batch_ms(self, ids: Sequence[int], extra: Sequence[int]) -> float:
        """Milliseconds to compute `extra` as one batch after `ids`, which may be empty, by the server's clock."""


class Server(Protocol):
    """One launch: a running server with one drafting."""

    @property
    def launch_id(self) -> str:
        """Unique over all launches ever made; measurements name it."""

    @property
    def drafting(self) -> Drafting:
        """The drafting of the launch."""

    @property
    def base_url(self) -> str:
        """``http://127.0.0.1:PORT`` without a final slash."""

    @property
    def command(self) -> tuple[str, ...]:
        """The command line, so that a person can repeat the launch."""

    @property
    def launch_ms(self) -> float:
        """Time from start to ready."""

    @property
    def pids(self) -> frozenset[int]:
        """Processes of this launch. Their load is not counted as load of other programs."""

    @property
    def tokens(self) -> Tokens | None:
        """The model in token ids; ``None`` if the server does not offer that."""

    def complete(self, request: Request) -> Completion:
        """Ask and wait for the whole answer.

        Raises:
            ServerDiedError: The process ended; the message holds the log's last lines.
            RequestError: Refused, timed out, cut off, or an answer that makes no sense.
        """

    def with_drafting(self, drafting: Drafting) -> Server | None:
        """The same process with another drafting, if that needs no other launch.

        Returns:
            The server itself for its own drafting. If drafting goes with the request, a view on the same process
            (stopping one stops both). Else ``None``.
        """

    def stop(self) -> None:
        """End the process and wait until it has ended. Safe to call twice."""


@runtime_checkable
class Watched(Protocol):
    """A server whose process can be watched. The server of `attached` is not ours and cannot."""

    def ended(self) -> str | None:
        """How its process ended, as the end of a sentence (``was ended by SIGKILL``); ``None`` while it runs."""


@dataclass(frozen=True, slots=True)
class Slots:
    """The slots of a running server: it answers as many requests at once.

    Attributes:
        count: How many.
        context_tokens: The most tokens of one request; ``None`` if it does not tell.
        silent: Slots that say that they do not draft.
    """

    count: int
    context_tokens: int | None = None
    silent: tuple[int, ...] = ()


@runtime_checkable
class Slotted(Protocol):
    """A server that answers several requests at once, each in its own slot."""

    @property
    def launch_id(self) -> str:
        """See `Server`."""

    @property
    def drafting(self) -> Drafting:
        """See `Server`."""

    def slots(self) -> Slots:
        """Its slots.

        Raises:
            RequestError: It does not tell.
        """

    def complete_all(self, requests: Sequence[Request]) -> list[Completion]:
        """Ask all of them at once, the first in slot 0, and wait for all answers.

        Raises:
            ServerDiedError, RequestError: As `Server.complete`, once all answers or errors are there.
        """


@runtime_checkable
class WithEveryRequest(Protocol):
    """A server that must be told something with every request, also with those that the proxy passes on."""

    @property
    def request_fields(self) -> Mapping[str, Any]:
        """Fields of the request's JSON, e.g. the server's own name for the model."""

    @property
    def request_headers(self) -> Mapping[str, str]:
        """Headers, e.g. the server's key. They are never shown."""


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
            UnsupportedError: This build lacks the mode, or a flag that the drafting or the user needs.
            UsageError: A server argument that autospec sets itself, or one without its value.
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
