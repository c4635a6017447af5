"""An early answer: what is likely before the proof is finished. It decides no verdict.

The claim: with a chance of at least 95 %, the true gain exceeds the threshold. It rests on a Student's t interval around the
mean of the prompts' ratios, widened by the scatter of launches: 3 % on either side of a ratio, the middle of what was seen
on working machines, averaged over the launches. If the drafting was chosen from several by the same measurements, the error
chance is multiplied by their number (Bonferroni).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from autospec.measure.launch_scatter import ASSUMED_SD
from autospec.measure.log_ratios import of_pairs, prompt_medians
from autospec.measure.measurements import Pair

__all__ = ["likely_gain", "seconds_to_proof"]

LEAST_CHANCE = 0.95
# Fewer prompts do not represent their kind, and the t quantile becomes useless.
_LEAST_PROMPTS = 4


@dataclass(frozen=True, slots=True)
class Likely:
    """What is likely of one drafting: `speedup` with its interval, and the `chance` that the true gain exceeds the threshold.

    `about_s` is the time of measuring until a proof of this estimate; ``None`` if no look of the proof would enable it.
    """

    speedup: float
    interval: tuple[float, float]
    chance: float
    about_s: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The form in the evidence."""
        return {
            "speedup": round(self.speedup, 4),
            "interval": [round(end, 4) for end in self.interval],
            # Never shown as certain.
            "chance": min(round(self.chance, 4), 0.9999),
            "about_s": None if self.about_s is None else round(self.about_s),
        }


def likely_gain(pairs: Sequence[Pair], threshold: float, *, chosen_from: int = 1) -> Likely | None:
    """Return what the counted pairs of one drafting in one cell make likely; ``None`` for no likely gain or too few prompts.

    Args:
        pairs: The counted pairs.
        threshold: Least gain for `enable`, as a fraction.
        chosen_from: Number of draftings from which these same pairs chose this one; 1 for pairs of the proof.
    """
    from scipy.stats import t  # noqa: PLC0415  (half a second that most commands need not spend)

    values = prompt_medians(of_pairs(pairs, lambda pair: pair.log_ratio))
    if len(values) < _LEAST_PROMPTS:
        return None
    center = statistics.fmean(values)
    launches = sum(
        1 / len({half.launch_id for half in side})
        for side in ([p.off for p in pairs], [p.drafted for p in pairs])
    )
    variance = statistics.variance(values) / len(values) + ASSUMED_SD**2 * launches
    error, freedom = math.sqrt(variance), len(values) - 1
    missed = float(t.sf((center - math.log1p(threshold)) / error, freedom)) * chosen_from
    if 1.0 - missed < LEAST_CHANCE:
        return None
    half = float(t.isf((1.0 - LEAST_CHANCE) / chosen_from, freedom)) * error
    return Likely(math.exp(center), (math.exp(center - half), math.exp(center + half)), 1.0 - missed)


def seconds_to_proof(
    looks: Sequence[int], rounds: int, round_s: float, would_enable: Callable[[int], bool]
) -> float | None:
    """Return the seconds to the first look that would enable if its rounds showed what these show; ``None`` without one."""
    at = next((at for at in looks if at > rounds and would_enable(at)), None)
    return None if at is None else (at - rounds) * round_s
