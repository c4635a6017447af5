"""What a model's traffic is worth with some launches: routes, busy seconds, the share of them that is saved. Pure.

Where drafting goes with the request (MLX), a launch serves a type with the type's own drafting if that uses the
draft model which the launch holds, and else with none at all: the number of draft tokens is free to change.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from autospec.cells import PromptType
from autospec.drafting import OFF, Drafting
from autospec.proxy.needs import Advice, Launchable, Needs

__all__ = ["Forecast", "Route", "best_route"]

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
class Forecast:
    """What is expected of one model within the horizon.

    Attributes:
        needs: The model.
        busy_s: Seconds that it would generate for with drafting off.
        shares: Of the busy time, by prompt type; of equal parts for the tuned types where nothing was seen.
        ratios: By launch, the speed over off that it offers to each type, in the order of `shares`.
    """

    needs: Needs
    busy_s: float
    shares: dict[PromptType, float]
    ratios: dict[Drafting, tuple[float, ...]]

    @classmethod
    def of(cls, needs: Needs, horizon_s: float) -> Forecast:
        """Expect the traffic of late to go on for the horizon."""
        speeds = [a.baseline_tps for a in needs.advice.values() if a.baseline_tps is not None]
        usual_tps = sum(speeds) / len(speeds) if speeds else _ANY_TPS
        busy = {
            kind: tokens * horizon_s / (needs.advice.get(kind, _UNTUNED).baseline_tps or usual_tps)
            for kind, tokens in needs.tokens_per_s.items()
            if tokens > 0.0
        }
        busy_s = sum(busy.values())
        if busy_s <= 0.0:
            busy = dict.fromkeys(needs.advice, 1.0)
        total = sum(busy.values())
        ratios = {
            entry.drafting: tuple(best_route(needs, kind, [entry]).ratio for kind in busy)
            for entry in needs.launchable
        }
        return cls(needs, busy_s, {kind: seconds / total for kind, seconds in busy.items()}, ratios)

    def saved_share(self, launches: Sequence[Launchable]) -> float:
        """Share of the busy time that some launches save against drafting off; negative where they cost."""
        best = map(max, zip(*(self.ratios[entry.drafting] for entry in launches), strict=True))
        return math.fsum(
            share * (1.0 - 1.0 / ratio) for share, ratio in zip(self.shares.values(), best, strict=True)
        )

    def saved_s(self, launches: Sequence[Launchable]) -> float:
        """The same in seconds within the horizon."""
        return self.busy_s * self.saved_share(launches)


def best_route(needs: Needs, prompt_type: PromptType, launches: Sequence[Launchable]) -> Route:
    """The best that some launches, at least one, offer to a prompt type; among equals off, then the first."""
    advice = needs.advice.get(prompt_type, _UNTUNED)
    offers = [
        Route(entry.drafting, drafting, advice.ratio(drafting))
        for entry in launches
        for drafting in _in_force(needs, advice, entry)
    ]
    return max(offers, key=lambda offer: (offer.ratio, offer.drafting.is_off))


def _in_force(needs: Needs, advice: Advice, launch: Launchable) -> list[Drafting]:
    if not needs.per_request:
        return [launch.drafting]
    measured = [advice.drafting, *advice.known]
    return [
        OFF,
        *(drafting for drafting in measured if drafting.draft and drafting.draft == launch.drafting.draft),
    ]
