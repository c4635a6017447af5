"""The control loop: brings the servers to what the plan wants, and lends them to waiting requests.

`Reconciler.reconcile` compares the current state with the plan and does what is possible now. It runs after every change and
once a second, on the event loop without an await, so the state does not change while it looks; it keeps no memory of its own.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from autospec.catalog.model import Format
from autospec.cells import Build, Hardware, PromptType
from autospec.drafting import OFF, Drafting
from autospec.errors import LaunchError, OverloadedError, UsageError
from autospec.formats import counted
from autospec.recommendations import Recommendation, StoredRecommendation
from autospec.serving.advice import ModelAdvice, beyond
from autospec.serving.dispatch import Limit, RouteRequest, WhyOff
from autospec.serving.instance import InstanceState, ServerInstance, in_thread
from autospec.serving.launch_options import Backoff, LaunchOptions
from autospec.serving.model_registry import EMBEDDINGS_HINT, Engine, ModelRegistry
from autospec.serving.plan import Plan, make_plan
from autospec.serving.plan_inputs import (
    Capacity,
    LaunchEstimate,
    MemoryEstimate,
    ModelDemand,
    Route,
    advice_from,
)
from autospec.serving.server_pool import (
    MeasuringDaemon,
    RequestQueue,
    ServerLease,
    ServerPool,
    Waiting,
    WaitingRequest,
    next_actions,
)
from autospec.serving.traffic import Demand, PromptLengths
from autospec.settings import Settings, parse_duration

__all__ = ["MISSED_S", "ProxyDependencies", "Reconciler"]

_log = logging.getLogger(__name__)

# How often deadlines, idle models and processes are checked without a change.
_TICK_S: Final = 1.0
# How often the plan follows the mix of prompt types; other changes make a new plan at once.
_REPLAN_S: Final = 30.0
# How long an engine is used that a scan did not find. An upgrade of a backend takes some seconds.
MISSED_S: Final = 60.0
# A model that does not start at all refuses requests this long before the next attempt.
_BROKEN_S: Final = 1.0
_NOTHING: Final[Mapping[PromptType | None, WhyOff]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class ProxyDependencies:
    """What the supervisor reads and writes. The functions of the disk and the database block and are called in a thread.

    Attributes:
        hardware: This machine.
        registry: Scans the disk for models.
        newest: Returns a number that changes when there are new recommendations.
        recommendations: Returns the newest recommendation of every cell.
        save: Stores a recommendation under its cell's key.
        daemon: Told of each launch; if it is measuring, it stops its servers first, for which the launch waits a bounded time.
            ``None`` without a daemon.
        clock: Seconds that never go back.
    """

    hardware: Hardware
    registry: Callable[[], ModelRegistry]
    newest: Callable[[], int]
    recommendations: Callable[[], Sequence[StoredRecommendation]]
    save: Callable[[Recommendation, Hardware, str], None]
    daemon: MeasuringDaemon | None = None
    clock: Callable[[], float] = time.monotonic


class Reconciler:
    """Servers, queue and plan of all models; `gave_up` is told a server that would not start again either."""

    def __init__(
        self,
        settings: Settings,
        dependencies: ProxyDependencies,
        registry: ModelRegistry,
        gave_up: Callable[[ServerInstance], None],
    ) -> None:
        self._clock = clock = dependencies.clock
        self.demand = Demand()
        self.prompt_lengths = PromptLengths()
        self.queue = RequestQueue(settings.queue_limit, parse_duration(settings.queue_deadline))
        self.pool = ServerPool(self._changed, clock, dependencies.daemon)
        self.backoff = Backoff()
        self.options = LaunchOptions(settings, dependencies.hardware, registry, self.pool, self.backoff)
        self.memory_bytes = self.options.limit_bytes  # of all servers together
        self.idle_unload_s = parse_duration(settings.idle_unload) if settings.idle_unload else None
        self.plan = make_plan((), Capacity(self.memory_bytes))
        self.planned_at_s = clock()
        self._gave_up = gave_up
        self._daemon = dependencies.daemon
        self._planner: Callable[[Sequence[ModelDemand], Capacity], Plan] = make_plan
        self._kicked = asyncio.Event()
        self._plan_is_old = False
        self._answering: dict[str, set[ServerLease]] = {}  # requests that generate, by model
        self._restarting: set[str] = set()  # models without a server for a moment: they count as in use
        self._broken: dict[str, tuple[LaunchError, float]] = {}
        self._missed_since_s: dict[Format, float] = {}  # engines that the last scan did not find

    async def lend(self, request: RouteRequest) -> ServerLease:
        """Lend a server to one request; waits in the queue while none is free. A probe neither waits nor starts one.

        Raises:
            OverloadedError: The queue is full, or the deadline passed; for a probe, no server runs.
            LaunchError: The model does not start, not even without drafting.
            UsageError: It asks for embeddings, which no server of the model makes.
        """
        now, model = self._clock(), request.model
        if request.is_probe:
            # Whatever its headers say: every server of the model answers it.
            if (probed := self._lend(replace(request, drafting_off=False))) is not None:
                return probed
            raise OverloadedError(f"No server of {model} runs now.", "Try again in a moment.")
        if request.embeds and not self.options.embeds(model):  # before a server is started for it
            raise UsageError(
                f"The server of {model} writes text: it makes no embeddings and ranks no texts.",
                EMBEDDINGS_HINT,
            )
        hopeless = self._hopeless(request, now)
        # A request that is refused must not make the servers start one for it.
        self.demand.asked(model, now, drafting_off=hopeless is None and self._takes_off_server(request))
        if (lease := self._lend(request)) is not None:
            self.demand.arrived(request, now)
            return lease
        if hopeless is not None:
            raise _fresh(*hopeless)
        waiting = WaitingRequest(request, now - request.waited_s)
        self.queue.add(waiting)
        _ = request.facts  # now that there is time, and so that its document is not held while it waits
        self.demand.arrived(request, now)
        # If the plan already keeps a launch for this model, one more waiting request does not change the plan.
        self._plan_is_old |= not self._is_planned(model)
        self._kicked.set()
        try:
            return await waiting.lease
        except asyncio.CancelledError:
            self.queue.discard(waiting)
            if waiting.lease.done() and not waiting.lease.cancelled() and waiting.lease.exception() is None:
                waiting.lease.result().give_back()  # lent in the moment when the client disconnected
            raise

    def learn(self, known: Mapping[str, ModelAdvice]) -> None:
        """Take new recommendations, by model name; a model with new ones may try every drafting again."""
        for model, now_known in known.items():
            if self.options.of(model) != now_known:
                self.backoff.forgive(model)
        self.options.known = known
        self._changed()

    def offer(self, registry: ModelRegistry) -> None:
        """Take the result of a new scan of the disk.

        Models that are gone are unloaded, unless their folder does not answer, and servers whose build or file was replaced are
        replaced. An upgrade takes a program away for a moment: an engine that is missing, or is another backend's, counts only when a
        scan `MISSED_S` later says so.
        """
        registry = registry.keeping(self.options.registry)
        now, before = self._clock(), self.options.registry.engines
        missed = [kind for kind, engine in before.items() if not registry.still_has(kind, engine)]
        self._missed_since_s = {kind: self._missed_since_s.get(kind, now) for kind in missed}
        kept = {kind: before[kind] for kind in missed if now - self._missed_since_s[kind] < MISSED_S}
        self.options.registry = registry = registry.with_engines(kept)
        if _build_of(registry.engines) != _build_of(before):
            in_thread(self.options.read_limit).add_done_callback(self._limited)
        for launch in self.pool:
            if registry.has(launch.model):
                launch.outdated = launch.identity != self.options.identity(launch.model, launch.drafting)
                if launch.outdated and launch.state.live:
                    self._restarting.add(launch.model)
        for name in self.demand.awake:
            if not registry.has(name):
                self.demand.sleep(name)
                self.queue.refuse(
                    LaunchError(
                        f"The file of {name} no longer exists.",
                        "Put it back, or use another model: `autospec models` lists them.",
                    ),
                    name,
                )
        self._changed()

    def _limited(self, limit: asyncio.Future[int]) -> None:
        """Take the memory limit of a new build, which may use other cards than the one before."""
        if limit.cancelled() or limit.exception() is not None:
            return  # no thread was free; the limit stays
        self.memory_bytes = self.options.limit_bytes = limit.result()
        self._changed()

    def unload(self, model: str) -> int:
        """Stop a model's servers as soon as their answers have ended; returns their number. Its next request starts it again.

        Raises:
            OverloadedError: Requests wait for it.
        """
        if waiting := len(self.queue.of(model)):
            raise OverloadedError(
                f"{model} has {counted(waiting, 'request')} waiting for a server.",
                "Try again when they are answered.",
            )
        self.demand.sleep(model)
        self._restarting.discard(model)
        self._changed()
        return sum(launch.state.live for launch in self.pool.of(model))

    def is_missed(self, kind: Format) -> bool:
        """True if the last scan did not find the engine of a format, which is used until another scan says the same."""
        return kind in self._missed_since_s

    @property
    def is_unsettled(self) -> bool:
        """True if another scan has to say whether an engine is gone."""
        return bool(self._missed_since_s)

    async def run(self) -> None:
        """Reconcile after every change and once a second, for ever."""
        loop = asyncio.get_running_loop()
        looked_at_s = loop.time()
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(looked_at_s + _TICK_S):
                    await self._kicked.wait()
            self._kicked.clear()
            try:
                if loop.time() - looked_at_s >= _TICK_S:
                    looked_at_s = loop.time()
                    self.pool.look()
                self.reconcile()
            except Exception:  # noqa: BLE001 - an error here must not leave all later requests waiting
                _log.exception("The servers could not be updated; the next attempt follows in a second.")

    def reconcile(self) -> None:
        """Do what is possible now."""
        now = self._clock()
        self.queue.expire(now)  # first: whatever fails below, nobody waits longer than the deadline
        self._collect(now)
        self._unload_unused(now)
        unplanned = any(not self._is_planned(waiting.request.model) for waiting in self.queue)
        if self._plan_is_old or unplanned or now - self.planned_at_s >= _REPLAN_S:
            self._plan_is_old = False
            self.planned_at_s = now
            self.plan = self._planner(self._demands(now), Capacity(self.memory_bytes))
            # What others took the memory of does not come back by itself.
            self._restarting = {model for model in self._restarting if self._is_planned(model)}
        self.queue.serve(
            self._lend
        )  # before a server is drained for others: requests have waited for its load
        held, kept = self.pool.held(), self._kept(now)
        if self._daemon is not None and self._daemon.measuring and not len(self.queue):
            # Nobody waits for a switch, which would disturb the measurement; what is kept by no plan is stopped.
            held, kept = [launch for launch in held if launch.model not in kept], {}
        actions = next_actions(
            held,
            kept,
            self.memory_bytes,
            self._waiting(now),
            now_s=now,
            deadline_s=self.queue.deadline_s,
            at_once={name for name in kept if self._drafts_against_the_users_will(name)},
            later={
                (name, entry.drafting)
                for name, entries in kept.items()
                for entry in entries
                if self.backoff.not_before_s(name, entry.drafting) > now
            },
        )
        self.pool.drain(actions)
        # Where two servers do not fit, none runs between the old one and the new one.
        drained = {launch.model for launch in held if launch.number in actions.drain}
        self._restarting |= {model for model in drained if model in kept and not self.pool.live(model)}
        for name, entry in actions.start:
            model, engine = self.options.served(name)
            self.pool.start(
                model,
                engine,
                entry,
                self.options.args(model),
                self.options.projector(model),
                identity=self.options.identity(name, entry.drafting),
            )
        self.queue.serve(self._lend)

    def _waiting(self, now_s: float) -> dict[str, list[Waiting]]:
        """The queue by model, and by the servers that can answer."""
        longest_s: dict[tuple[str, frozenset[int]], float] = {}
        for waiting in self.queue:
            able = frozenset(launch.number for launch in self._able_to_answer(waiting.request))
            key = waiting.request.model, able
            longest_s[key] = max(longest_s.get(key, 0.0), now_s - waiting.since_s)
        found: dict[str, list[Waiting]] = {}
        for (model, able), waited_s in longest_s.items():
            found.setdefault(model, []).append(Waiting(waited_s, able))
        return found

    def _able_to_answer(self, request: RouteRequest) -> list[ServerInstance]:
        """The servers that can answer a request, now or when they have started; also those that drain."""
        states = (InstanceState.STARTING, InstanceState.READY, InstanceState.DRAINING)
        there = [launch for launch in self.pool.of(request.model) if launch.state in states]
        if self._takes_off_server(request):
            return [launch for launch in there if launch.drafting.is_off]
        if request.images and self.options.takes_images(request.model):
            return [launch for launch in there if not _drafts_blindly(launch)]
        return there

    def _drafts_against_the_users_will(self, name: str) -> bool:
        """True if a model's servers draft although that is switched off."""
        if not self.options.of(name).switched_off or self.options.served(name)[1].per_request:
            return False
        return any(not (launch.drafting.is_off or launch.state.over) for launch in self.pool.of(name))

    def _demands(self, now_s: float) -> list[ModelDemand]:
        demands = []
        for name in self.demand.awake:
            model, engine = self.options.served(name)
            waiting = self.queue.of(name)
            leases = sum(launch.leases for launch in self.pool.of(name))
            demands.append(
                ModelDemand(
                    model=name,
                    possible=self.options.possible(model, now_s),
                    advice=advice_from(self.options.of(name).recommendations),
                    tokens_per_s=self.demand.traffic.tokens_per_s(name, now_s),
                    beyond_per_s=self.demand.beyond_per_s(name, now_s),
                    why_off=self.options.of(name).why_off,
                    # Where requests choose the drafting, a server that drains is the same as a new one with its draft model.
                    running=self.pool.live(name, draining=engine.per_request),
                    in_use=bool(waiting) or leases > 0 or name in self._restarting,
                    waiting_s=max((now_s - w.since_s for w in waiting), default=0.0),
                    per_request=engine.per_request,
                )
            )
        return demands

    def _kept(self, now_s: float) -> dict[str, tuple[LaunchEstimate, ...]]:
        """The servers that should run: the plan's, and one without drafting if a client asked for it."""
        kept = {}
        for part in self.plan.models:
            if part.launches:
                kept[part.model] = tuple(self.options.estimate(part.model, d) for d in part.launches)
        for name, planned in list(kept.items()):
            if self.demand.wants_off(name, now_s) and all(not entry.drafting.is_off for entry in planned):
                off = self.options.estimate(name, OFF)
                everything = [entry.footprint for entries in kept.values() for entry in entries]
                fits = MemoryEstimate.total_bytes([*everything, off.footprint]) <= self.memory_bytes
                # A server without drafting can serve every request, the others cannot.
                kept[name] = (*planned, off) if fits else (off,)
        return kept

    def _lend(self, request: RouteRequest) -> ServerLease | None:
        """The best ready launch for a request; ``None`` if it has to wait."""
        lendable = self._able(request)
        if not lendable:
            return None
        per_request = self.options.served(request.model)[1].per_request
        route = self._route(request)
        launch, drafting = lendable[0], lendable[0].drafting
        limit = self._beyond(request)
        off = next((la for la in lendable if la.drafting.is_off), None)
        if request.drafting_off and not per_request:
            if off is None:
                return None
            launch, drafting = off, OFF
        elif limit is not None and off is not None and not per_request:
            launch, drafting = off, OFF
        elif route and (planned := next((la for la in lendable if la.drafting == route.launch), None)):
            launch, drafting = planned, route.drafting
        elif off is not None:
            # The planned server is not ready yet; off is always correct.
            launch, drafting = off, OFF
        elif per_request:
            # This server's own drafting may be another prompt type's.
            drafting = self.options.of(request.model).drafting_for(request.facts.prompt_type)
        if per_request and (
            request.drafting_off
            or limit is not None
            or drafting.draft != launch.drafting.draft
            or self.options.of(request.model).switched_off
        ):
            drafting = OFF
        return self._lease(request, launch, drafting, limit)

    def _route(self, request: RouteRequest) -> Route | None:
        """Where the plan sends a request. Its prompt is read only if that depends on it."""
        part = self.plan.of(request.model)
        if part is None:
            return None
        if request.prompt is not None and part.only_route is not None:
            return part.only_route
        return part.route(request.facts.prompt_type)

    def _lease(
        self, request: RouteRequest, launch: ServerInstance, drafting: Drafting, limit: Limit | None
    ) -> ServerLease:
        """Lend a server, and count the request while it is answered."""
        model, begun = request.model, self._clock()
        answering = self._answering.setdefault(model, set())

        def returned(lease: ServerLease) -> None:
            if request.is_probe:
                return
            now = self._clock()
            answering.discard(lease)
            if lease.prompt_tokens is not None:
                self.prompt_lengths.learn(model, request, lease.prompt_tokens)
            self.demand.answered(
                model, request.facts.prompt_type, lease.tokens, now - begun, now, limit=limit
            )

        why_off, why_else = self._why_off(request, drafting, limit)
        lease = ServerLease(
            launch,
            # What was measured on the server belongs to the build that it was started from.
            launch.engine or self.options.served(model)[1],
            drafting,
            likely=self.options.of(model).likely(drafting),
            limit=limit,
            why_off=why_off,
            why_else=why_else,
            temperature=self._temperature(request),
            number=request.number,
            answers=request.answers,
            is_probe=request.is_probe,
            returned=returned,
        )
        if request.prompt is not None:
            answering.add(lease)
            at_once = sum(other.answers for other in answering)
            for other in answering:
                other.concurrent = max(other.concurrent, at_once)
        if limit is not None:
            self.demand.went_beyond(model, limit, begun)
        return lease

    def _beyond(self, request: RouteRequest) -> Limit | None:
        """The limit that a request is beyond: of the drafting recommended for it, whatever servers run."""
        # All requests of the model count, also those on a server without drafting: they take the same machine.
        advice = self.options.of(request.model)
        if request.prompt is None or request.drafting_off or not advice.has_limits:
            return None
        return beyond(
            advice.limits_for(request.facts.prompt_type),
            at_once=sum(lease.answers for lease in self._answering.get(request.model, ())) + request.answers,
            prompt_tokens=self.prompt_lengths.estimate(request.model, request),
            temperature=self._temperature(request),
        )

    def _why_off(
        self, request: RouteRequest, drafting: Drafting, limit: Limit | None
    ) -> tuple[Mapping[PromptType | None, WhyOff], WhyOff | None]:
        """Why a request gets no drafting: by prompt type, which this does not read, and for types that have one otherwise."""
        if not drafting.is_off:
            return _NOTHING, None
        if request.drafting_off:
            return _NOTHING, WhyOff.ASKED
        part = self.plan.of(request.model)
        known = self.options.of(request.model).why_off if part is None else part.why_off
        return known, WhyOff.LIMIT if limit else self._why_elsewhere(request)

    def _why_elsewhere(self, request: RouteRequest) -> WhyOff:
        """Why a request is not on the server with drafting to which the plan sends it."""
        model, route, now = request.model, self._route(request), self._clock()
        if route is None:
            return WhyOff.NOT_READY
        sees = request.images and self.options.takes_images(model)
        planned = (launch for launch in self.pool.of(model) if launch.drafting == route.launch)
        if sees and any(la.state is InstanceState.READY and not la.takes_images for la in planned):
            return WhyOff.IMAGE
        # For minutes after a request that needs off, only that server may have room.
        gave_way = self.demand.wants_off(model, now) and all(
            entry.drafting != route.launch for entry in self._kept(now).get(model, ())
        )
        if not gave_way:
            return WhyOff.NOT_READY
        return WhyOff.IMAGE if sees else WhyOff.PLAN

    def _temperature(self, request: RouteRequest) -> float | None:
        """The temperature of a request; ``None`` if it generates nothing."""
        if request.prompt is None:
            return None
        return self.options.temperature(request.model) if request.temperature is None else request.temperature

    def _able(self, request: RouteRequest) -> list[ServerInstance]:
        """The servers that can answer a request now, the least busy first."""
        lendable = self.pool.lendable(request.model)
        if not (request.images and self.options.takes_images(request.model)):
            return lendable
        seeing = [launch for launch in lendable if launch.takes_images]
        if not seeing and any(launch.drafting.is_off for launch in lendable):
            return lendable  # no server of this model can see, and each says so itself
        draining = [la for la in self.pool.of(request.model) if la.state is InstanceState.DRAINING]
        if not seeing and (lendable or (draining and not self.pool.live(request.model))):
            # This build drafts without a projector only: the server without drafting has it.
            now = self._clock()
            if self._hopeless(request, now) is None:
                if not self.demand.wants_off(request.model, now):
                    self._kicked.set()  # once, because this is also called while reconciling
                self.demand.needs_off(request.model, now)
        return seeing

    def _is_planned(self, model: str) -> bool:
        """True if the plan keeps a launch for a model."""
        part = self.plan.of(model)
        return part is not None and bool(part.launches)

    def _collect(self, now_s: float) -> None:
        """Record servers that became ready or failed."""
        for launch in self.pool:
            if launch.state is InstanceState.READY and not launch.outdated:
                self._restarting.discard(launch.model)
                if launch.drafting.is_off:
                    self._broken.pop(launch.model, None)
                assert launch.ready_at_s is not None
                self.backoff.lives(launch.model, launch.drafting, now_s - launch.ready_at_s)
        for launch in self.pool.collect():
            assert launch.error is not None
            _log.warning("%s with %s: %s", launch.model, launch.drafting.label, launch.error)
            self._plan_is_old = True
            if launch.crashed:
                self._restarting.add(launch.model)
                requests = frozenset(launch.requests)
                setback = self.backoff.crashed(
                    launch.model,
                    launch.drafting,
                    launch.error,
                    now_s,
                    requests=requests,
                    killed=launch.killed,
                )
            else:
                assert isinstance(launch.error, LaunchError)
                setback = self.backoff.failed(launch.model, launch.drafting, launch.error, now_s)
                if launch.drafting.is_off:
                    self._give_up_model(launch, launch.error, max(setback.not_before_s, now_s + _BROKEN_S))
            if setback.given_up:
                self._gave_up(launch)

    def _give_up_model(self, launch: ServerInstance, error: LaunchError, until_s: float) -> None:
        """A model does not start without drafting: refuse the requests that need that, and new ones for a moment."""
        self._restarting.discard(launch.model)
        self._broken[launch.model] = (error, until_s)
        self.demand.forget_off(launch.model)
        self.queue.refuse(_fresh(error, until_s - self._clock()), launch.model, only=self._needs_off)

    def _hopeless(self, request: RouteRequest, now_s: float) -> tuple[LaunchError, float] | None:
        """Why a request that needs a server without drafting is refused, and for how long: that did not start just now."""
        error, until_s = self._broken.get(request.model, (None, now_s))
        if error is None or now_s >= until_s or not self._needs_off(request):
            return None
        return error, until_s - now_s

    def _needs_off(self, request: RouteRequest) -> bool:
        """True if only a server without drafting could answer: the client asks for it, or no other one runs, starts or sees."""
        if self._takes_off_server(request):
            return True
        return not any(launch.state.live for launch in self._able_to_answer(request))

    def _takes_off_server(self, request: RouteRequest) -> bool:
        """True if the client asks for no drafting, and the backend cannot leave it out for one request."""
        return request.drafting_off and not self.options.served(request.model)[1].per_request

    def _unload_unused(self, now_s: float) -> None:
        if self.idle_unload_s is None:
            return
        for model in self.demand.awake:
            busy = bool(self.queue.of(model)) or any(launch.leases for launch in self.pool.of(model))
            if not busy and self.demand.unused_s(model, now_s) >= self.idle_unload_s:
                self.demand.sleep(model)
                self._plan_is_old = True

    def _changed(self) -> None:
        self._plan_is_old = True
        self._kicked.set()


def _build_of(engines: Mapping[Format, Engine]) -> Build | None:
    """The build that serves GGUF files."""
    return engines["gguf"].capabilities.build if "gguf" in engines else None


def _drafts_blindly(launch: ServerInstance) -> bool:
    """True if a server drafts without a projector. One that starts may turn out to have it."""
    return launch.state is not InstanceState.STARTING and not (launch.takes_images or launch.drafting.is_off)


def _fresh(error: LaunchError, retry_after_s: float) -> LaunchError:
    """A copy without a traceback. One that is raised again and again holds the frames, and the body, of every request."""
    again = copy(error)
    again.retry_after_s = max(0.0, retry_after_s)
    return again
