"""Which servers to keep, which prompt type goes to which server, and why. A pure function of traffic, recommendations and memory.

All terms are seconds. A set S of servers saves, compared with no drafting over the horizon,

    saved(S) = Σ over prompt types t of  tokens_per_s(t) · horizon / baseline_tps(t) · (1 − 1 / ratio(t, S))

where ratio(t, S) is the best ratio for t in S. It costs the launches of servers that do not run yet, `PAYBACK` times, and a
small rent for every server beyond the first, because the memory has other uses:

    value(S) = saved(S) − PAYBACK · Σ launch_s of new servers − RENT · busy · (servers − 1)

The plan keeps the set of the highest value. It leaves the running set only for one that is better by `MARGIN` of the busy
time, so that traffic at the edge between two sets causes no switching. A detour never costs fewer launches than the direct
way, so planning again after carrying out the plan changes nothing.

Memory goes first to models in use, the busiest first: each gets its smallest server before any gets a better or second one.
What does not fit is unloaded, the least used first.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Final

from autospec.cells import PromptType
from autospec.drafting import Drafting
from autospec.formats import duration, gigabytes, listed
from autospec.recommendations import SCHEMA_VERSION, THRESHOLD
from autospec.serving.dispatch import WhyOff
from autospec.serving.plan_inputs import (
    Capacity,
    LaunchEstimate,
    MemoryEstimate,
    ModelDemand,
    Route,
    TrafficForecast,
    best_route,
)

__all__ = ["Plan", "make_plan"]

# A better set of servers is mentioned only if it saves more than this share of the busy time.
_WORTH_SAYING = 0.01
# Most prompt types in a sentence; the routes contain all.
_MOST_NAMED = 3
# A launch must save its own time twice: the traffic forecast is the least certain number here, a loading server slows the
# others down, and a new server has to process cached prompts again.
PAYBACK: Final = 2.0
# Share of the busy time that a change must save: as much as a verdict's usual threshold.
MARGIN: Final = THRESHOLD
# Share of the busy time that an additional server must save to keep its memory.
RENT: Final = 0.005
# A model that is started will be used: its first server is chosen as if it were busy this long.
FIRST_BUSY_S: Final = 60.0
# A model whose request has waited this long comes before models that are only in use.
PATIENCE_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """The servers of one model; `starts` and `stops` are the changes against now, `reason` is one sentence."""

    model: str
    launches: tuple[Drafting, ...]
    starts: tuple[Drafting, ...]
    stops: tuple[Drafting, ...]
    routes: Mapping[PromptType, Route]
    only_route: Route | None  # of every prompt type; ``None`` if the type matters, or no server is kept
    why_off: Mapping[PromptType | None, WhyOff]  # of prompt types that go to no drafting
    shares: Mapping[PromptType, float]  # of the busy time
    beyond_share: float  # of the busy time: requests beyond a limit of their drafting
    busy_s: float  # generation time without drafting, within the horizon
    saved_s: float  # expected saving
    memory_bytes: int
    reason: str

    def route(self, prompt_type: PromptType | None) -> Route | None:
        """The route of a request; without a prompt type, to the first server. ``None`` if no server is kept."""
        if prompt_type is not None and prompt_type in self.routes:
            return self.routes[prompt_type]
        return Route(self.launches[0], self.launches[0], 1.0) if self.launches else None

    def to_json(self) -> dict[str, Any]:
        """One entry of the plan's ``models``."""
        return {
            "model": self.model,
            "reason": self.reason,
            "launches": [drafting.to_json() for drafting in self.launches],
            "starts": [drafting.to_json() for drafting in self.starts],
            "stops": [drafting.to_json() for drafting in self.stops],
            "routes": {str(kind): route.to_json() for kind, route in self.routes.items()},
            "why_off": {str(kind): str(why) for kind, why in self.why_off.items() if kind is not None},
            "shares": {str(kind): round(share, 4) for kind, share in self.shares.items()},
            "beyond_limits": round(self.beyond_share, 4),
            "busy_s": round(self.busy_s, 1),
            "saved_s": round(self.saved_s, 1),
            "memory_bytes": self.memory_bytes,
        }


@dataclass(frozen=True, slots=True)
class Plan:
    """The plan of all models; `overlap_bytes` is the memory while old servers run beside the new ones."""

    models: tuple[ModelPlan, ...]
    memory_bytes: int
    overlap_bytes: int
    capacity: Capacity

    def of(self, model: str) -> ModelPlan | None:
        """The plan of one model; ``None`` if it has none."""
        return next((part for part in self.models if part.model == model), None)

    def to_json(self) -> dict[str, Any]:
        """The document of ``GET /autospec/v1/plan``."""
        return {
            "schema": SCHEMA_VERSION,
            "horizon_s": self.capacity.horizon_s,
            "memory_limit_bytes": self.capacity.memory_bytes,
            "memory_bytes": self.memory_bytes,
            "overlap_bytes": self.overlap_bytes,
            "overlap_fits": self.overlap_fits,
            "models": [part.to_json() for part in self.models],
        }

    @property
    def overlap_fits(self) -> bool:
        """True if all new servers can be ready before an old one is stopped."""
        limit = self.capacity.memory_bytes
        return limit is None or self.overlap_bytes <= limit


def make_plan(models: Sequence[ModelDemand], capacity: Capacity) -> Plan:
    """Decide which servers to keep; `models` are those that run or have requests."""
    models = [_one_per_draft(demand) for demand in models]
    ranked = sorted((TrafficForecast.of(demand, capacity.horizon_s) for demand in models), key=_priority)
    reserved = _smallest(ranked, capacity)
    kept: list[LaunchEstimate] = []
    parts = []
    for position, forecast in enumerate(ranked):
        name = forecast.demand.model
        chosen: tuple[LaunchEstimate, ...] = ()
        if name in reserved:
            # Later models keep at least their smallest server.
            later = [other.demand.model for other in ranked[position + 1 :]]
            others = [*kept, *(reserved[other] for other in later if other in reserved)]
            chosen = _choose(forecast, capacity, others)
        kept += chosen
        parts.append(_part(forecast, capacity, chosen))
    running = [entry for demand in models for entry in _running(demand)]
    return Plan(tuple(parts), _bytes(kept), _bytes([*kept, *running]), capacity)


def _priority(forecast: TrafficForecast) -> tuple[float, bool, float, str]:
    demand = forecast.demand
    waited = demand.waiting_s if demand.waiting_s >= PATIENCE_S else 0.0
    return (-waited, not demand.in_use, -forecast.busy_s, demand.model)


def _smallest(ranked: Sequence[TrafficForecast], capacity: Capacity) -> dict[str, LaunchEstimate]:
    """The smallest server of each model that runs or has requests, as far as the memory suffices."""
    reserved: dict[str, LaunchEstimate] = {}
    for forecast in ranked:
        least = _least(forecast.demand)
        if least is None or not _wanted(forecast.demand):
            continue
        if _fits([*reserved.values(), least], capacity):
            reserved[forecast.demand.model] = least
    return reserved


def _choose(
    forecast: TrafficForecast, capacity: Capacity, others: Sequence[LaunchEstimate]
) -> tuple[LaunchEstimate, ...]:
    """The servers of one model, at least one: the smallest is known to fit."""
    # If the memory is unknown, there is no second server.
    most = 1 if capacity.memory_bytes is None else capacity.twins
    sets = [chosen for chosen in _sets(forecast.demand, most) if _fits([*others, *chosen], capacity)]
    running = {entry.drafting for entry in _running(forecast.demand)}
    if not any(_runs(chosen, running) for chosen in sets):
        # Some first launch is unavoidable, so its cost does not count; a second one is then judged beside it.
        busy_s = max(forecast.busy_s, FIRST_BUSY_S)
        singles = [chosen for chosen in sets if len(chosen) == 1]
        running = {entry.drafting for entry in _best(replace(forecast, busy_s=busy_s), singles, set())}
    best = _best(forecast, sets, running)
    stay = _best(forecast, [chosen for chosen in sets if _runs(chosen, running)], running)
    better_s = _value(forecast, best, running) - _value(forecast, stay, running)
    return best if better_s > MARGIN * forecast.busy_s else stay


def _best(
    forecast: TrafficForecast, sets: Sequence[tuple[LaunchEstimate, ...]], running: AbstractSet[Drafting]
) -> tuple[LaunchEstimate, ...]:
    """The set of the highest value; if equal, fewer servers, then off, then less memory, then the first."""
    return max(
        sets,
        key=lambda chosen: (
            _value(forecast, chosen, running),
            -len(chosen),
            any(entry.drafting.is_off for entry in chosen),
            -_bytes(chosen),
        ),
    )


def _value(
    forecast: TrafficForecast, chosen: Sequence[LaunchEstimate], running: AbstractSet[Drafting]
) -> float:
    """value(S) of the module's docstring."""
    starting_s = sum(entry.launch_s for entry in chosen if entry.drafting not in running)
    rent_s = RENT * forecast.busy_s * (len(chosen) - 1)
    return forecast.saved_s(chosen) - PAYBACK * starting_s - rent_s


def _sets(demand: ModelDemand, most: int) -> Iterator[tuple[LaunchEstimate, ...]]:
    """Every set of servers that may be kept, in a fixed order."""
    entries = sorted(demand.possible, key=lambda entry: entry.drafting.key)
    for size in range(1, 1 + (1 if demand.per_request else most)):
        yield from combinations(entries, size)


def _one_per_draft(demand: ModelDemand) -> ModelDemand:
    """If the drafting is chosen per request: one launch per draft model, named after the running one."""
    if not demand.per_request:
        return demand
    running = {drafting.draft: drafting for drafting in reversed(demand.running)}
    by_draft: dict[str | None, LaunchEstimate] = {}
    for entry in demand.possible:
        draft = entry.drafting.draft
        by_draft.setdefault(draft, replace(entry, drafting=running.get(draft, entry.drafting)))
    return replace(demand, possible=tuple(by_draft.values()))


def _part(forecast: TrafficForecast, capacity: Capacity, chosen: tuple[LaunchEstimate, ...]) -> ModelPlan:
    demand = forecast.demand
    if chosen:
        ideal = max(_sets(demand, capacity.twins), key=lambda some: (forecast.saved_s(some), -len(some)))
        reason = _explain(forecast, capacity, chosen, ideal)
    else:
        least = _least(demand)
        reason = _explain_none(_bytes([least]) if least else None, capacity, wanted=_wanted(demand))
    launches = tuple(entry.drafting for entry in chosen)
    routes = {kind: best_route(demand, kind, chosen) for kind in PromptType} if chosen else {}
    ways = {(route.launch, route.drafting): route for route in routes.values()}
    return ModelPlan(
        model=demand.model,
        launches=launches,
        starts=tuple(drafting for drafting in launches if drafting not in demand.running),
        stops=tuple(drafting for drafting in demand.running if drafting not in launches),
        routes=routes,
        only_route=next(iter(ways.values())) if len(ways) == 1 else None,
        why_off=_why_off(demand, routes, launches),
        shares=forecast.shares,
        beyond_share=forecast.beyond_share,
        busy_s=forecast.busy_s,
        saved_s=forecast.saved_s(chosen) if chosen else 0.0,
        memory_bytes=_bytes(chosen),
        reason=reason,
    )


def _why_off(
    demand: ModelDemand, routes: Mapping[PromptType, Route], launches: Sequence[Drafting]
) -> dict[PromptType | None, WhyOff]:
    """Why prompt types go to no drafting; ``None`` stands for a prompt whose type is not known, as in `ModelPlan.route`."""
    possible = {entry.drafting for entry in demand.possible}
    off: list[PromptType | None] = [kind for kind, route in routes.items() if route.drafting.is_off]
    if launches and launches[0].is_off:
        off.append(None)
    found = {}
    for kind in off:
        recommended = demand.advice.get(kind) if kind else None
        refused = recommended is not None and not demand.per_request and recommended.drafting not in possible
        found[kind] = demand.why_off.get(kind, WhyOff.FAILED_LAUNCH if refused else WhyOff.PLAN)
    return found


def _wanted(demand: ModelDemand) -> bool:
    return demand.in_use or bool(demand.running)


def _least(demand: ModelDemand) -> LaunchEstimate | None:
    """The launch with the least memory."""
    return min(demand.possible, key=lambda entry: (_bytes([entry]), entry.drafting.key), default=None)


def _running(demand: ModelDemand) -> list[LaunchEstimate]:
    return [entry for entry in demand.possible if entry.drafting in demand.running]


def _runs(chosen: Sequence[LaunchEstimate], running: AbstractSet[Drafting]) -> bool:
    return all(entry.drafting in running for entry in chosen)


def _bytes(entries: Sequence[LaunchEstimate]) -> int:
    return MemoryEstimate.total_bytes(entry.footprint for entry in entries)


def _fits(entries: Sequence[LaunchEstimate], capacity: Capacity) -> bool:
    return capacity.memory_bytes is None or _bytes(entries) <= capacity.memory_bytes


def _explain(
    forecast: TrafficForecast,
    capacity: Capacity,
    chosen: Sequence[LaunchEstimate],
    ideal: Sequence[LaunchEstimate],
) -> str:
    """Why the plan keeps these servers; `ideal` would save most if launches and memory cost nothing."""
    kept = " and ".join(_launch(forecast, entry.drafting, chosen) for entry in chosen)
    if forecast.busy_s <= 0.0:
        return f"{kept}: chosen for all tuned prompt types equally, because there was no traffic yet."
    saved, busy = forecast.saved_s(chosen), forecast.busy_s
    if saved > 0.0:
        worth = f"expected to save {duration(saved)} of {duration(busy)} of generation in {duration(capacity.horizon_s)}"
    elif saved < 0.0:
        worth = f"expected to cost {duration(-saved)} of {duration(busy)} of generation in {duration(capacity.horizon_s)}"
    else:
        tuned = any(forecast.demand.advice.get(kind) for kind in forecast.shares)
        if not tuned:
            worth = "drafting was not measured for this model yet (the daemon will do that, or run `autospec tune`)"
        elif forecast.saved_s(ideal) > 0.0:
            worth = "drafting saves too little for this traffic so far"
        else:
            worth = "no drafting pays for this traffic"
        if tuned and (unknown := _not_measured(forecast)):
            worth = f"{worth}; not measured yet, so served without drafting: {unknown}"
    beyond = forecast.beyond_share
    if beyond > _WORTH_SAYING:
        where = (
            "go to the server without drafting" if any(entry.drafting.is_off for entry in chosen) else "stay"
        )
        if forecast.demand.per_request:
            where = "are served without drafting"
        worth = f"{worth}; requests beyond the measured limits ({beyond:.0%} of the time) {where}"
    return f"{kept}: {worth}{_not_taken(forecast, capacity, chosen, ideal)}."


def _explain_none(smallest_bytes: int | None, capacity: Capacity, *, wanted: bool) -> str:
    """Why the plan keeps no server; `smallest_bytes` is the memory of the smallest possible one."""
    if smallest_bytes is None:
        return "No server can be started for this model."
    if not wanted:
        return "No client uses it."
    limit = capacity.memory_bytes or 0
    if smallest_bytes > limit:
        return f"Its smallest server needs {gigabytes(smallest_bytes)}, more than the limit of {gigabytes(limit)}."
    return f"It needs {gigabytes(smallest_bytes)}; models that are used more take the memory limit of {gigabytes(limit)}."


def _launch(forecast: TrafficForecast, launch: Drafting, chosen: Sequence[LaunchEstimate]) -> str:
    """One server with its prompt types, the most used first."""
    here = defaultdict[str, list[tuple[float, str]]](list)
    for kind, share in forecast.shares.items():
        route = best_route(forecast.demand, kind, chosen)
        if route.launch == launch:
            advice = forecast.demand.advice.get(kind)
            likely = advice is not None and advice.likely and advice.drafting == route.drafting
            here[f"{route.drafting.label} (likely)" if likely else route.drafting.label].append(
                (share, str(kind))
            )
    if not here or forecast.busy_s <= 0.0:
        return launch.label
    return " and ".join(f"{label} for {_kinds(kinds)}" for label, kinds in here.items())


def _kinds(kinds: list[tuple[float, str]]) -> str:
    ranked = sorted(kinds, key=lambda kind: (-kind[0], kind[1]))
    named = ", ".join(f"{name} ({share:.0%})" for share, name in ranked[:_MOST_NAMED])
    more = len(ranked) - _MOST_NAMED
    return f"{named} and {more} more" if more > 0 else named


def _not_measured(forecast: TrafficForecast) -> str:
    """The prompt types of the traffic without a recommendation, the most used first."""
    known = forecast.demand.advice
    kinds = [str(kind) for kind, share in forecast.shares.items() if share > 0.0 and not known.get(kind)]
    return listed(kinds[:_MOST_NAMED]) if kinds else ""


def _not_taken(
    forecast: TrafficForecast,
    capacity: Capacity,
    chosen: Sequence[LaunchEstimate],
    ideal: Sequence[LaunchEstimate],
) -> str:
    """A set that would save more, and why the plan does not use it; empty if there is none."""
    more = forecast.saved_s(ideal) - forecast.saved_s(chosen)
    if more <= _WORTH_SAYING * forecast.busy_s:
        return ""
    new = [entry for entry in ideal if entry not in chosen and entry.drafting not in forecast.demand.running]
    names = " and ".join(entry.drafting.label for entry in ideal)
    needed = _bytes(ideal)
    if capacity.memory_bytes is None and len(ideal) > len(chosen):
        why = "the memory limit for another server is not known"
    elif capacity.memory_bytes is not None and needed > capacity.memory_bytes:
        why = f"that needs {gigabytes(needed)} of memory"
    elif new:
        start_s = sum(entry.launch_s for entry in new)
        rent_s = RENT * forecast.busy_s * max(0, len(ideal) - len(chosen))
        least_s = PAYBACK * start_s + rent_s + MARGIN * forecast.busy_s
        why = f"a change must save {duration(least_s)} ({duration(start_s)} to start, twice, and a part of the busy time)"
    else:
        why = "other models need the memory"
    return f"; {names} would save {duration(more)} more, but {why}"
