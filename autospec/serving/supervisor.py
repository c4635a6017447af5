"""The supervisor: lends servers to requests, and supplies the reconciler with models and recommendations.

It implements `autospec.serving.dispatch.Dispatch`, the documents of ``GET /autospec/v1/status`` and ``…/plan`` included.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, Self, TypeVar

from autospec.catalog.model import Model
from autospec.errors import AutospecError, OverloadedError, StoreError, UnknownModelError
from autospec.hardware.energy import aim_in_force
from autospec.recommendations import SCHEMA_VERSION, Recommendation, Status, StoredRecommendation, Verdict
from autospec.serving.advice import (
    AdviceKey,
    ModelAdvice,
    is_likely,
    known_of,
    marked_stale,
    without_drafting,
)
from autospec.serving.dispatch import Offered, RouteRequest
from autospec.serving.instance import ServerInstance, in_thread
from autospec.serving.model_registry import (
    EMBEDDINGS_HINT,
    DraftingSwitches,
    ModelRegistry,
    switches_path,
)
from autospec.serving.plan_inputs import MemoryEstimate
from autospec.serving.reconciler import MISSED_S, ProxyDependencies, Reconciler
from autospec.serving.server_pool import ServerLease
from autospec.settings import Settings

__all__ = ["Supervisor"]

T = TypeVar("T")
_log = logging.getLogger(__name__)

# How often the database is polled for new recommendations: an indexed read of 0.3 ms.
_POLL_S: Final = 2.0
# Minimum time between two scans of the disk because of unknown model names.
_RESCAN_S: Final = 30.0
# How long a request for an unknown name, and everything else that needs the models as they are now, waits for a scan. Most take
# less than a second; the disk of a folder in `model_dirs` may hang for ever (a dead NFS server).
_SCAN_WAIT_S: Final = 30.0
# Time between two scans while servers run: builds are upgraded and files replaced.
_SCAN_S: Final = 300.0
# launchd and systemd give a service at least 20 s to end; answers in progress get half of it.
_DRAIN_S: Final = 10.0
# A server has 8 s to end and its guard 4 more (`autospec.backends.process`); servers end in parallel.
_STOP_S: Final = 13.0


class Supervisor:
    """See `Dispatch`. Create it with `Supervisor.start`, on the event loop that it will use."""

    def __init__(self, settings: Settings, dependencies: ProxyDependencies, registry: ModelRegistry) -> None:
        self._settings = settings
        self._trust = frozenset(map(Status, settings.serve_statuses))
        self.aim, self._aim_note = aim_in_force(settings.aim, dependencies.hardware)
        if self._aim_note:
            _log.warning("%s", self._aim_note)
        self._dependencies = dependencies
        self._clock = dependencies.clock
        self._reconciler = Reconciler(settings, dependencies, registry, self._gave_up)
        self._stored: Sequence[StoredRecommendation] = ()
        self._newest = -1
        self._switches = DraftingSwitches(switches_path(settings.state_dir))
        self._switched_off: Mapping[str, str] = {}  # as far as it is applied
        # Scans and reads must take effect in the order in which they were made.
        self._looking = asyncio.Lock()
        self._scanned_at_s = self._scan_begun_s = self._clock()
        self._scan: asyncio.Task[None] | None = None
        self._scanning: asyncio.Future[ModelRegistry] | None = None  # in its thread; it may hang
        self._learning: asyncio.Future[dict[str, ModelAdvice]] | None = None  # likewise
        self._reading: asyncio.Future[Any] | None = None  # likewise
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False

    @classmethod
    async def start(cls, settings: Settings, dependencies: ProxyDependencies) -> Self:
        """Scan the disk, read the recommendations, and start the control loop. Starts no server yet.

        A folder that does not answer keeps it from nothing but the models and the recommendations, which come when it answers.

        Raises:
            AutospecError: A setting is invalid, or the disk or the database cannot be read.
        """
        scan, registry = in_thread(dependencies.registry), ModelRegistry((), {})
        if (await asyncio.wait({scan}, timeout=_SCAN_WAIT_S))[0]:
            registry = scan.result()
        supervisor = cls(settings, dependencies, registry)
        if not scan.done():
            _log.warning("No model is known yet: a folder of model_dirs or a backend does not answer.")
            supervisor._scanning = scan
        try:
            await supervisor.refresh()
        except StoreError:
            raise
        except AutospecError as error:  # of `_learn`, which the poll repeats
            _log.warning("%s", error)
        supervisor._run(supervisor._reconciler.run())
        supervisor._run(supervisor._watch_recommendations())
        return supervisor

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.close()

    async def lease(self, wanted: RouteRequest) -> ServerLease:
        """See `Dispatch.lease`; raises `OverloadedError` also while the proxy is ending."""
        if self._closing:
            raise _shutting_down()
        try:
            model = await self._find(wanted.model)
            if not (wanted.is_probe or self._reconciler.pool.live(model.name)) and self._may_be_outdated():
                await self._scan_before_start(model)
                model = await self._find(wanted.model)
        except UnknownModelError as error:
            if wanted.embeds:  # the models that are here would not help
                raise UnknownModelError(error.message, EMBEDDINGS_HINT) from None
            raise
        if self._closing:  # meanwhile: nobody would serve or end its wait
            raise _shutting_down()
        return await self._reconciler.lend(
            wanted if wanted.model == model.name else replace(wanted, model=model.name)
        )

    def offered(self) -> Sequence[Offered]:
        """All models that clients may request, in the catalogue's order."""
        registry, pool = self._reconciler.options.registry, self._reconciler.pool
        latest = self._reconciler.demand.latest()
        return tuple(
            Offered(
                name=model.name,
                aliases=model.aliases,
                backend=registry.engine(model).capabilities.build.backend,
                running=tuple(dict.fromkeys(la.drafting for la in pool.lendable(model.name))),
                size_bytes=model.size_bytes,
                fingerprint=model.fingerprint,
                last_used=model.name == latest,
            )
            for model in registry.models
        )

    def plan(self) -> dict[str, Any]:
        """The plan, with the recommendations and launches that it was made from."""
        reconciler, now_s = self._reconciler, self._clock()
        document = reconciler.plan.to_json()
        document["age_s"] = round(now_s - reconciler.planned_at_s, 1)
        for part in document["models"]:
            name = part["model"]
            if not reconciler.options.registry.has(name):
                continue  # removed since the plan was made
            model, engine = reconciler.options.served(name)
            build = engine.capabilities.build
            advice = reconciler.options.of(name)
            part |= {
                "backend": build.backend,
                "backend_build": build.version,
                "drafting_per_request": engine.per_request,
                "off_was_asked_for": reconciler.demand.wants_off(name, now_s),
                "recommendations": [_advice(r) for r in advice.recommendations],
                "notes": [*advice.notes, *filter(None, (self._aim_note,))],
                "possible": [
                    {
                        "drafting": p.drafting.to_json(),
                        **_bytes(p.footprint),
                        "launch_s": round(p.launch_s, 2),
                    }
                    for p in reconciler.options.possible(model, now_s)
                ],
            }
        document["setbacks"] = reconciler.backoff.to_json(now_s)
        return document

    def status(self) -> dict[str, Any]:
        """Servers with state, use and memory; the queue; how busy the proxy is."""
        reconciler, now_s = self._reconciler, self._clock()
        launches = list(reconciler.pool)
        leases = sum(launch.leases for launch in launches)
        demand, waiting = reconciler.demand, reconciler.queue
        return {
            "schema": SCHEMA_VERSION,
            "closing": self._closing,
            "aim": str(self.aim),
            "busy": {
                "now": leases > 0 or len(waiting) > 0,
                "leases": leases,
                "waiting": len(waiting),
                "requests": demand.requests,
                "last_request_s_ago": None if demand.last_s is None else round(now_s - demand.last_s, 1),
            },
            "memory": {"limit_bytes": reconciler.memory_bytes, "launches_bytes": reconciler.pool.bytes()},
            "queue": {
                "waiting": len(waiting),
                "limit": waiting.limit,
                "deadline_s": waiting.deadline_s,
                "oldest_s": round(max((now_s - t.since_s for t in waiting), default=0.0), 1),
            },
            "idle_unload_s": reconciler.idle_unload_s,
            "launches": [_launch(launch, now_s) for launch in launches],
            "totals": reconciler.pool.totals(),
            "setbacks": reconciler.backoff.to_json(now_s),
            "drafting_off": dict(self._switched_off),
            "not_served": list(reconciler.options.registry.refused),
            "traffic": demand.traffic.to_json(now_s),
            "beyond_limits": {
                model: {str(limit): count for limit, count in sorted(counts.items())}
                for model, counts in sorted(demand.beyond_requests.items())
            },
        }

    async def switch_drafting(self, name: str, *, off: bool) -> str:
        """Switch drafting off for a model until it is switched on again; returns the model's name.

        Raises:
            UnknownModelError: No model has the name.
            ModelChoiceError: Several models match the name.
            AutospecError: It cannot be kept.
        """
        model = await self._find(name)
        async with self._looking:
            await in_thread(partial(self._switches.switch, model.name, off=off, now=datetime.now(UTC)))
            await self._learn()
        return model.name

    async def unload(self, name: str) -> tuple[str, int]:
        """Stop a model's servers as soon as their answers have ended; returns its name and the number of servers.

        Raises:
            UnknownModelError: No model has the name.
            ModelChoiceError: Several models match the name.
            OverloadedError: Requests wait for it.
        """
        model = await self._find(name)
        return model.name, self._reconciler.unload(model.name)

    async def close(self) -> None:
        """Let requests end for a bounded time, then stop every server; may be called twice."""
        self._closing = True
        self._reconciler.queue.refuse(_shutting_down())
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for drain, bound_s in ((True, _DRAIN_S), (False, _STOP_S)):
            self._reconciler.pool.end(drain=drain)
            with suppress(TimeoutError):
                async with asyncio.timeout(bound_s):
                    for launch in self._reconciler.pool:
                        await launch.wait_over()
                    await self._reconciler.pool.wait_cleared()

    async def refresh(self) -> None:
        """Read and apply the recommendations if there are new ones, and what is switched off by hand.

        Raises:
            StoreError: The database cannot be read.
        """
        async with self._looking:
            switched_off = await in_thread(self._switches.read)
            newest = await self._read(self._dependencies.newest)
            if newest == self._newest:
                if switched_off != self._switched_off:
                    await self._learn()
                return
            self._stored = await self._read(self._dependencies.recommendations)
            if self._newest >= 0:
                # They may need a build or a draft model that is newer than the last scan.
                await self._look()
            await self._learn()
            self._newest = newest  # last, so that a failure is tried again

    async def _read(self, read: Callable[[], T]) -> T:
        """Read the database, for a bounded time: scans of the disk and switches of drafting wait behind it."""
        if self._reading is None or self._reading.done():
            self._reading = reading = in_thread(read)
            reading.add_done_callback(lambda late: late.cancelled() or late.exception())
            if (await asyncio.wait({reading}, timeout=_SCAN_WAIT_S))[0]:
                return reading.result()
        # A read that hangs is not begun a second time: each one would hold a thread and a connection.
        raise StoreError(
            "The database does not answer.",
            "Check that the database in the setting `storage` can be reached: its server, or the disk of its file.",
        )

    async def _learn(self) -> None:
        registry, stored = self._reconciler.options.registry, self._stored
        switched_off = self._switches.since

        def known_now(model: Model) -> ModelAdvice:
            since = switched_off.get(model.name, "")
            likely = self._settings.trust == "likely" and not since
            found = known_of(model, self._place(registry, model), stored, self._trust, likely=likely)
            return without_drafting(found, since) if since else found

        # In a thread: it checks for draft files, whose disk may hang, too, and hashes a cell per recommendation and model.
        if self._learning is None or self._learning.done():
            self._learning = in_thread(lambda: {model.name: known_now(model) for model in registry.models})
            await asyncio.wait({self._learning}, timeout=_SCAN_WAIT_S)
        if not self._learning.done():
            raise AutospecError(
                "The draft models could not be checked: a folder does not answer.",
                "Check that every folder in model_dirs is mounted and readable, or remove it from there.",
            )
        self._reconciler.learn(self._learning.result())
        self._switched_off = switched_off

    def _place(self, registry: ModelRegistry, model: Model) -> AdviceKey:
        build = registry.engine(model).capabilities.build
        args = registry.own.args(model, self._settings)
        return AdviceKey(self._dependencies.hardware, build, args, self.aim)

    async def _watch_recommendations(self) -> None:
        logged, pause_s = False, _POLL_S
        while True:
            await asyncio.sleep(pause_s)
            try:
                if self._scan_is_due():  # first, because it does not need the database
                    await self._rescanned()
                await self.refresh()
                logged, pause_s = False, _POLL_S
            except Exception as error:  # noqa: BLE001 - polling must go on
                expected = isinstance(error, AutospecError)
                if not logged:  # once, not every two seconds
                    _log.warning(
                        "Recommendations are not up to date: %r", error, exc_info=None if expected else error
                    )
                # An unexpected error is likely to last, and each attempt may scan the disk.
                logged, pause_s = True, _POLL_S if expected else _RESCAN_S

    def _scan_is_due(self) -> bool:
        """True if builds and files may have been replaced since the last scan, and that matters now; or if a late one ended."""
        if self._scanning is not None and self._scanning.done():
            return True
        if self._reconciler.is_unsettled:
            return self._clock() - self._scanned_at_s >= MISSED_S
        return self._may_be_outdated() and bool(self._reconciler.pool.held())

    def _may_be_outdated(self) -> bool:
        return self._clock() - self._scanned_at_s >= _SCAN_S

    async def _find(self, name: str) -> Model:
        """The model with a client's name for it; without a name, the model of the last request or the only one."""
        try:
            return self._known(name)
        except UnknownModelError:
            if not name.strip() and self._scanning is None:
                raise
            await self._rescanned()
        if not self._reconciler.options.registry.models and self._scanning is not None:
            raise OverloadedError(
                "The models are not known yet: a folder of model_dirs or a backend does not answer.",
                "Try again in a moment. If it stays so, check that every folder in model_dirs is mounted and readable, or remove it.",
            )
        return self._known(name)  # also if the scan takes too long: meanwhile an earlier one may have ended

    async def _scan_before_start(self, model: Model) -> None:
        """Nobody scans while no server runs: a build that was replaced meanwhile would load the model twice."""
        if self._reconciler.options.registry.silent:
            return  # a scan of a folder that does not answer takes longer than most loads
        try:
            await self._rescanned()
        except OverloadedError:
            raise
        except Exception:  # noqa: BLE001 - logged with its traceback; the model is known
            _log.exception("The disk could not be scanned before %s was started.", model.name)

    def _known(self, name: str) -> Model:
        registry = self._reconciler.options.registry
        if not name.strip():
            only = registry.models[0].name if len(registry.models) == 1 else ""
            latest = self._reconciler.demand.latest()
            name = latest if registry.has(latest) else only
        return registry.find(name)

    async def _rescanned(self) -> None:
        """Scan the disk again, unless that was done recently or takes too long; concurrent callers share one scan."""
        if self._scan is None:
            is_late = self._scanning is not None and self._scanning.done()
            if self._clock() - self._scanned_at_s < _RESCAN_S and not is_late:
                return
            self._scan = self._run(self._rescan())
        scan = self._scan
        if (await asyncio.wait({scan}, timeout=_SCAN_WAIT_S))[0]:
            if scan.cancelled():
                raise _shutting_down()
            scan.result()

    async def _rescan(self) -> None:
        try:
            async with self._looking:
                await self._look(late=True)
                await self._learn_now_or_later()  # a new model is served without its recommendations
        finally:
            self._scan = None

    async def _learn_now_or_later(self) -> None:
        """Read the recommendations; if that fails, keep what is known until the poll has read them."""
        try:
            await self._learn()
        except AutospecError as error:
            self._newest = -1  # the poll tries again
            _log.warning("%s", error)

    async def _look(self, *, late: bool = False) -> None:
        """Scan the disk and probe the backends; keep the last result if that fails or takes too long.

        A scan that hangs is not begun a second time: each one would hold a thread. A late result is taken by the next look, which
        scans again, as it may be hours old; with `late`, one that is as young as a scan may be is enough.
        """
        if self._scanning is not None and self._scanning.done():
            self._offer(self._scanning)
            if late and self._clock() - self._scan_begun_s < _SCAN_S:
                self._scanned_at_s = self._clock()
                return
        wait_s = 0.0 if self._scanning is not None else _SCAN_WAIT_S
        if self._scanning is None:
            self._scan_begun_s = self._clock()
        scan = self._scanning = self._scanning or in_thread(self._dependencies.registry)
        try:
            if (await asyncio.wait({scan}, timeout=wait_s))[0]:
                self._offer(scan)
            else:
                _log.warning("The disk could not be scanned: a folder or a backend does not answer.")
        finally:
            self._scanned_at_s = self._clock()

    def _offer(self, scan: asyncio.Future[ModelRegistry]) -> None:
        self._scanning = None
        try:
            self._reconciler.offer(scan.result())
        except AutospecError as error:
            _log.warning("The disk could not be scanned: %s", error)

    def _gave_up(self, launch: ServerInstance) -> None:
        self._run(self._mark(launch))

    async def _mark(self, launch: ServerInstance) -> None:
        """Mark the recommendations of a drafting that does not start, unless its build or file was replaced meanwhile."""
        async with self._looking:
            await self._look()
            await self._learn_now_or_later()  # what is known already names the drafting
        reconciler, name, drafting = self._reconciler, launch.model, launch.drafting
        if not reconciler.options.registry.has(name):
            return
        model, engine = reconciler.options.served(name)
        if reconciler.is_missed(model.format) or launch.identity != reconciler.options.identity(
            name, drafting
        ):
            reconciler.backoff.forgive(name)
            return
        assert launch.error is not None
        for entry in reconciler.options.of(name).naming(drafting):
            recommendation = marked_stale(entry, engine.capabilities.build, launch.error.message)
            save = partial(self._dependencies.save, recommendation, entry.hardware, entry.cell_key)
            self._run(self._save(save, name))

    async def _save(self, save: Callable[[], None], model: str) -> None:
        try:
            await in_thread(save)
        except AutospecError as error:
            _log.warning("The recommendation for %s could not be marked as stale: %s", model, error)

    def _run(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _shutting_down() -> OverloadedError:
    return OverloadedError("The proxy is shutting down.", "Try again when it runs again.")


def _launch(launch: ServerInstance, now_s: float) -> dict[str, Any]:
    server = launch.server
    return {
        "number": launch.number,
        "launch_id": None if server is None else server.launch_id,
        "model": launch.model,
        "drafting": launch.drafting.to_json(),
        "state": str(launch.state),
        "leases": launch.leases,
        "served": launch.served,
        "unused_s": 0.0 if launch.leases else round(now_s - launch.used_at_s, 1),
        "launch_ms": None if server is None else round(server.launch_ms, 1),
        **_bytes(launch.footprint),
        "pids": [] if server is None else sorted(server.pids),
        "error": None if launch.error is None else str(launch.error),
    }


def _bytes(memory: MemoryEstimate) -> dict[str, int]:
    return {"own_bytes": memory.own_bytes, "shared_bytes": sum(memory.shared_bytes.values())}


def _advice(applied: Recommendation) -> dict[str, Any]:
    likely = is_likely(applied)
    return {
        "prompt_type": None if applied.prompt_type is None else str(applied.prompt_type),
        "verdict": str(Verdict.UNDECIDED if likely else applied.verdict),
        "status": str(applied.status),
        "aim": str(applied.aim),
        "likely": likely,
        "served_with": applied.drafting.to_json(),
        "speedup": _number(applied.speedup),
        "proof": {
            "generation_tps": _number(applied.evidence.get("decode_drafting_tps")),
            "generation_off_tps": _number(applied.evidence.get("decode_baseline_tps")),
            "acceptance": _number(applied.acceptance),
        },
    }


def _number(told: Any) -> float | None:
    """A figure, which may be anything in an imported record; JSON has no infinity."""
    return float(told) if isinstance(told, int | float) and math.isfinite(told) else None
