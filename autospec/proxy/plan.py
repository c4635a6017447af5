"""Which launches to keep, and which prompt type goes where. A pure function of traffic, verdicts, memory and costs.

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

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final

from autospec.cells import PromptType
from autospec.drafting import OFF, Drafting
from autospec.proxy.needs import UNMEASURED_RATIO, Advice, Footprint, Launchable, Needs, Room

__all__ = ["ModelPlan", "Plan", "Route", "make_plan"]

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
# Only the proportions between types matter while no speed is known at all.
_ANY_TPS: Final = 20.0


@dataclass(frozen=True, slots=True)
class Route:
    """Where requests of one prompt type go.

    Attributes:
        launch: Drafting that the launch was started with: its name among the model's launches.
        drafting: What is in force for the request; differs from `launch` only where drafting goes with the request.
        ratio: Speed over off that the plan counts with.
    """

    launch: Drafting
    drafting: Drafting
    ratio: float


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """What one model is given.

    Attributes:
        model: Catalogue name.
        launches: Draftings of the launches to keep, none where the model is to be unloaded.
        starts: Those of them that do not run yet.
        stops: Launches that run and are not kept.
        routes: For every prompt type, while any launch is kept.
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
    busy_s: float
    saved_s: float
    memory_bytes: int
    reason: str

    def route(self, prompt_type: PromptType | None) -> Route | None:
        """Where a request goes; one without a prompt goes to the first launch. ``None`` if none is kept."""
        if prompt_type is not None and prompt_type in self.routes:
            return self.routes[prompt_type]
        return Route(self.launches[0], self.launches[0], 1.0) if self.launches else None


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
    room: Room

    def of(self, model: str) -> ModelPlan | None:
        """One model's part."""
        return next((part for part in self.models if part.model == model), None)

    @property
    def overlap_fits(self) -> bool:
        """True if every new launch can be ready before an old one is stopped."""
        limit = self.room.memory_bytes
        return limit is None or self.overlap_bytes <= limit


def make_plan(models: Sequence[Needs], room: Room) -> Plan:
    """Decide which launches to keep.

    Args:
        models: Every model that runs or is asked for; others need not be named.
        room: Memory, horizon and the most launches of a model.
    """
    order = sorted(models, key=_priority)
    reserved = _smallest(order, room)
    kept: list[Launchable] = []
    parts = []
    for position, needs in enumerate(order):
        # Later models keep at least their smallest launch; earlier ones have had their choice.
        others = [*kept, *(reserved[later.model] for later in order[position + 1 :] if later.model in reserved)]
        chosen: tuple[Launchable, ...] = ()
        if needs.model in reserved:
            chosen = _choose(needs, room, others)
        kept += chosen
        parts.append(_part(needs, room, chosen))
    running = [entry for needs in models for entry in _running(needs)]
    return Plan(
        models=tuple(parts),
        memory_bytes=_bytes(kept),
        overlap_bytes=_bytes([*kept, *running]),
        room=room,
    )


def _priority(needs: Needs) -> tuple[float, bool, float, str]:
    waited = needs.waiting_s if needs.waiting_s >= PATIENCE_S else 0.0
    return (-waited, not needs.in_use, -_Forecast(needs, Room()).busy_s, needs.model)


def _smallest(order: Sequence[Needs], room: Room) -> dict[str, Launchable]:
    """The smallest launch of each model that may stay: those that run or are asked for, as far as memory reaches."""
    reserved: dict[str, Launchable] = {}
    for needs in order:
        wanted = needs.in_use or bool(needs.running)
        if not wanted or not needs.launchable:
            continue
        least = min(needs.launchable, key=lambda entry: (_bytes([entry]), entry.drafting.key))
        if _fits([*reserved.values(), least], room):
            reserved[needs.model] = least
    return reserved


def _choose(needs: Needs, room: Room, others: Sequence[Launchable]) -> tuple[Launchable, ...]:
    """The launches of one model, at least one: the smallest is known to fit."""
    forecast = _Forecast(needs, room)
    running = frozenset(entry.drafting for entry in _running(needs))
    sets = [chosen for chosen in _sets(needs, room) if _fits([*others, *chosen], room)]
    if not any(entry.drafting in running for chosen in sets for entry in chosen):
        # The first launch has to be paid for whatever it is; a second one is then judged as beside any other.
        busy = max(forecast.busy_s, FIRST_BUSY_S)
        first = max(
            (chosen for chosen in sets if len(chosen) == 1),
            key=lambda chosen: (
                busy * forecast.saved_share(chosen) - PAYBACK * chosen[0].launch_s,
                *_preference(chosen),
            ),
        )
        running = frozenset({first[0].drafting})

    def value(chosen: tuple[Launchable, ...]) -> float:
        starting = sum(entry.launch_s for entry in chosen if entry.drafting not in running)
        rent = RENT * forecast.busy_s * (len(chosen) - 1)
        return forecast.busy_s * forecast.saved_share(chosen) - PAYBACK * starting - rent

    best = max(sets, key=lambda chosen: (value(chosen), *_preference(chosen)))
    here = [chosen for chosen in sets if all(entry.drafting in running for entry in chosen)]
    if not here:
        return best
    stay = max(here, key=lambda chosen: (value(chosen), *_preference(chosen)))
    return best if value(best) - value(stay) > MARGIN * forecast.busy_s else stay


def _preference(chosen: tuple[Launchable, ...]) -> tuple[int, bool, int]:
    """Among equals: fewer launches, then off, then less memory."""
    return (-len(chosen), any(entry.drafting.is_off for entry in chosen), -_bytes(chosen))


def _sets(needs: Needs, room: Room) -> Iterator[tuple[Launchable, ...]]:
    """Every set of launches that may be kept, in a fixed order."""
    entries = sorted(needs.launchable, key=lambda entry: entry.drafting.key)
    if needs.per_request:
        # One launch for each draft model: its number of tokens goes with the request. A running one stands for its like.
        by_draft: dict[str | None, Launchable] = {}
        for entry in entries:
            if entry.drafting.draft not in by_draft or entry.drafting in needs.running:
                by_draft[entry.drafting.draft] = entry
        entries = list(by_draft.values())
    # Without a known limit, memory is not for experiments.
    most = 1 if needs.per_request or room.memory_bytes is None else room.twins
    for size in range(1, max(most, 1) + 1):
        yield from combinations(entries, size)


class _Forecast:
    """What a model's traffic is expected to be worth."""

    def __init__(self, needs: Needs, room: Room) -> None:
        self._needs = needs
        speeds = [a.baseline_tps for a in needs.advice.values() if a.baseline_tps is not None]
        usual_tps = sum(speeds) / len(speeds) if speeds else _ANY_TPS
        busy = {
            kind: tokens * room.horizon_s / _tps(needs.advice.get(kind), usual_tps)
            for kind, tokens in needs.tokens_per_s.items()
            if tokens > 0.0
        }
        self.busy_s = sum(busy.values())
        if self.busy_s <= 0.0:
            # Nothing was seen: whatever was tuned is as likely as the rest of it.
            busy = dict.fromkeys(needs.advice, 1.0)
        total = sum(busy.values())
        self._shares = {kind: seconds / total for kind, seconds in busy.items()}

    def saved_share(self, chosen: Sequence[Launchable]) -> float:
        """Share of the busy time that a set of launches saves; negative where it costs."""
        return sum(
            share * (1.0 - 1.0 / _route(self._needs, kind, chosen).ratio)
            for kind, share in self._shares.items()
        )


def _tps(advice: Advice | None, usual_tps: float) -> float:
    return usual_tps if advice is None or advice.baseline_tps is None else advice.baseline_tps


def _route(needs: Needs, kind: PromptType, chosen: Sequence[Launchable]) -> Route:
    """The best that some launches offer to a prompt type; among equals off, then the first."""
    advice = needs.advice.get(kind, Advice())
    untuned = kind not in needs.advice
    offers = []
    for entry in chosen:
        if needs.per_request:
            inner = [OFF]
            if advice.drafting.draft is not None and advice.drafting.draft == entry.drafting.draft:
                inner.append(advice.drafting)
        else:
            inner = [entry.drafting]
        for drafting in inner:
            ratio = advice.ratio(drafting)
            if untuned and not drafting.is_off:
                ratio = UNMEASURED_RATIO
            offers.append(Route(entry.drafting, drafting, ratio))
    return max(offers, key=lambda offer: (offer.ratio, offer.drafting.is_off))


def _part(needs: Needs, room: Room, chosen: tuple[Launchable, ...]) -> ModelPlan:
    forecast = _Forecast(needs, room)
    launches = tuple(entry.drafting for entry in chosen)
    return ModelPlan(
        model=needs.model,
        launches=launches,
        starts=tuple(drafting for drafting in launches if drafting not in needs.running),
        stops=tuple(drafting for drafting in needs.running if drafting not in launches),
        routes={kind: _route(needs, kind, chosen) for kind in PromptType} if chosen else {},
        busy_s=forecast.busy_s,
        saved_s=forecast.busy_s * forecast.saved_share(chosen) if chosen else 0.0,
        memory_bytes=_bytes(chosen),
        reason="",
    )


def _running(needs: Needs) -> list[Launchable]:
    return [entry for entry in needs.launchable if entry.drafting in needs.running]


def _bytes(entries: Sequence[Launchable]) -> int:
    return Footprint.total_bytes(entry.footprint for entry in entries)


def _fits(entries: Sequence[Launchable], room: Room) -> bool:
    return room.memory_bytes is None or _bytes(entries) <= room.memory_bytes
