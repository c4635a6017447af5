"""The servers of all models: what to start and drain next, starting them safely, lending them to requests, and the queue."""

from __future__ import annotations

import asyncio
import logging
import math
import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Protocol, Self

from autospec.backends.protocol import Cycle, LaunchSettings, Server
from autospec.catalog.model import Model
from autospec.cells import PromptType
from autospec.drafting import OFF, Drafting
from autospec.errors import AutospecError, LaunchError, OverloadedError, UnsupportedError, UsageError
from autospec.serving.dispatch import FollowedAnswer, Limit, RouteRequest, WhyOff
from autospec.serving.instance import InstanceState, ServerInstance
from autospec.serving.model_registry import Engine
from autospec.serving.plan_inputs import LaunchEstimate, MemoryEstimate

__all__ = [
    "MeasuringDaemon",
    "PoolActions",
    "RequestQueue",
    "ServerLease",
    "ServerPool",
    "Waiting",
    "WaitingRequest",
    "next_actions",
]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PoolActions:
    """Servers to start, by model, and the numbers of those to drain, and of draining ones to lend again."""

    start: tuple[tuple[str, LaunchEstimate], ...] = ()
    drain: tuple[int, ...] = ()
    lend_again: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Waiting:
    """Requests for one model that wait, and that the same servers can answer.

    Attributes:
        longest_s: How long the oldest one has waited.
        able: Numbers of the model's servers that can answer them: of those that are ready, and of those that start or drain.
    """

    longest_s: float
    able: frozenset[int] = frozenset()


# A server that is only to be replaced by a better one, beside which that one does not fit, is drained when no request is on it; if there is
# no such moment for `_BUSY_S`, between two requests. New ones wait for its last answers meanwhile, but not longer than this: some answers
# take ten minutes, and clients and `queue_deadline` give up after five.
_BUSY_S: Final = 600.0
_LEND_AGAIN_S: Final = 60.0


def next_actions(
    servers: Sequence[ServerInstance],
    kept: Mapping[str, Sequence[LaunchEstimate]],
    limit_bytes: int,
    waiting: Mapping[str, Sequence[Waiting]] = MappingProxyType({}),
    *,
    now_s: float = 0.0,
    deadline_s: float = math.inf,
    at_once: Container[str] = (),
    later: Container[tuple[str, Drafting]] = (),
) -> PoolActions:
    """What to do now so that `kept` runs (by model, the most important first). Pure, without memory of earlier calls.

    A new server starts as soon as it fits beside everything that holds memory. What it replaces is drained when all of its
    model's servers are ready; a server whose build or file was replaced is replaced like that, too. If it does not fit, unwanted
    servers are drained first, and requests wait. A server larger than the limit still starts, alone.

    Where all requests of the model can be answered, the new server is only better. The old one then stays until no request is on it, for
    `_BUSY_S` at most: its longest answer may take longer than new requests wait. For a model in `at_once` its own servers do not wait for
    that. If one is drained and a request has waited for `_LEND_AGAIN_S`, it is lent again; or for half of `deadline_s`, if that is
    shorter, or if another request needs the new server. It is lent again without delay if it is kept after all. A server that starts
    is never drained while a request waits for it: each of two models would end the other's load for ever.

    What is `later` failed just now: it does not start yet, so nothing makes room for it.
    """
    missing = {
        model: [entry for entry in _missing(model, wanted, servers) if (model, entry.drafting) not in later]
        for model, wanted in kept.items()
    }
    awaited = frozenset[int]().union(*(asked.able for groups in waiting.values() for asked in groups))
    unwanted = [
        server
        for server in servers
        if server.state.live
        and not _is_kept(server, kept)
        and not (server.state is InstanceState.STARTING and server.number in awaited)
    ]
    again = _lent_again(
        servers,
        unwanted,
        kept,
        waiting,
        missing=missing,
        limit_bytes=limit_bytes,
        deadline_s=deadline_s,
        at_once=at_once,
    )
    answering = {server.number for server in servers if server.state.live} | set(again)
    replaced = [
        server
        for server in unwanted
        if all(
            _runs(server.model, entry.drafting, servers, ready=True) for entry in kept.get(server.model, ())
        )
    ]
    drain = [server.number for server in replaced if _is_idle(server, awaited)]
    holding = _footprints(servers)
    start: list[tuple[str, LaunchEstimate]] = []
    # Models without a server first: a better one must not take the room in which another model's old server was.
    have = {server.model for server in servers if server.number in answering}
    for model in sorted(kept, key=have.__contains__):
        needs = not all(asked.able & answering for asked in waiting.get(model, ()))
        for entry in missing[model]:
            if holding and MemoryEstimate.total_bytes([*holding, entry.footprint]) > limit_bytes:
                may_go = [
                    server
                    for server in unwanted
                    if needs
                    or (model in at_once and server.model == model)
                    or (
                        (server.model == model or server.model not in kept)
                        and _is_quiet(server, awaited, now_s)
                    )
                ]
                victims, enough = _make_room(servers, may_go, entry, limit_bytes, awaited)
                if not (needs or enough or model in at_once):
                    break
                # Less important models must not take the memory that is being freed.
                return PoolActions(tuple(start), tuple(dict.fromkeys([*drain, *victims])), again)
            start.append((model, entry))
            holding.append(entry.footprint)
    drain += [server.number for server in replaced]
    return PoolActions(tuple(start), tuple(dict.fromkeys(drain)), again)


def _is_idle(server: ServerInstance, awaited: Container[int]) -> bool:
    """True if no request is on a server, and none waits for it."""
    return server.leases == 0 and server.number not in awaited


def _is_quiet(server: ServerInstance, awaited: Container[int], now_s: float) -> bool:
    """True if no request needs a server while another one starts, or if there was no such moment for `_BUSY_S`."""
    return _is_idle(server, awaited) or (server.leases > 0 and now_s - server.busy_since_s >= _BUSY_S)


def _missing(
    model: str, wanted: Sequence[LaunchEstimate], servers: Sequence[ServerInstance]
) -> list[LaunchEstimate]:
    """What is to be started. Not what still drains: it is lent again, or started when its memory is free."""
    draining = {
        server.drafting
        for server in servers
        if server.model == model and server.state is InstanceState.DRAINING and not server.outdated
    }
    return [
        entry
        for entry in wanted
        if entry.drafting not in draining and not _runs(model, entry.drafting, servers)
    ]


def _lent_again(
    servers: Sequence[ServerInstance],
    unwanted: Sequence[ServerInstance],
    kept: Mapping[str, Sequence[LaunchEstimate]],
    waiting: Mapping[str, Sequence[Waiting]],
    *,
    missing: Mapping[str, Sequence[LaunchEstimate]],
    limit_bytes: int,
    deadline_s: float,
    at_once: Container[str],
) -> tuple[int, ...]:
    """The draining servers that are kept after all, or for which a request has waited long enough."""
    live = {server.number for server in servers if server.state.live}
    draining = [server for server in servers if server.state is InstanceState.DRAINING]
    there = live | {server.number for server in draining}
    # What stays if all of these are lent again. Idle servers that nobody wants go at once.
    gone = {server.number for server in unwanted if server.leases == 0}
    staying = _footprints(server for server in servers if server.number in there - gone)
    # Models whose requests need a new server, for which there is no room then.
    needed = {
        model
        for model, groups in waiting.items()
        if not all(asked.able & there for asked in groups)
        and any(
            MemoryEstimate.total_bytes([*staying, entry.footprint]) > limit_bytes
            for entry in missing.get(model, ())
        )
    }
    again: list[int] = []
    kept_again: set[tuple[str, Drafting]] = set()
    for server in draining:
        model, what = server.model, (server.model, server.drafting)
        if model not in kept or not needed <= {model}:
            continue
        if _is_kept(server, kept):
            if not _runs(model, server.drafting, servers) and what not in kept_again:
                kept_again.add(what)
                again.append(server.number)
        elif model not in at_once:
            patience_s = deadline_s / 2 if model in needed else min(_LEND_AGAIN_S, deadline_s / 2)
            if any(
                server.number in asked.able and not asked.able & live and asked.longest_s >= patience_s
                for asked in waiting.get(model, ())
            ):
                again.append(server.number)
    return tuple(again)


def _make_room(
    servers: Sequence[ServerInstance],
    unwanted: Sequence[ServerInstance],
    entry: LaunchEstimate,
    limit_bytes: int,
    awaited: Container[int],
) -> tuple[list[int], bool]:
    """The fewest unwanted servers to drain, the least useful first, and whether with those that stop already they are enough.

    Idle ones make room in seconds. Only if they are not enough, answers are waited for: of those that drain already, then of others.
    """
    idle = [server for server in unwanted if _is_idle(server, awaited)]
    for staying, candidates in (
        ([server for server in servers if server.state is not InstanceState.STOPPING], idle),
        ([server for server in servers if server.state.live], unwanted),
    ):
        chosen = []
        for victim in sorted(candidates, key=lambda s: (s.leases > 0, s.number in awaited, s.used_at_s)):
            if MemoryEstimate.total_bytes([*_footprints(staying), entry.footprint]) <= limit_bytes:
                break
            staying.remove(victim)
            chosen.append(victim.number)
        left_bytes = MemoryEstimate.total_bytes([*_footprints(staying), entry.footprint])
        if not staying or left_bytes <= limit_bytes:
            return chosen, True
    return chosen, False


def _is_kept(server: ServerInstance, kept: Mapping[str, Sequence[LaunchEstimate]]) -> bool:
    return not server.outdated and any(
        entry.drafting == server.drafting for entry in kept.get(server.model, ())
    )


def _runs(model: str, drafting: Drafting, servers: Iterable[ServerInstance], *, ready: bool = False) -> bool:
    return any(
        server.model == model
        and server.drafting == drafting
        and not server.outdated
        and (server.state is InstanceState.READY if ready else server.state.live)
        for server in servers
    )


def _footprints(servers: Iterable[ServerInstance]) -> list[MemoryEstimate]:
    return [server.footprint for server in servers]


# mlx_lm.server 0.32.2 gives wrong text when it reuses the cache of a drafted request, in which a token may be missing (see
# `_cache_matches_key` in `autospec.backends.mlx.child`).
_NO_CACHE: Final = ("--prompt-cache-size", "0")


# What llama-server's log says of a projector that it cannot use.
_PROJECTOR: Final = re.compile(r"mmproj|mtmd|multimodal|clip_", re.IGNORECASE)


# A start that takes this many times its estimate counts as hung: users wait, and the server may start without drafting. A
# hard disk is ten times slower than the disk that the estimates assume.
_PATIENCE: Final = 20.0
_LEAST_TIMEOUT_S: Final = 120.0
_MOST_TIMEOUT_S: Final = 600.0


def _serve(
    engine: Engine,
    model: Model,
    drafting: Drafting,
    settings: LaunchSettings,
    projector: Path | None,
    *,
    needed: Callable[[], bool],
) -> Server:
    """Start a server and wait until it is ready; as `Backend.launch`, but refuses one whose text could be wrong, see `_NO_CACHE`.

    One that is not `needed` any more was ended while it loaded: that says nothing of its projector.
    """
    # A projector that nobody named must not keep a model from answering: if the server does not start with it, it starts without.
    if projector is not None:
        seeing = replace(settings, args=(*settings.args, "--mmproj", str(projector)))
        try:
            return _serve(engine, model, drafting, seeing, None, needed=needed)
        except (LaunchError, UsageError, UnsupportedError) as error:
            told = "\n".join((error.message, *error.log_tail)) if isinstance(error, LaunchError) else None
            if not needed() or (told is not None and not _PROJECTOR.search(told)):
                raise
            _log.warning(
                "%s is served without %s, with which its server does not start: %s",
                model.name,
                projector,
                error,
            )
    # The settings for measuring switch the cache off: they are tried if those for serving leave a harmful cache on.
    for serving in (True, False):
        server = engine.backend.launch(str(model.path), drafting, replace(settings, serving=serving))
        if _text_is_right(engine, server):
            return server
        server.stop()
    raise LaunchError(
        f"{engine.backend.name} may give wrong text when it drafts with its prompt cache.",
        "Remove prompt-cache settings from server_args.",
        permanent=True,
    )


def _text_is_right(engine: Engine, server: Server) -> bool:
    """True if the cache is off, or right after drafting too, or if no request can draft, whatever draft model the client names."""
    # What a client makes an attached server draft is between the two: autospec did not start it and asks for nothing.
    can = engine.capabilities
    if not can.drafting_per_request or _NO_CACHE in pairwise(server.command):
        return True
    # Of attached servers nothing is known of the cache; mlx_lm's says whether it is right after drafting.
    if can.cycle is Cycle.MLX_LM and not can.drafts_uncached:
        return True
    return server.drafting.is_off and (not engine.per_request or "draft_model" in engine.request_fields(OFF))


class MeasuringDaemon(Protocol):
    """A daemon that shares the machine, see `autospec.service.proxy_link.ProxyLink`."""

    @property
    def measuring(self) -> bool:
        """True if it measures now, and nothing here keeps it from that."""

    def serving(self) -> AbstractContextManager[object]:
        """Held around everything that a measurement must make room for."""

    async def machine_is_free(self) -> bool:
        """Wait, for a bounded time, until it has stopped its servers."""


class ServerPool:
    """All servers of the proxy; a daemon that measures is told of each launch, and frees the machine for it."""

    def __init__(
        self,
        changed: Callable[[], None],
        clock: Callable[[], float],
        daemon: MeasuringDaemon | None = None,
    ) -> None:
        self._daemon = daemon
        self._changed = changed
        self._clock = clock
        self._launches: list[ServerInstance] = []
        # Of servers that ended by themselves and were collected.
        self._clearing: list[asyncio.Future[None]] = []
        self._took_s: dict[tuple[str, Drafting], float] = {}
        self._totals: dict[tuple[str, Drafting], dict[str, int]] = {}

    def __iter__(self) -> Iterator[ServerInstance]:
        return iter(tuple(self._launches))

    def of(self, model: str) -> list[ServerInstance]:
        """One model's servers, the oldest first."""
        return [launch for launch in self._launches if launch.model == model]

    def live(self, model: str, *, draining: bool = False) -> tuple[Drafting, ...]:
        """Draftings of one model's servers that are ready or starting, or `draining`, and up to date, each once."""
        states = (InstanceState.DRAINING,) if draining else ()
        found = (la for la in self.of(model) if (la.state.live or la.state in states) and not la.outdated)
        current = sorted(found, key=lambda la: not la.state.live)
        return tuple(dict.fromkeys(launch.drafting for launch in current))

    def lendable(self, model: str) -> list[ServerInstance]:
        """One model's servers that can take a request now: up to date before outdated, then the least busy first."""
        for launch in self.of(model):
            launch.check()  # after its end its port may be another program's
        return sorted((la for la in self.of(model) if la.lendable), key=lambda la: (la.outdated, la.leases))

    def held(self) -> list[ServerInstance]:
        """All servers that hold memory."""
        return [launch for launch in self._launches if not launch.state.over]

    def bytes(self) -> int:
        """Memory that all servers together are expected to take."""
        return MemoryEstimate.total_bytes(_footprints(self.held()))

    def start(
        self,
        model: Model,
        engine: Engine,
        entry: LaunchEstimate,
        args: tuple[str, ...] = (),
        projector: Path | None = None,
        *,
        identity: tuple[object, ...] = (),
    ) -> ServerInstance:
        """Add a server and start it, with the user's arguments, and with a projector if the server can load it."""
        daemon = self._daemon
        longest_s = max(entry.launch_s, entry.cold_s)
        timeout_s = min(max(_PATIENCE * longest_s, _LEAST_TIMEOUT_S), _MOST_TIMEOUT_S)
        settings = LaunchSettings(args, timeout_s, served_as=model.name)
        launch = ServerInstance(
            model.name,
            entry.drafting,
            entry.footprint,
            lambda started: _serve(
                engine,
                model,
                entry.drafting,
                replace(settings, started=started),
                projector,
                needed=lambda: launch.state is InstanceState.STARTING,
            ),
            changed=self._changed,
            clock=self._clock,
            first=None if daemon is None else daemon.machine_is_free,
            around=nullcontext if daemon is None else daemon.serving,
            engine=engine,
            identity=identity,
        )
        self._launches.append(launch)
        self._count(launch, "started")
        launch.start()
        return launch

    def drain(self, actions: PoolActions) -> None:
        """Drain the servers that the actions name, and lend those again that they name for that."""
        for launch in self:
            if launch.number in actions.drain:
                launch.drain()
            elif launch.number in actions.lend_again:
                launch.lend_again()

    def look(self) -> None:
        """Check every process; an error with one keeps no other from being checked."""
        for launch in self:
            try:
                launch.look()
            except Exception:  # noqa: BLE001 - logged with its traceback; the next look follows in a second
                _log.exception("The server of %s could not be checked.", launch.model)

    def end(self, *, drain: bool) -> None:
        """Drain all servers, or stop them at once."""
        for launch in self:
            if drain:
                launch.drain()
            else:
                launch.stop()

    async def wait_cleared(self) -> None:
        """Wait until nothing of the servers that ended by themselves is left."""
        last = [launch.clearing for launch in self._launches if launch.clearing is not None]
        if clearing := {*self._clearing, *last}:
            await asyncio.wait(clearing)

    def took_s(self, model: str, drafting: Drafting) -> float | None:
        """Duration of the last start with a drafting; ``None`` if unknown."""
        return self._took_s.get((model, drafting))

    def collect(self) -> list[ServerInstance]:
        """Remove servers that have ended, and return those that failed."""
        over = [launch for launch in self._launches if launch.state.over]
        self._launches = [launch for launch in self._launches if not launch.state.over]
        for launch in self._launches:
            if launch.ready_at_s is not None:
                self._took_s[(launch.model, launch.drafting)] = launch.ready_at_s - launch.made_at_s
        failed = [launch for launch in over if launch.state is InstanceState.FAILED]
        self._clearing += [la.clearing for la in failed if la.clearing is not None]
        self._clearing = [clearing for clearing in self._clearing if not clearing.done()]
        for launch in failed:
            self._count(launch, "killed" if launch.killed else "died" if launch.crashed else "did_not_start")
        return failed

    def totals(self) -> list[dict[str, Any]]:
        """How many servers have started and failed so far, by model and drafting."""
        return [
            {"model": model, "drafting": drafting.to_json(), **counts}
            for (model, drafting), counts in self._totals.items()
        ]

    def _count(self, launch: ServerInstance, what: str) -> None:
        none = {"started": 0, "did_not_start": 0, "died": 0, "killed": 0}
        self._totals.setdefault((launch.model, launch.drafting), none)[what] += 1


class ServerLease:
    """A `Lease` that holds a server from construction on; `returned` gets the lease when it ends.

    Attributes:
        answers: How many answers its request asks for.
        tokens: The reported generated tokens; ``None`` if nothing was reported.
        prompt_tokens: Likewise those of the whole prompt.
    """

    def __init__(
        self,
        launch: ServerInstance,
        engine: Engine,
        drafting: Drafting,
        *,
        likely: frozenset[PromptType | None] = frozenset(),
        limit: Limit | None = None,
        why_off: Mapping[PromptType | None, WhyOff] = MappingProxyType({}),
        why_else: WhyOff | None = None,
        temperature: float | None = None,
        number: int = 0,
        answers: int = 1,
        is_probe: bool = False,
        returned: Callable[[ServerLease], None] = lambda _: None,
    ) -> None:
        launch.lend(is_probe=is_probe)
        assert launch.server is not None
        self.base_url = launch.server.base_url
        self.model = launch.model
        self.backend = engine.capabilities.build.backend
        self.build = engine.capabilities.build.version
        self.drafting = drafting
        self.likely = likely
        self.launch = launch
        self.fields: Mapping[str, Any] = {**launch.request_fields, **engine.request_fields(drafting)}
        self.headers = launch.request_headers
        self.limit = limit
        self.why_off = why_off
        self.why_else = why_else
        self.temperature = temperature
        self.keeps_cache = launch.drafting.is_off or not engine.capabilities.drafts_uncached
        self.answers = self.concurrent = answers
        self.tokens: float | None = None
        self.prompt_tokens: int | None = None
        self._returned = returned
        self._held = True
        self._number = number
        self._died = False
        self._answer: FollowedAnswer | None = None
        launch.requests.add(number)

    def died(self) -> None:
        """Report a broken connection: the server takes no requests until its process has been checked."""
        self._died = True
        self.launch.check(suspected=True)

    def follow(self, answer: FollowedAnswer) -> None:
        """Watch an answer."""
        self._answer = answer
        self.launch.follow(answer)

    def answered(self, tokens: float, prompt_tokens: int | None = None) -> None:
        """Report the number of generated tokens, and of the whole prompt's if it is known."""
        self.tokens = tokens
        self.prompt_tokens = prompt_tokens

    def give_back(self) -> None:
        """End the lease; may be called twice."""
        if self._held:
            self._held = False
            if self._answer is not None:
                self.launch.unfollow(self._answer)
            if not self._died:
                self.launch.requests.discard(self._number)
            self.launch.give_back()
            self._returned(self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        self.give_back()


@dataclass(frozen=True, slots=True, eq=False)
class WaitingRequest:
    """A request in the queue; `lease` gets a server, or the error that ends the wait."""

    request: RouteRequest
    since_s: float
    lease: asyncio.Future[ServerLease] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class RequestQueue:
    """Requests that wait for a server, in order of arrival: at most `limit`, each for at most `deadline_s`."""

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
