"""A proxy's servers without servers: a backend with fault switches, a clock that is set by hand, and two models.

Nothing here answers HTTP: what is looked at is who is lent what, and what is started and stopped when.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

from autospec.backends.protocol import Capabilities, Cycle, LaunchSettings
from autospec.catalog.model import Model
from autospec.cells import Build, Cell, Hardware, PromptType
from autospec.drafting import Drafting, Mode
from autospec.errors import LaunchError
from autospec.recommendations import Recommendation, Status, StoredRecommendation, Verdict
from autospec.serving import reconciler
from autospec.serving.dispatch import Prompt, PromptFacts, RouteRequest
from autospec.serving.model_registry import Engine, ModelRegistry
from autospec.serving.reconciler import ProxyDependencies
from autospec.serving.supervisor import Supervisor
from autospec.settings import Settings, load_settings
from tests.catalog.making import make_model

MIB = 1024**2
DEADLINE_S = 20.0
HERE = Hardware("test-chip-16g-abc123", "Test Chip", 16 * 1024**3)
BUILD = Build("embedded", "fake-1", "0123456789abcdef")
LOOKUP = Drafting(Mode.NGRAM_MOD, ngram_n=12, n_max=16, n_min=0)
LOOKUP_2 = Drafting(Mode.NGRAM_MOD, ngram_n=12, n_max=32, n_min=0)
ARGS = ("-t", "1")


def model(name: str, **changes: Any) -> Model:
    """A small main model without KV cache: a launch takes 356 MiB, two of one file 612, two of different files 712."""
    values: dict[str, Any] = {"size_bytes": 100 * MIB, "kv_bytes_per_token": 0, "quantization": "Q4_1"}
    return make_model(name, fingerprint=f"fingerprint of {name}", **{**values, **changes})


ALPHA, BETA = model("alpha-1b"), model("beta-1b")


class FakeServer:
    """One launch; `kill` ends it as ``kill -9`` would."""

    _ports = itertools.count(20000)

    def __init__(self, model_path: str, drafting: Drafting) -> None:
        port = next(self._ports)
        self.launch_id = f"launch-{port}"
        self.model_path = model_path
        self.drafting = drafting
        self.base_url = f"http://127.0.0.1:{port}"
        self.command: tuple[str, ...] = ()
        self.launch_ms = 1.0
        self.pids: frozenset[int] = frozenset()
        self.tokens = None
        self.stopped = False
        self._how: str | None = None

    def complete(self, request: Any) -> Any:
        """Nobody asks."""
        raise NotImplementedError

    def kill(self, by: str = "SIGKILL") -> None:
        """End as by a signal, seen by whoever looks."""
        self._how = f"was ended by {by}"

    def ended(self) -> str | None:
        """How it ended."""
        return self._how

    def stop(self) -> None:
        """End as asked."""
        self.stopped = True


@dataclass
class FakeBackend:
    """Starts `FakeServer`s.

    Attributes:
        build: What it says that it is.
        refuses: Launches that fail, with their error, by drafting.
        hold: Launches wait here; set to let them go on.
        stuck: Launches that wait cannot be ended, as in a read from a disk that does not answer.
        servers: Everything that was ever ready.
        asked: Every launch that was asked for.
        most: Most launches that were ready and not stopped at one time.
    """

    name: str = "embedded"
    per_request: bool = False
    build: Build = BUILD
    refuses: dict[Drafting, Exception] = field(default_factory=dict)
    hold: threading.Event = field(default_factory=threading.Event)
    stuck: bool = False
    servers: list[FakeServer] = field(default_factory=list)
    asked: list[tuple[str, Drafting, LaunchSettings]] = field(default_factory=list)
    most: int = 0

    def __post_init__(self) -> None:
        self.hold.set()

    def capabilities(self) -> Capabilities:
        """Everything."""
        return Capabilities(self.build, frozenset(Mode), drafting_per_request=self.per_request)

    def command(self, model_path: str, drafting: Drafting, settings: LaunchSettings) -> tuple[str, ...]:
        """What it would be launched with."""
        return ("fake-server", *settings.args)

    def launch(self, model_path: str, drafting: Drafting, settings: LaunchSettings) -> FakeServer:
        """A server, the error that is switched on, or neither while `hold` is not set."""
        self.asked.append((model_path, drafting, settings))
        ended = threading.Event()
        if settings.started is not None:
            settings.started(ended.set)
        deadline_s = time.monotonic() + DEADLINE_S
        while not self.hold.wait(0.002):
            assert time.monotonic() < deadline_s
            if ended.is_set() and not self.stuck:
                raise LaunchError("The server was ended by SIGTERM.")
        if drafting in self.refuses:
            raise self.refuses[drafting]
        server = FakeServer(model_path, drafting)
        server.command = self.command(model_path, drafting, settings)
        self.servers.append(server)
        self.most = max(self.most, len(self.running))
        return server

    def of(self, drafting: Drafting) -> list[FakeServer]:
        """Servers that were ever ready with a drafting, the oldest first."""
        return [s for s in self.servers if s.drafting == drafting]

    @property
    def running(self) -> list[FakeServer]:
        """Servers that nobody stopped and that did not die."""
        return [s for s in self.servers if not s.stopped and s.ended() is None]


@dataclass
class FakeMlx(FakeBackend):
    """A backend with drafting per request."""

    name: str = "mlx"
    per_request: bool = True
    cache_args: tuple[str, ...] = ("--prompt-cache-size", "0")
    drafts_uncached: bool = True

    def capabilities(self) -> Capabilities:
        """Those of mlx_lm's cycle."""
        told = super().capabilities()
        return replace(told, cycle=Cycle.MLX_LM, drafts_uncached=self.drafts_uncached)

    def command(self, model_path: str, drafting: Drafting, settings: LaunchSettings) -> tuple[str, ...]:
        """What it would be launched with."""
        return ("fake-mlx", *(() if settings.serving else self.cache_args))

    def request_fields(self, drafting: Drafting) -> Mapping[str, Any]:
        """The number of tokens to draft."""
        return {"num_draft_tokens": 0 if drafting.is_off else drafting.n_max}


# How often the servers are looked at: the clock that is set by hand may pass minutes between two looks.
TICK_S = 0.02


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        """Now."""
        return self.now_s


def recommend(
    drafting: Drafting,
    prompt_type: PromptType | None = PromptType.CODING,
    *,
    of: Model = ALPHA,
    status: Status = Status.PROVEN,
    speedup: float = 2.0,
    build: Build = BUILD,
    **evidence: Any,
) -> StoredRecommendation:
    """A stored recommendation of exactly the cell that is served here."""
    settings = (*ARGS, "-c", "4096")
    key = Cell(of.ref, prompt_type or PromptType.CODING, build, HERE, settings).key
    found = Recommendation(
        model=of.name,
        model_path=str(of.path),
        backend=build.backend,
        backend_build=build.version,
        prompt_type=prompt_type,
        verdict=Verdict.DISABLE if drafting.is_off else Verdict.ENABLE,
        drafting=drafting,
        tried=drafting,
        baseline_tps=20.0,
        drafting_tps=None if drafting.is_off else 20.0 * speedup,
        speedup=None if drafting.is_off else speedup,
        speedup_ci=None,
        pairs=8,
        acceptance=0.7,
        reason="Because.",
        status=status,
        created_at="2026-11-20T10:00:00+00:00",
        evidence={"settings": list(settings), **evidence},
    )
    return StoredRecommendation(key, HERE, found)


@dataclass
class Scene:
    """A supervisor over a fake backend.

    Attributes:
        backend: Whose faults are switched.
        clock: Set by hand.
        stored: What the database holds.
        models: What the disk holds.
        settings: Changed by `limit` before `opened`.
    """

    backend: FakeBackend = field(default_factory=FakeBackend)
    clock: Callable[[], float] = field(default_factory=Clock)
    stored: list[StoredRecommendation] = field(default_factory=list)
    models: tuple[Model, ...] = (ALPHA, BETA)
    settings: Settings = field(
        default_factory=lambda: load_settings(overrides={"memory_limit": 64.0, "server_args": list(ARGS)})
    )
    saved: list[Recommendation] = field(default_factory=list)
    scans: int = 0
    version: int = 1
    daemon: Any = None
    hardware: Hardware = HERE

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Supervisor]:
        """The supervisor, until the block ends."""
        dependencies = ProxyDependencies(
            self.hardware,
            self._scan_models,
            lambda: self.version,
            lambda: list(self.stored),
            self._save,
            daemon=self.daemon,
            clock=self.clock,
        )
        with mock.patch.object(reconciler, "_TICK_S", TICK_S):
            async with await Supervisor.start(self.settings, dependencies) as supervisor:
                yield supervisor

    def limit(self, mib: int) -> None:
        """Set the memory limit of the proxy."""
        self.settings = replace(self.settings, memory_limit=mib / 1024)

    def learn(self, *stored: StoredRecommendation) -> None:
        """Replace what the database holds."""
        self.stored[:] = stored
        self.version += 1

    def _scan_models(self) -> ModelRegistry:
        self.scans += 1
        engine = Engine(self.backend, self.backend.capabilities())
        return ModelRegistry(self.models, {m.format: engine for m in self.models})

    def _save(self, recommendation: Recommendation, _hardware: Hardware, cell_key: str) -> None:
        self.saved.append(recommendation)
        kept = [s for s in self.stored if s.cell_key != cell_key]
        self.learn(*kept, StoredRecommendation(cell_key, HERE, recommendation))


def wanted(
    name: str = "alpha",
    kind: PromptType | None = PromptType.CODING,
    *,
    off: bool = False,
    probe: bool = False,
    waited_s: float = 0.0,
) -> RouteRequest:
    """What a request for code on the first model wants."""
    return RouteRequest(name, kind and prompt_of(kind), off, is_probe=probe, waited_s=waited_s)


def prompt_of(kind: PromptType = PromptType.CODING, *, text_bytes: int = 0, token_ids: int = 0) -> Prompt:
    """A prompt of this type."""
    return Prompt(lambda: PromptFacts(kind, text_bytes, token_ids))


async def until(true: Callable[[], object]) -> None:
    """Let the loop run until something holds; fail when the deadline has passed."""
    async with asyncio.timeout(DEADLINE_S):
        while not true():  # noqa: ASYNC110 - what is waited for tells nobody
            await asyncio.sleep(0.001)


def states(supervisor: Supervisor) -> Mapping[str, str]:
    """State by model and drafting of every launch."""
    rows: Iterable[dict[str, Any]] = supervisor.status()["launches"]
    return {f"{row['model']} {Drafting.from_json(row['drafting']).label}": row["state"] for row in rows}


class Passing:
    """An answer on its way to a client, as `autospec.serving.dispatch.FollowedAnswer` has it.

    Args:
        generated_bytes: How much has arrived.
    """

    def __init__(self, generated_bytes: int = 0) -> None:
        self.generated_bytes = generated_bytes
        self.generates = True
        self.unread_bytes = 0
        self.given_up = 0

    def give_up(self) -> None:
        """Counted."""
        self.given_up += 1
