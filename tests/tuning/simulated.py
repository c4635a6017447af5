"""A backend whose answers take computed times, to test the tuning loop's logic in milliseconds.

It does not replace real servers: tests/backends and test_real_tune.py test those.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from autospec.backends.protocol import Capabilities, Completion, LaunchSettings, Request, Slots
from autospec.cells import Build, options_in
from autospec.drafting import Drafting, Engine, Mode

Speed = Callable[[Drafting, str], float]
OFF_TPS = 50.0
# Shorter prompts all have this many tokens; longer ones one for every four characters.
SHORT_TOKENS = 20
_SHORT_CHARACTERS = 4000


@dataclass
class FakeClock:
    """A clock that only moves when it is told to."""

    now: float = 1_000_000.0

    def __call__(self) -> float:
        """The current time."""
        return self.now

    def pass_by(self, seconds: float) -> None:
        """Move on by this time."""
        self.now += seconds

    @property
    def time(self) -> FakeClock:
        """Replaces the module `time`."""
        return self


@dataclass
class SimulatedServer:
    """One launch: it answers at once, and reports the time that the answer would have taken."""

    backend: SimulatedBackend
    launch_id: str
    drafting: Drafting
    stopped: bool = False
    base_url: str = "http://127.0.0.1:1"
    command: tuple[str, ...] = ("simulated",)
    launch_ms: float = 1000.0
    pids: frozenset[int] = frozenset()
    tokens: None = None
    luck: float = 0.0
    settings: LaunchSettings = LaunchSettings()  # noqa: RUF009 - a frozen value
    in_cache: str = ""

    def complete(self, request: Request) -> Completion:
        """Answer with a time drawn around the true speed."""
        answer = self._answer(request, 1)
        self.backend.clock.pass_by(answer.wall_ms / 1000.0)
        return answer

    def slots(self) -> Slots:
        """As many as the launch was given, else the backend's own."""
        named = dict(options_in(self.settings.args)).get("--parallel")
        silent = self.backend.silent_slot
        told = () if silent is None or not self.backend.tells_silence else (silent,)
        own = self.backend.slots if self.drafting.is_off else self.backend.drafted_slots or self.backend.slots
        return Slots(int(named[0]) if named else own, silent=told)

    def complete_all(self, requests: Sequence[Request]) -> list[Completion]:
        """Answer all at once: the time passes once."""
        answers = [self._answer(replace(r, slot=k), len(requests)) for k, r in enumerate(requests)]
        self.backend.clock.pass_by(max(a.wall_ms for a in answers) / 1000.0)
        return answers

    def _computed(self, request: Request, text: str) -> int:
        """Tokens of the prompt that are not in the cache."""
        cached = self.in_cache if request.cached and self.backend.caches else ""
        self.in_cache = text if request.cached else ""
        if len(text) < _SHORT_CHARACTERS or cached[: len(text) // 2] == text[: len(text) // 2]:
            return SHORT_TOKENS
        return len(text) // 4

    def _answer(self, request: Request, together: int) -> Completion:
        assert not self.stopped, "a stopped server was asked"
        text = json.dumps(list(request.messages))
        self.backend.asked.append((self.launch_id, self.drafting, text))
        self.backend.before_answer(self, text)
        ratio = 1.0
        if not self.drafting.is_off:
            ratio = self.backend.speedup(self.drafting, text) * self.backend.together(together)
        noise = float(np.exp(self.backend.random.normal(0.0, self.backend.noise) + self.luck))
        wall_ms = 1000.0 * request.max_tokens / (OFF_TPS * ratio) * noise
        silent = self.drafting.is_off or request.slot == self.backend.silent_slot
        drafted = 0 if silent else request.max_tokens
        return Completion(
            text=hashlib.sha256(text.encode()).hexdigest(),
            prompt_tokens=self._computed(request, text),
            predicted_tokens=request.max_tokens,
            prompt_ms=wall_ms * 0.1,
            predicted_ms=wall_ms * 0.9,
            wall_ms=wall_ms,
            drafted=drafted,
            accepted=drafted // 2,
            finish_reason="length",
        )

    def with_drafting(self, drafting: Drafting) -> SimulatedServer | None:
        """The server itself; if drafting goes with the request, a view with another drafting of its draft."""
        if drafting == self.drafting:
            return self
        if self.backend.per_request and drafting.draft == self.drafting.draft:
            return replace(self, drafting=drafting)
        return None

    def stop(self) -> None:
        """End it."""
        self.stopped = True
        self.backend.running.discard(self.launch_id)


@dataclass
class SimulatedBackend:
    """Launches simulated servers. `before_launch` and `before_answer` may raise, to fail or to interrupt the tune."""

    speedup: Speed  # true ratio to off for a drafting and a prompt's text
    noise: float = 0.005  # standard deviation of the log of a time
    modes: frozenset[Mode] = frozenset({Mode.OFF, Mode.DRAFT_MODEL, Mode.NGRAM_SIMPLE})
    per_request: bool = False
    combines: bool = False
    engines: frozenset[tuple[Mode, Engine]] = frozenset()
    before_launch: Callable[[Drafting], None] = lambda _: None
    before_answer: Callable[[SimulatedServer, str], None] = lambda _server, _text: None
    clock: FakeClock = field(default_factory=FakeClock)
    launch_s: float = 1.0
    launch_scatter: float = 0.0  # standard deviation of a launch's own factor, as a log
    slots: int = 4  # of a launch that does not name a number
    drafted_slots: int | None = None  # the same with drafting, if it differs
    silent_slot: int | None = None  # a slot that never drafts
    tells_silence: bool = False  # whether the slots say so
    caches: bool = True  # whether requests that may use the prompt cache find it
    drafts_uncached: bool = False  # whether users' servers have no prompt cache while they draft
    together: Callable[[int], float] = lambda _: (
        1.0
    )  # factor of a drafting's speed with so many requests at once
    launched: list[Drafting] = field(default_factory=list)
    asked: list[tuple[str, Drafting, str]] = field(default_factory=list)
    running: set[str] = field(default_factory=set)
    most_running: int = 0
    name: str = "simulated"
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(7))

    def __post_init__(self) -> None:
        self._numbers = itertools.count()

    def capabilities(self) -> Capabilities:
        """The modes."""
        build = Build(self.name, "b1", "f" * 8)
        return Capabilities(
            build,
            self.modes,
            drafting_per_request=self.per_request,
            combines=self.combines,
            engines=self.engines,
            drafts_uncached=self.drafts_uncached,
        )

    def command(self, model_path: str, drafting: Drafting, settings: LaunchSettings) -> tuple[str, ...]:
        """A command line with all of the drafting's values."""
        drafted = self.drafting_args(model_path, drafting, settings)
        return ("simulated", "-m", model_path, *settings.args, *drafted)

    def drafting_args(
        self, _model_path: str, drafting: Drafting, _settings: LaunchSettings
    ) -> tuple[str, ...]:
        """A word for each parameter."""
        return () if drafting.is_off else tuple(f"--{k}={v}" for k, v in drafting.to_json().items())

    def launch(self, model_path: str, drafting: Drafting, settings: LaunchSettings) -> SimulatedServer:
        """Start a server."""
        del model_path
        self.launched.append(drafting)
        self.before_launch(drafting)
        self.clock.pass_by(self.launch_s)
        luck = float(self.random.normal(0.0, self.launch_scatter)) if self.launch_scatter else 0.0
        number = next(self._numbers)
        server = SimulatedServer(self, f"launch-{number}", drafting, luck=luck, settings=settings)
        server.base_url = f"http://127.0.0.1:{number + 1}"
        self.running.add(server.launch_id)
        self.most_running = max(self.most_running, len(self.running))
        return server
