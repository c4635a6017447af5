"""The inputs of a plan: recommendations per prompt type, memory per launch, demand and forecast per model. Pure values.

A speed is a ratio of whole requests, drafting ÷ off, as in the recommendations. If the drafting is chosen per request (MLX),
a server uses a prompt type's own drafting if that has the server's draft model, and none otherwise: the number of draft
tokens may differ from request to request.

Requests beyond a limit of their drafting (`autospec.recommendations.Limits`) are a part of the traffic of their own, in which
the drafting has the ratio that was measured there, at most 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from autospec.cells import PromptType
from autospec.drafting import OFF, Drafting
from autospec.recommendations import LIKELY, LimitCheck, Limits, LimitVerdict, Recommendation
from autospec.serving.advice import limits_by_type
from autospec.serving.dispatch import OFF_BECAUSE, Limit, WhyOff

__all__ = [
    "UNMEASURED_RATIO",
    "Advice",
    "Capacity",
    "LaunchEstimate",
    "MemoryEstimate",
    "ModelDemand",
    "Route",
    "TrafficForecast",
    "advice_from",
    "best_route",
]

# A prompt type, and the limit that requests are beyond, if any.
TrafficPart = tuple[PromptType, Limit | None]

# Assumed speed ratio of a drafting on a prompt type without a measurement: the worst measured loss (75.5 to 59.0 tok/s with
# draft-max 8). Below 1, so that missing data never favours drafting.
UNMEASURED_RATIO: Final = 0.78


@dataclass(frozen=True, slots=True)
class Advice:
    """One prompt type's recommendation."""

    drafting: Drafting = OFF
    speedup: float = 1.0  # of `drafting` over off
    baseline_tps: float | None = None  # whole requests without drafting
    known: Mapping[Drafting, float] = field(
        default_factory=lambda: MappingProxyType({})
    )  # of other draftings
    likely: bool = False  # not proven
    # Speed ratio of `drafting` for requests beyond a limit; `UNMEASURED_RATIO` where nothing is known.
    beyond: Mapping[Limit, float] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        speeds = [self.speedup, *self.known.values(), *self.beyond.values()]
        if self.baseline_tps is not None:
            speeds.append(self.baseline_tps)
        if not all(speed > 0.0 for speed in speeds):
            raise ValueError("speeds and ratios must be above 0")
        if self.drafting.is_off and self.speedup != 1.0:
            raise ValueError("the speedup of off must be 1")

    def ratio(self, drafting: Drafting, limit: Limit | None = None) -> float:
        """Speed ratio that a plan assumes for a drafting, of requests beyond `limit` if there is one.

        If the recommendation is off, no drafting counts as a gain: ratios above 1 were measured but not proven.
        """
        if drafting.is_off:
            return 1.0
        if limit is not None:
            return min(self.ratio(drafting), self.beyond.get(limit, UNMEASURED_RATIO), 1.0)
        if drafting == self.drafting:
            return self.speedup
        known = self.known.get(drafting, UNMEASURED_RATIO)
        return min(known, 1.0) if self.drafting.is_off else known


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """The memory of one server.

    `shared_bytes` are memory-mapped weights by file path: servers of one file hold them once (measured with two llama-servers
    on a CPU: 452 MB each of 903). `own_bytes` is everything else, copied weights (CUDA, MLX) included.
    """

    own_bytes: int
    shared_bytes: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))

    @staticmethod
    def total_bytes(footprints: Iterable[MemoryEstimate]) -> int:
        """Memory of several servers together."""
        files: dict[str, int] = {}
        own = 0
        for footprint in footprints:
            own += footprint.own_bytes
            files.update(footprint.shared_bytes)
        return own + sum(files.values())


@dataclass(frozen=True, slots=True)
class LaunchEstimate:
    """What a server with one drafting needs: memory, and the measured or estimated time from start to ready.

    `cold_s` is the estimate for files that are not in the system's cache: a measured start may have been a warm one.
    """

    drafting: Drafting
    footprint: MemoryEstimate
    launch_s: float
    cold_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ModelDemand:
    """The demand for one model, its recommendations, and the servers that are possible for it."""

    model: str
    possible: tuple[LaunchEstimate, ...]  # off, and every drafting that may be tried now
    advice: Mapping[PromptType, Advice] = field(default_factory=lambda: MappingProxyType({}))
    tokens_per_s: Mapping[PromptType, float] = field(default_factory=lambda: MappingProxyType({}))
    # The part of `tokens_per_s` that was beyond a limit, which may be of an earlier recommendation.
    beyond_per_s: Mapping[tuple[PromptType, Limit], float] = field(
        default_factory=lambda: MappingProxyType({})
    )
    # Why the recommendations draft nothing for a prompt type.
    why_off: Mapping[PromptType | None, WhyOff] = field(default_factory=lambda: OFF_BECAUSE[WhyOff.NOT_TUNED])
    running: tuple[Drafting, ...] = ()  # of servers that are ready or starting
    in_use: bool = False  # requests are being answered or wait
    waiting_s: float = 0.0  # of the oldest waiting request
    per_request: bool = False  # the drafting is chosen per request (MLX): one server, one draft model


@dataclass(frozen=True, slots=True)
class Capacity:
    """Limits that all models share; with unknown memory every model has one server."""

    memory_bytes: int | None = None
    horizon_s: float = 1800.0  # expected life of a plan, within which a change must pay for itself
    twins: int = 3  # maximum servers of one model


def advice_from(recommendations: Sequence[Recommendation]) -> dict[PromptType, Advice]:
    """One model's recommendations by prompt type; one for any type fills the gaps."""
    by_type: dict[PromptType | None, Advice] = {}
    limits = limits_by_type(recommendations)
    for found in recommendations:
        # With the aim energy, gains of energy stand for those of time: they choose the server, and weigh one type against another.
        gain = found.gain
        enabled = not found.drafting.is_off and gain is not None
        known = {} if found.tried.is_off or gain is None else {found.tried: gain}
        by_type[found.prompt_type] = Advice(
            drafting=found.drafting if enabled else OFF,
            speedup=gain if enabled and gain is not None else 1.0,
            baseline_tps=found.baseline_tps or None,
            known=MappingProxyType(known),
            likely=enabled and LIKELY in found.evidence,
            beyond=MappingProxyType(_beyond(limits[found.prompt_type])),
        )
    general = by_type.get(None)
    found_types = {kind: by_type.get(kind, general) for kind in PromptType}
    return {kind: advice for kind, advice in found_types.items() if advice is not None}


def _beyond(limits: Limits) -> dict[Limit, float]:
    """The speed ratio to assume beyond each known limit: of the first check there that does not hold."""
    bounds: dict[Limit, tuple[float | None, tuple[LimitCheck, ...]]] = {
        Limit.CONCURRENT: (limits.most_concurrent, limits.concurrent),
        Limit.CONTEXT: (limits.deepest_context, limits.context),
        Limit.TEMPERATURE: (limits.highest_temperature, limits.temperature),
    }
    ratios = {}
    for limit, (bound, checks) in bounds.items():
        if bound is not None:
            failed = [
                (c.at, c.ratio)
                for c in checks
                if c.at > bound and c.verdict is not LimitVerdict.FASTER and c.ratio and c.ratio > 0.0
            ]
            _, ratio = min(failed, default=(bound, UNMEASURED_RATIO))
            ratios[limit] = min(ratio, 1.0)
    return ratios


# Used while no speed is known: only the proportions between prompt types matter.
_ANY_TPS: Final = 20.0
_UNTUNED: Final = Advice()


@dataclass(frozen=True, slots=True)
class Route:
    """Where requests of one prompt type go: to the server started with `launch`, with `drafting` at speed `ratio`."""

    launch: Drafting
    drafting: Drafting
    ratio: float

    def to_json(self) -> dict[str, Any]:
        """One entry of a plan's ``routes``."""
        return {
            "launch": self.launch.to_json(),
            "drafting": self.drafting.to_json(),
            "ratio": round(self.ratio, 4),
        }


@dataclass(frozen=True, slots=True)
class TrafficForecast:
    """Expected busy time of one model within the horizon, and the speed ratios of its launches."""

    demand: ModelDemand
    busy_s: float  # generation time without drafting
    parts: dict[TrafficPart, float]  # of the busy time; equal for the tuned types before any traffic
    ratios: dict[Drafting, tuple[float, ...]]  # by launch, in the order of `parts`

    @classmethod
    def of(cls, demand: ModelDemand, horizon_s: float) -> TrafficForecast:
        """Assume that recent traffic continues for the horizon."""
        speeds = [a.baseline_tps for a in demand.advice.values() if a.baseline_tps is not None]
        usual_tps = sum(speeds) / len(speeds) if speeds else _ANY_TPS
        busy = {
            (kind, limit): tokens * horizon_s / (demand.advice.get(kind, _UNTUNED).baseline_tps or usual_tps)
            for (kind, limit), tokens in _tokens_by_part(demand).items()
            if tokens > 0.0
        }
        busy_s = sum(busy.values())
        if busy_s <= 0.0:
            busy = {(kind, None): 1.0 for kind in demand.advice}
        total = sum(busy.values())
        ratios = {
            entry.drafting: tuple(best_route(demand, kind, [entry], limit).ratio for kind, limit in busy)
            for entry in demand.possible
        }
        return cls(demand, busy_s, {part: seconds / total for part, seconds in busy.items()}, ratios)

    @property
    def shares(self) -> dict[PromptType, float]:
        """The busy time's share of each prompt type."""
        shares: dict[PromptType, float] = {}
        for (kind, _), share in self.parts.items():
            shares[kind] = shares.get(kind, 0.0) + share
        return shares

    @property
    def beyond_share(self) -> float:
        """The busy time's share of requests beyond a limit."""
        return math.fsum(share for (_, limit), share in self.parts.items() if limit is not None)

    def saved_s(self, launches: Sequence[LaunchEstimate]) -> float:
        """Busy time that some launches save compared with off; negative if they cost time."""
        best = map(max, zip(*(self.ratios[entry.drafting] for entry in launches), strict=True))
        return self.busy_s * math.fsum(
            share * (1.0 - 1.0 / ratio) for share, ratio in zip(self.parts.values(), best, strict=True)
        )


def _tokens_by_part(demand: ModelDemand) -> dict[TrafficPart, float]:
    """Tokens per second of each part of the traffic."""
    parts: dict[TrafficPart, float] = {(kind, None): n for kind, n in demand.tokens_per_s.items()}
    for (kind, limit), tokens in demand.beyond_per_s.items():
        if limit not in demand.advice.get(kind, _UNTUNED).beyond:
            continue  # beyond a limit of an earlier recommendation
        parts[(kind, None)] = max(0.0, parts.get((kind, None), 0.0) - tokens)
        parts[(kind, limit)] = tokens
    return parts


def best_route(
    demand: ModelDemand,
    prompt_type: PromptType,
    launches: Sequence[LaunchEstimate],
    limit: Limit | None = None,
) -> Route:
    """The fastest route for a prompt type, over at least one launch; if equal, off, then the first.

    `limit` is what the requests are beyond.
    """
    advice = demand.advice.get(prompt_type, _UNTUNED)
    routes = [
        Route(entry.drafting, drafting, advice.ratio(drafting, limit))
        for entry in launches
        for drafting in _in_force(demand, advice, entry)
    ]
    return max(routes, key=lambda route: (route.ratio, route.drafting.is_off))


def _in_force(demand: ModelDemand, advice: Advice, launch: LaunchEstimate) -> list[Drafting]:
    if not demand.per_request:
        return [launch.drafting]
    measured = [advice.drafting, *advice.known]
    return [
        OFF,
        *(drafting for drafting in measured if drafting.draft and drafting.draft == launch.drafting.draft),
    ]
