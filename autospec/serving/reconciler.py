"""The control loop: brings the servers to what the plan wants, and lends them to waiting requests.

`Reconciler.reconcile` compares the current state with the plan and does what is possible now. It runs after every change and
once a second, on the event loop without an await, so the state does not change while it looks; it keeps no memory of its own.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from autospec.cells import Hardware
from autospec.drafting import OFF, Drafting
from autospec.errors import LaunchError, SettingsError
from autospec.recommendations import Recommendation, StoredRecommendation
from autospec.serving.advice import ModelAdvice
from autospec.serving.backoff import Backoff
from autospec.serving.dispatch import RouteRequest
from autospec.serving.instance import InstanceState, ServerInstance
from autospec.serving.launch_options import LaunchOptions
from autospec.serving.model_registry import ModelRegistry
from autospec.serving.plan import Plan, make_plan
from autospec.serving.plan_inputs import Capacity, LaunchEstimate, MemoryEstimate, ModelDemand, advice_from
from autospec.serving.request_queue import RequestQueue, WaitingRequest
from autospec.serving.server_pool import ServerLease, ServerPool, next_actions
from autospec.serving.traffic import Demand
from autospec.settings import Settings, parse_duration

__all__ = ["ProxyDependencies", "Reconciler"]

_log = logging.getLogger(__name__)

# How often deadlines, idle models and processes are checked without a change.
_TICK_S: Final = 1.0
# How often the plan follows the mix of prompt types; other changes make a new plan at once.
_REPLAN_S: Final = 30.0
# A model that does not start at all refuses requests this long before the next attempt.
_BROKEN_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class ProxyDependencies:
    """What the supervisor reads and writes. The functions of the disk and the database block and are called in a thread.

    Attributes:
        hardware: This machine.
        registry: Scans the disk for models.
        newest: Returns a number that changes when there are new recommendations.
        recommendations: Returns the newest recommendation of every cell.
        save: Stores a recommendation under its cell's key.
        machine_is_free: Awaited on the event loop before each launch, for a bounded time: a daemon that is measuring stops
            its servers first. ``None`` without a daemon.
        clock: Seconds that never go back.
    """

    hardware: Hardware
    registry: Callable[[], ModelRegistry]
    newest: Callable[[], int]
    recommendations: Callable[[], Sequence[StoredRecommendation]]
    save: Callable[[Recommendation, Hardware, str], None]
    machine_is_free: Callable[[], Awaitable[object]] | None = None
    clock: Callable[[], float] = time.monotonic


class Reconciler:
    """Servers, queue and plan of all models; `gave_up` is told a model, a drafting and why it is not tried again."""

    def __init__(
        self,
        settings: Settings,
        dependencies: ProxyDependencies,
        registry: ModelRegistry,
        gave_up: Callable[[str, Drafting, str], None],
    ) -> None:
        if not settings.queue_deadline:
            raise SettingsError("queue_deadline must not be empty.", "Set e.g. 5m.")
        self._clock = clock = dependencies.clock
        self.demand = Demand()
        self.queue = RequestQueue(settings.queue_limit, parse_duration(settings.queue_deadline))
        self.pool = ServerPool(self._changed, clock, dependencies.machine_is_free)
        self.backoff = Backoff()
        self.options = LaunchOptions(settings, dependencies.hardware, registry, self.pool, self.backoff)
        self.memory_bytes = self.options.limit_bytes  # of all servers together
        self.idle_unload_s = parse_duration(settings.idle_unload) if settings.idle_unload else None
        self.plan = make_plan((), Capacity(self.memory_bytes))
        self.planned_at_s = clock()
        self._gave_up = gave_up
        self._planner: Callable[[Sequence[ModelDemand], Capacity], Plan] = make_plan
        self._kicked = asyncio.Event()
        self._plan_is_old = False
        self._restarting: set[str] = set()
        self._broken: dict[str, tuple[LaunchError, float]] = {}

    async def lend(self, request: RouteRequest) -> ServerLease:
        """Lend a server to one request; waits in the queue while none is free.

        Raises:
            OverloadedError: The queue is full, or the deadline passed.
            LaunchError: The model does not start, not even without drafting.
        """
        now, model = self._clock(), request.model
        self.demand.asked(model, now, drafting_off=request.drafting_off)
        if (lease := self._lend(request)) is not None:
            self.demand.arrived(model, request.prompt_type, now)
            return lease
        error, until_s = self._broken.get(model, (None, now))
        if error is not None and now < until_s:
            raise error
        waiting = WaitingRequest(request, now)
        self.queue.add(waiting)
        self.demand.arrived(model, request.prompt_type, now)
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
        """Take the result of a new scan of the disk; models that are gone are unloaded."""
        self.options.registry = registry
        for name in self.demand.awake:
            if not registry.has(name):
                self.demand.sleep(name)
                self.queue.refuse(LaunchError(f"The file of {name} no longer exists."), name)
        self._changed()

    async def run(self) -> None:
        """Reconcile after every change and once a second, for ever."""
        loop = asyncio.get_running_loop()
        looked_at_s = loop.time()
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(looked_at_s + _TICK_S):
                    await self._kicked.wait()
            self._kicked.clear()
            if loop.time() - looked_at_s >= _TICK_S:
                looked_at_s = loop.time()
                self.pool.look()
            try:
                self.reconcile()
            except Exception:  # noqa: BLE001 - an error here must not leave all later requests waiting
                _log.exception("The servers could not be updated; the next attempt follows in a second.")

    def reconcile(self) -> None:
        """Do what is possible now."""
        now = self._clock()
        self._collect(now)
        self.queue.expire(now)
        self._unload_unused(now)
        unplanned = any(not self._is_planned(waiting.request.model) for waiting in self.queue)
        if self._plan_is_old or unplanned or now - self.planned_at_s >= _REPLAN_S:
            self._plan_is_old = False
            self.planned_at_s = now
            self.plan = self._planner(self._demands(now), Capacity(self.memory_bytes))
        actions = next_actions(self.pool.held(), self._kept(now), self.memory_bytes)
        self.pool.drain(actions)
        for name, entry in actions.start:
            if self.backoff.not_before_s(name, entry.drafting) <= now:
                model, engine = self.options.served(name)
                self.pool.start(model, engine, entry, self.options.args(model), self.options.projector(model))
        self.queue.serve(self._lend)

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
                    running=self.pool.live(name),
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
        _, engine = self.options.served(request.model)
        per_request = engine.per_request
        part = self.plan.of(request.model)
        route = part.route(request.prompt_type) if part is not None else None
        launch, drafting = lendable[0], lendable[0].drafting
        if request.drafting_off and not per_request:
            chosen = next((la for la in lendable if la.drafting.is_off), None)
            if chosen is None:
                return None
            launch, drafting = chosen, OFF
        elif route and (planned := next((la for la in lendable if la.drafting == route.launch), None)):
            launch, drafting = planned, route.drafting
        elif off := next((la for la in lendable if la.drafting.is_off), None):
            # The planned server is not ready yet; off is always correct.
            launch, drafting = off, OFF
        if per_request and (request.drafting_off or drafting.draft != launch.drafting.draft):
            drafting = OFF
        begun = self._clock()

        def returned(tokens: float | None) -> None:
            now = self._clock()
            self.demand.answered(request.model, request.prompt_type, tokens, now - begun, now)

        likely = self.options.of(request.model).likely(drafting)
        return ServerLease(launch, engine, drafting, likely=likely, returned=returned)

    def _able(self, request: RouteRequest) -> list[ServerInstance]:
        """The servers that can answer a request now, the least busy first."""
        lendable = self.pool.lendable(request.model)
        if not (request.images and self.options.takes_images(request.model)):
            return lendable
        seeing = [launch for launch in lendable if launch.takes_images]
        if not seeing and any(launch.drafting.is_off for launch in lendable):
            return lendable  # no server of this model can see, and each says so itself
        if lendable and not seeing:
            # This build drafts without a projector only: the server without drafting has it.
            now = self._clock()
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
            if launch.state is InstanceState.READY:
                self._restarting.discard(launch.model)
                self._broken.pop(launch.model, None)
                assert launch.ready_at_s is not None
                self.backoff.lives(launch.model, launch.drafting, now_s - launch.ready_at_s)
        for launch in self.pool.collect():
            assert launch.error is not None
            _log.warning("%s with %s: %s", launch.model, launch.drafting.label, launch.error)
            self._plan_is_old = True
            if launch.crashed:
                self._restarting.add(launch.model)
                setback = self.backoff.crashed(launch.model, launch.drafting, launch.error, now_s)
            else:
                assert isinstance(launch.error, LaunchError)
                setback = self.backoff.failed(launch.model, launch.drafting, launch.error, now_s)
                if launch.drafting.is_off:
                    self._give_up_model(launch, launch.error, max(setback.not_before_s, now_s + _BROKEN_S))
            if setback.given_up:
                self._gave_up(launch.model, launch.drafting, setback.sentence)

    def _give_up_model(self, launch: ServerInstance, error: LaunchError, until_s: float) -> None:
        """A model does not start even without drafting: refuse its waiting requests, and new ones for a moment."""
        self._restarting.discard(launch.model)
        self._broken[launch.model] = (error, until_s)
        if not self.pool.live(launch.model):
            self.queue.refuse(error, launch.model)

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
