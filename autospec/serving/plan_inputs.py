"""What a plan is made from: advice per prompt type, memory per launch, demand per model. Pure values.

Speed is counted as the recommendations count it: a ratio *drafting ÷ off* of whole requests.

What a model's traffic is worth with some launches: routes, busy seconds, the share of them that is saved. Pure.

Where drafting goes with the request (MLX), a launch serves a type with the type's own drafting if that uses the
draft model which the launch holds, and else with none at all: the number of draft tokens is free to change.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from autospec.cells import PromptType
from autospec.drafting import OFF, Drafting
from autospec.recommendations import LIKELY, Recommendation

__all__ = [
    "UNMEASURED_RATIO",
    "Advice",
    "Capacity",
    "Launchable",
    "MemoryEstimate",
    "ModelDemand",
    "Route",
    "TrafficForecast",
    "advice_from",
    "best_route",
]


# What a drafting is taken to do to a prompt type that it was never measured on: the worst of the founding record (75.5
# to 59.0 tok/s with draft-max 8). Below 1, so that ignorance never argues for drafting.
UNMEASURED_RATIO: Final = 0.78


@dataclass(frozen=True, slots=True)
class Advice:
    """One prompt type's recommendation, as far as a plan needs it.

    Attributes:
        drafting: What to run; `off` unless the verdict is enable.
        speedup: Of `drafting` over off; 1 for off.
        baseline_tps: Tokens per second of whole requests with drafting off; ``None`` where nobody measured it.
        known: Ratios over off of other draftings that were measured on this type.
        likely: True if `drafting` is likely and not proven.

    Raises:
        ValueError: A speed is not above 0, or off has another speedup than 1.
    """

    drafting: Drafting = OFF
    speedup: float = 1.0
    baseline_tps: float | None = None
    known: Mapping[Drafting, float] = field(default_factory=lambda: MappingProxyType({}))
    likely: bool = False

    def __post_init__(self) -> None:
        speeds = [self.speedup, *self.known.values()]
        if self.baseline_tps is not None:
            speeds.append(self.baseline_tps)
        if not all(speed > 0.0 for speed in speeds):
            raise ValueError("speeds and ratios must be above 0")
        if self.drafting.is_off and self.speedup != 1.0:
            raise ValueError("off is the measure: its speedup is 1")

    def ratio(self, drafting: Drafting) -> float:
        """Speed over off that a plan counts with if this type is served with a drafting.

        A drafting that the verdict does not recommend is never counted as a gain where the verdict is to leave
        drafting off: what was measured above 1 there was not proven.
        """
        if drafting.is_off:
            return 1.0
        if drafting == self.drafting:
            return self.speedup
        known = self.known.get(drafting, UNMEASURED_RATIO)
        return min(known, 1.0) if self.drafting.is_off else known


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """The memory that one launch takes.

    Attributes:
        own_bytes: KV caches and compute buffers, and weights where they are copied (CUDA, MLX).
        shared_bytes: Weights that are mapped, by the path of their file: launches that map the same file have it
            once in memory (measured with two llama-servers on a CPU: 452 MB each of 903).
    """

    own_bytes: int
    shared_bytes: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))

    @staticmethod
    def total_bytes(footprints: Iterable[MemoryEstimate]) -> int:
        """Memory of several launches together."""
        files: dict[str, int] = {}
        own = 0
        for footprint in footprints:
            own += footprint.own_bytes
            files.update(footprint.shared_bytes)
        return own + sum(files.values())


@dataclass(frozen=True, slots=True)
class Launchable:
    """One launch that is possible: it may run already, or could be started.

    Attributes:
        drafting: What it is started with. Where drafting goes with the request, only its draft model counts.
        footprint: Its memory.
        launch_s: From the start to ready, measured or estimated.
    """

    drafting: Drafting
    footprint: MemoryEstimate
    launch_s: float


@dataclass(frozen=True, slots=True)
class ModelDemand:
    """One main model: what is asked of it, what is advised, what can be launched.

    Attributes:
        model: Catalogue name.
        launchable: Off and every drafting that may be tried; one that failed to launch is left out.
        advice: By prompt type; a type without an entry was never tuned.
        tokens_per_s: Generated tokens to be expected, by prompt type; see `autospec.serving.traffic`.
        running: Draftings of its launches that are ready or starting, as in `launchable`.
        in_use: True if requests are being answered or wait.
        waiting_s: How long its oldest request has waited for a server.
        per_request: True if drafting goes with the request (MLX): one launch, one draft model.
    """

    model: str
    launchable: tuple[Launchable, ...]
    advice: Mapping[PromptType, Advice] = field(default_factory=lambda: MappingProxyType({}))
    tokens_per_s: Mapping[PromptType, float] = field(default_factory=lambda: MappingProxyType({}))
    running: tuple[Drafting, ...] = ()
    in_use: bool = False
    waiting_s: float = 0.0
    per_request: bool = False


@dataclass(frozen=True, slots=True)
class Capacity:
    """What all models share.

    Attributes:
        memory_bytes: What launches may take together; ``None`` if unknown: then every model has one launch.
        horizon_s: How long a plan is likely to last; a switch has to pay for itself within it.
        twins: Most launches of one model.
    """

    memory_bytes: int | None = None
    horizon_s: float = 1800.0
    twins: int = 3


def advice_from(recommendations: Iterable[Recommendation]) -> dict[PromptType, Advice]:
    """The advice in recommendations of one model on one backend.

    Args:
        recommendations: At most one for each prompt type, and at most one for any kind of prompt: that one speaks for
            the types that have none of their own.
    """
    by_type: dict[PromptType | None, Advice] = {}
    for found in recommendations:
        enabled = not found.drafting.is_off and found.speedup is not None
        known = {} if found.tried.is_off or found.speedup is None else {found.tried: found.speedup}
        by_type[found.prompt_type] = Advice(
            drafting=found.drafting if enabled else OFF,
            speedup=found.speedup if enabled and found.speedup is not None else 1.0,
            baseline_tps=found.baseline_tps or None,
            known=MappingProxyType(known),
            likely=enabled and LIKELY in found.evidence,
        )
    general = by_type.get(None)
    found_types = {kind: by_type.get(kind, general) for kind in PromptType}
    return {kind: advice for kind, advice in found_types.items() if advice is not None}


# Only the proportions between types matter while no speed is known at all.
_ANY_TPS: Final = 20.0
_UNTUNED: Final = Advice()


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

    def to_json(self) -> dict[str, Any]:
        """One entry of a plan's ``routes``."""
        return {
            "launch": self.launch.to_json(),
            "drafting": self.drafting.to_json(),
            "ratio": round(self.ratio, 4),
        }


@dataclass(frozen=True, slots=True)
class TrafficForecast:
    """What is expected of one model within the horizon.

    Attributes:
        demand: The model.
        busy_s: Seconds that it would generate for with drafting off.
        shares: Of the busy time, by prompt type; of equal parts for the tuned types where nothing was seen.
        ratios: By launch, the speed over off that it offers to each type, in the order of `shares`.
    """

    demand: ModelDemand
    busy_s: float
    shares: dict[PromptType, float]
    ratios: dict[Drafting, tuple[float, ...]]

    @classmethod
    def of(cls, demand: ModelDemand, horizon_s: float) -> TrafficForecast:
        """Expect the traffic of late to go on for the horizon."""
        speeds = [a.baseline_tps for a in demand.advice.values() if a.baseline_tps is not None]
        usual_tps = sum(speeds) / len(speeds) if speeds else _ANY_TPS
        busy = {
            kind: tokens * horizon_s / (demand.advice.get(kind, _UNTUNED).baseline_tps or usual_tps)
            for kind, tokens in demand.tokens_per_s.items()
            if tokens > 0.0
        }
        busy_s = sum(busy.values())
        if busy_s <= 0.0:
            busy = dict.fromkeys(demand.advice, 1.0)
        total = sum(busy.values())
        ratios = {
            entry.drafting: tuple(best_route(demand, kind, [entry]).ratio for kind in busy)
            for entry in demand.launchable
        }
        return cls(demand, busy_s, {kind: seconds / total for kind, seconds in busy.items()}, ratios)

    def saved_share(self, launches: Sequence[Launchable]) -> float:
        """Share of the busy time that some launches save against drafting off; negative where they cost."""
        best = map(max, zip(*(self.ratios[entry.drafting] for entry in launches), strict=True))
        return math.fsum(
            share * (1.0 - 1.0 / ratio) for share, ratio in zip(self.shares.values(), best, strict=True)
        )

    def saved_s(self, launches: Sequence[Launchable]) -> float:
        """The same in seconds within the horizon."""
        return self.busy_s * self.saved_share(launches)


def best_route(demand: ModelDemand, prompt_type: PromptType, launches: Sequence[Launchable]) -> Route:
    """The best that some launches, at least one, offer to a prompt type; among equals off, then the first."""
    advice = demand.advice.get(prompt_type, _UNTUNED)
    routes = [
        Route(entry.drafting, drafting, advice.ratio(drafting))
        for entry in launches
        for drafting in _in_force(demand, advice, entry)
    ]
    return max(routes, key=lambda route: (route.ratio, route.drafting.is_off))


def _in_force(demand: ModelDemand, advice: Advice, launch: Launchable) -> list[Drafting]:
    if not demand.per_request:
        return [launch.drafting]
    measured = [advice.drafting, *advice.known]
    return [
        OFF,
        *(drafting for drafting in measured if drafting.draft and drafting.draft == launch.drafting.draft),
    ]
