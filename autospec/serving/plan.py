"""Why a model gets the launches it gets, in one sentence. Pure.

Which launches to keep, and which prompt type goes where. A pure function of traffic, verdicts, memory and costs.

Seconds are compared with seconds. A set of launches saves, against drafting off and over the horizon,

    saved(S) = Σ over prompt types t of  tokens_per_s(t) · horizon / baseline_tps(t) · (1 − 1 / ratio(t, S))

where ratio(t, S) is the best that a launch in S offers to t. It costs the launches that do not run yet, `PAYBACK` times
over, and a small rent for every launch beyond the first, because memory has other uses:

    value(S) = saved(S) − PAYBACK · Σ launch_s of new launches − RENT · busy · (launches − 1)

The set of the highest value is kept. What runs is left only for a set that is better by `MARGIN` of the time that the
model is busy, so that a mix at the edge between two sets stays with the one it has. Because a detour never starts less
than the straight way does, planning again with the plan carried out changes nothing.

Memory goes first to models that are asked for, in the order of their use: each gets its smallest launch before any
gets a better or a second one. What does not fit is unloaded, the least used first.
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
from autospec.formats import duration, gigabytes
from autospec.recommendations import SCHEMA_VERSION
from autospec.serving.plan_inputs import (
    Capacity,
    Launchable,
    MemoryEstimate,
    ModelDemand,
    Route,
    TrafficForecast,
    best_route,
)

__all__ = ["ModelPlan", "Plan", "Route", "explain", "explain_none", "make_plan"]


# Below this share of the busy time a better set of launches is not worth a sentence.
_WORTH_SAYING = 0.01
# Prompt types named in a sentence; the routes name all.
_MOST_NAMED = 3


def explain(
    forecast: TrafficForecast, room: Capacity, chosen: Sequence[Launchable], ideal: Sequence[Launchable]
) -> str:
    """Why these launches.

    Args:
        forecast: Of the model.
        room: Memory and horizon.
        chosen: What is kept, at least one.
        ideal: What would save most if launches and memory cost nothing.
    """
    kept = " and ".join(_launch(forecast, entry.drafting, chosen) for entry in chosen)
    if forecast.busy_s <= 0.0:
        return f"{kept}, chosen for the tuned prompt types alike, as no traffic was seen yet."
    saved, busy = forecast.saved_s(chosen), forecast.busy_s
    if saved > 0.0:
        worth = f"expected to save {duration(saved)} of {duration(busy)} of generation in {duration(room.horizon_s)}"
    elif saved < 0.0:
        worth = f"expected to cost {duration(-saved)} of {duration(busy)} of generation in {duration(room.horizon_s)}"
    else:
        tuned = any(forecast.needs.advice.get(kind) for kind in forecast.shares)
        worth = (
            "no drafting pays for this traffic"
            if tuned
            else "nothing is known yet of what drafting does for it (the daemon finds out, or `autospec tune`)"
        )
    return f"{kept}: {worth}{_not_taken(forecast, room, chosen, ideal)}."


def explain_none(smallest_bytes: int | None, room: Capacity, *, wanted: bool) -> str:
    """Why no launch at all.

    Args:
        smallest_bytes: Memory of the model's smallest launch; ``None`` if nothing can be launched.
        room: The memory limit.
        wanted: True if the model runs or is asked for.
    """
    if smallest_bytes is None:
        return "No launch of this model is possible."
    if not wanted:
        return "Nobody asks for it."
    limit = room.memory_bytes or 0
    if smallest_bytes > limit:
        return f"Its smallest launch takes {gigabytes(smallest_bytes)}, more than the limit of {gigabytes(limit)}."
    return f"The memory ({gigabytes(limit)}) goes to models that are used more; it would take {gigabytes(smallest_bytes)}."


def _launch(forecast: TrafficForecast, launch: Drafting, chosen: Sequence[Launchable]) -> str:
    """One launch with the prompt types that go there, the most used first."""
    here = defaultdict[str, list[tuple[float, str]]](list)
    for kind, share in forecast.shares.items():
        route = best_route(forecast.needs, kind, chosen)
        if route.launch == launch:
            advice = forecast.needs.advice.get(kind)
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


def _not_taken(
    forecast: TrafficForecast, room: Capacity, chosen: Sequence[Launchable], ideal: Sequence[Launchable]
) -> str:
    """What would save more, and why it is not done; empty where nothing would."""
    more = forecast.saved_s(ideal) - forecast.saved_s(chosen)
    if more <= _WORTH_SAYING * forecast.busy_s:
        return ""
    new = [entry for entry in ideal if entry not in chosen and entry.drafting not in forecast.needs.running]
    names = " and ".join(entry.drafting.label for entry in ideal)
    needed = MemoryEstimate.total_bytes(entry.footprint for entry in ideal)
    if room.memory_bytes is None and len(ideal) > len(chosen):
        why = "the memory for a further launch is not known"
    elif room.memory_bytes is not None and needed > room.memory_bytes:
        why = f"that takes {gigabytes(needed)} of memory"
    elif new:
        why = f"that takes {duration(sum(entry.launch_s for entry in new))} to start"
    else:
        why = "other models need the memory"
    return f"; {names} would save {duration(more)} more, but {why}"


# A launch must earn its seconds twice: the forecast of traffic is the weakest number here, and while a server loads,
# the others on the machine are slower and the prompts it has not seen yet are computed anew.
PAYBACK: Final = 2.0
# Share of the busy time that a change must save: below it is the threshold of the verdicts themselves (+2 %).
MARGIN: Final = 0.02
# Share of the busy time that an extra launch must go on saving to keep its memory.
RENT: Final = 0.005
# Somebody who starts a model means to use it: the first launch is chosen as if it were busy for so long.
FIRST_BUSY_S: Final = 60.0
# A request that waited so long for a server goes before models that merely go on being used.
PATIENCE_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """What one model is given.

    Attributes:
        model: Catalogue name.
        launches: Draftings of the launches to keep, none where the model is to be unloaded.
        starts: Those of them that do not run yet.
        stops: Launches that run and are not kept.
        routes: For every prompt type, while any launch is kept.
        shares: Of the busy time, by prompt type.
        busy_s: Seconds that the model would generate for within the horizon with drafting off.
        saved_s: Of them, what the launches are expected to save.
        memory_bytes: Of the launches together.
        reason: One sentence.
    """

    model: str
    launches: tuple[Drafting, ...]
    starts: tuple[Drafting, ...]
    stops: tuple[Drafting, ...]
    routes: Mapping[PromptType, Route]
    shares: Mapping[PromptType, float]
    busy_s: float
    saved_s: float
    memory_bytes: int
    reason: str

    def route(self, prompt_type: PromptType | None) -> Route | None:
        """Where a request goes; one without a prompt goes to the first launch. ``None`` if none is kept."""
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
            "shares": {str(kind): round(share, 4) for kind, share in self.shares.items()},
            "busy_s": round(self.busy_s, 1),
            "saved_s": round(self.saved_s, 1),
            "memory_bytes": self.memory_bytes,
        }


@dataclass(frozen=True, slots=True)
class Plan:
    """All models.

    Attributes:
        models: In the order in which memory was given out.
        memory_bytes: Of all launches kept.
        overlap_bytes: The same while what stops still runs: if it fits, new launches can be ready before old ones drain.
        room: What the plan was made for.
    """

    models: tuple[ModelPlan, ...]
    memory_bytes: int
    overlap_bytes: int
    room: Capacity

    def of(self, model: str) -> ModelPlan | None:
        """One model's part."""
        return next((part for part in self.models if part.model == model), None)

    def to_json(self) -> dict[str, Any]:
        """The document of ``GET /autospec/v1/plan``."""
        return {
            "schema": SCHEMA_VERSION,
            "horizon_s": self.room.horizon_s,
            "memory_limit_bytes": self.room.memory_bytes,
            "memory_bytes": self.memory_bytes,
            "overlap_bytes": self.overlap_bytes,
            "overlap_fits": self.overlap_fits,
            "models": [part.to_json() for part in self.models],
        }

    @property
    def overlap_fits(self) -> bool:
        """True if every new launch can be ready before an old one is stopped."""
        limit = self.room.memory_bytes
        return limit is None or self.overlap_bytes <= limit


def make_plan(models: Sequence[ModelDemand], room: Capacity) -> Plan:
    """Decide which launches to keep.

    Args:
        models: Every model that runs or is asked for, each once; others need not be named.
        room: Memory, horizon and the most launches of a model.
    """
    models = [_one_per_draft(needs) for needs in models]
    ranked = sorted((TrafficForecast.of(needs, room.horizon_s) for needs in models), key=_priority)
    reserved = _smallest(ranked, room)
    kept: list[Launchable] = []
    parts = []
    for position, forecast in enumerate(ranked):
        name = forecast.needs.model
        chosen: tuple[Launchable, ...] = ()
        if name in reserved:
            # Later models keep at least their smallest launch; earlier ones have had their choice.
            later = [other.needs.model for other in ranked[position + 1 :]]
            others = [*kept, *(reserved[other] for other in later if other in reserved)]
            chosen = _choose(forecast, room, others)
        kept += chosen
        parts.append(_part(forecast, room, chosen))
    running = [entry for needs in models for entry in _running(needs)]
    return Plan(tuple(parts), _bytes(kept), _bytes([*kept, *running]), room)


def _priority(forecast: TrafficForecast) -> tuple[float, bool, float, str]:
    needs = forecast.needs
    waited = needs.waiting_s if needs.waiting_s >= PATIENCE_S else 0.0
    return (-waited, not needs.in_use, -forecast.busy_s, needs.model)


def _smallest(ranked: Sequence[TrafficForecast], room: Capacity) -> dict[str, Launchable]:
    """The smallest launch of each model that may stay: those that run or are asked for, as far as memory reaches."""
    reserved: dict[str, Launchable] = {}
    for forecast in ranked:
        least = _least(forecast.needs)
        if least is None or not _wanted(forecast.needs):
            continue
        if _fits([*reserved.values(), least], room):
            reserved[forecast.needs.model] = least
    return reserved


def _choose(
    forecast: TrafficForecast, room: Capacity, others: Sequence[Launchable]
) -> tuple[Launchable, ...]:
    """The launches of one model, at least one: the smallest is known to fit."""
    # Without a known limit, memory is not for a second launch.
    most = 1 if room.memory_bytes is None else room.twins
    sets = [chosen for chosen in _sets(forecast.needs, most) if _fits([*others, *chosen], room)]
    running = {entry.drafting for entry in _running(forecast.needs)}
    if not any(_runs(chosen, running) for chosen in sets):
        # The first launch has to be paid for whatever it is; a second one is then judged as beside any other.
        busy_s = max(forecast.busy_s, FIRST_BUSY_S)
        singles = [chosen for chosen in sets if len(chosen) == 1]
        running = {entry.drafting for entry in _best(replace(forecast, busy_s=busy_s), singles, set())}
    best = _best(forecast, sets, running)
    stay = _best(forecast, [chosen for chosen in sets if _runs(chosen, running)], running)
    better_s = _value(forecast, best, running) - _value(forecast, stay, running)
    return best if better_s > MARGIN * forecast.busy_s else stay


def _best(
    forecast: TrafficForecast, sets: Sequence[tuple[Launchable, ...]], running: AbstractSet[Drafting]
) -> tuple[Launchable, ...]:
    """The set of the highest value; among equals fewer launches, then off, then less memory, then the first."""
    return max(
        sets,
        key=lambda chosen: (
            _value(forecast, chosen, running),
            -len(chosen),
            any(entry.drafting.is_off for entry in chosen),
            -_bytes(chosen),
        ),
    )


def _value(forecast: TrafficForecast, chosen: Sequence[Launchable], running: AbstractSet[Drafting]) -> float:
    """The value of the module's formula, in seconds."""
    starting_s = sum(entry.launch_s for entry in chosen if entry.drafting not in running)
    rent_s = RENT * forecast.busy_s * (len(chosen) - 1)
    return forecast.saved_s(chosen) - PAYBACK * starting_s - rent_s


def _sets(needs: ModelDemand, most: int) -> Iterator[tuple[Launchable, ...]]:
    """Every set of launches that may be kept, in a fixed order."""
    entries = sorted(needs.launchable, key=lambda entry: entry.drafting.key)
    for size in range(1, 1 + (1 if needs.per_request else most)):
        yield from combinations(entries, size)


def _one_per_draft(needs: ModelDemand) -> ModelDemand:
    """Where drafting goes with the request, one launch for each draft model, named like the one that runs."""
    if not needs.per_request:
        return needs
    running = {drafting.draft: drafting for drafting in reversed(needs.running)}
    by_draft: dict[str | None, Launchable] = {}
    for entry in needs.launchable:
        draft = entry.drafting.draft
        by_draft.setdefault(draft, replace(entry, drafting=running.get(draft, entry.drafting)))
    return replace(needs, launchable=tuple(by_draft.values()))


def _part(forecast: TrafficForecast, room: Capacity, chosen: tuple[Launchable, ...]) -> ModelPlan:
    needs = forecast.needs
    if chosen:
        ideal = max(_sets(needs, room.twins), key=lambda some: (forecast.saved_s(some), -len(some)))
        reason = explain(forecast, room, chosen, ideal)
    else:
        least = _least(needs)
        reason = explain_none(_bytes([least]) if least else None, room, wanted=_wanted(needs))
    launches = tuple(entry.drafting for entry in chosen)
    return ModelPlan(
        model=needs.model,
        launches=launches,
        starts=tuple(drafting for drafting in launches if drafting not in needs.running),
        stops=tuple(drafting for drafting in needs.running if drafting not in launches),
        routes={kind: best_route(needs, kind, chosen) for kind in PromptType} if chosen else {},
        shares=forecast.shares,
        busy_s=forecast.busy_s,
        saved_s=forecast.saved_s(chosen) if chosen else 0.0,
        memory_bytes=_bytes(chosen),
        reason=reason,
    )


def _wanted(needs: ModelDemand) -> bool:
    return needs.in_use or bool(needs.running)


def _least(needs: ModelDemand) -> Launchable | None:
    """The smallest launch."""
    return min(needs.launchable, key=lambda entry: (_bytes([entry]), entry.drafting.key), default=None)


def _running(needs: ModelDemand) -> list[Launchable]:
    return [entry for entry in needs.launchable if entry.drafting in needs.running]


def _runs(chosen: Sequence[Launchable], running: AbstractSet[Drafting]) -> bool:
    return all(entry.drafting in running for entry in chosen)


def _bytes(entries: Sequence[Launchable]) -> int:
    return MemoryEstimate.total_bytes(entry.footprint for entry in entries)


def _fits(entries: Sequence[Launchable], room: Capacity) -> bool:
    return room.memory_bytes is None or _bytes(entries) <= room.memory_bytes
