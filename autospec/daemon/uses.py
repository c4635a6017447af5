"""From live samples to use: how much time answering takes, by model and kind of prompt. Pure."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from autospec.cells import PromptType
from autospec.daemon.work import Use
from autospec.measure.live import Sample

__all__ = ["shares", "uses"]

# What was used last week says half as much as what is used now.
_HALF_LIFE_S = 7 * 86400.0
# A kind of prompt never seen is not a kind that never comes: it counts like so many seconds a day.
_SMOOTHING_S_PER_DAY = 60.0


def uses(samples: Iterable[Sample], now: float) -> list[Use]:
    """Seconds of answering a day, decayed.

    A steady use of s seconds a day comes out as s: the sum of s exp(−λt) over all past days is s/λ.

    Args:
        samples: Answered requests; those from the future (a clock was set back) count as of now.
        now: Seconds since the epoch.
    """
    decay_per_s = math.log(2.0) / _HALF_LIFE_S
    totals: dict[tuple[str, PromptType | None], float] = defaultdict(float)
    for sample in samples:
        age_s = max(0.0, now - sample.at)
        seconds = (sample.prompt_ms + sample.predicted_ms) / 1000.0
        totals[sample.model, sample.prompt_type] += seconds * math.exp(-decay_per_s * age_s)
    return [
        Use(model, prompt_type, total * decay_per_s * 86400.0)
        for (model, prompt_type), total in totals.items()
    ]


def shares(known: Sequence[Use], types: Sequence[PromptType]) -> Mapping[PromptType, float]:
    """How traffic spreads over the kinds of prompt, for models of which nothing is known; they sum to 1."""
    seconds = dict.fromkeys(types, _SMOOTHING_S_PER_DAY)
    for use in known:
        if use.prompt_type in seconds:
            seconds[use.prompt_type] += use.seconds_per_day
    whole = sum(seconds.values())
    return {t: s / whole for t, s in seconds.items()}
