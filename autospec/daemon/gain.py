"""How much a cell may gain, and how little is known of it. Pure arithmetic on what is stored."""

from __future__ import annotations

import math
from statistics import NormalDist

from autospec.recommendations import Recommendation, Status

__all__ = ["PRIOR_SD", "expected_gain", "spread", "uncertainty"]

# What is known before any measurement: the log of the best drafting's speed ratio lies around 0 (draft models pay on
# one machine and cost on another), and in the founding record and the lab two thirds lie within ±0.3.
PRIOR_SD = 0.3
# A search without proof narrows that; its best of several noisy trials flatters itself.
_SEARCHED_SD = 0.15
_MIN_SD = 0.01

# How likely it is that the old answer is the wrong one now, by what changed. Judgement, not measurement: another file
# or machine is another question, a new build mostly changes little, and drift is evidence that something did.
_STALE = {
    "model": 1.0,
    "hardware": 1.0,
    "drift": 0.8,
    "settings": 0.7,
    "drafts": 0.6,
    "build": 0.4,
    "os": 0.2,
}
# Imported figures are of another machine.
_IMPORTED = 0.9
# However sure a search looks, it was not proven.
_PROVISIONAL_AT_LEAST = 0.2


def spread(recommendation: Recommendation) -> tuple[float, float]:
    """Mean and standard deviation of the log of the best drafting's speed ratio, as far as it is known."""
    if not recommendation.speedup or recommendation.speedup <= 0:
        return 0.0, PRIOR_SD
    mean = math.log(recommendation.speedup)
    if recommendation.speedup_ci is None or min(recommendation.speedup_ci) <= 0:
        return mean, _SEARCHED_SD
    low, high = (math.log(v) for v in recommendation.speedup_ci)
    error_rate = float(recommendation.evidence.get("error_rate", 0.01))
    z = NormalDist().inv_cdf(1.0 - min(0.4, error_rate) / 2.0)
    return mean, max(_MIN_SD, (high - low) / (2.0 * z))


def expected_gain(mean: float, sd: float) -> float:
    """Expected share of time saved by drafting where it pays and leaving it off where it does not.

    With x the log of the speed ratio, drafting saves 1 − exp(−x) of the time, and is used only if x > 0. For normal x
    the expectation of max(0, 1 − exp(−x)) is Φ(m/s) − exp(s²/2 − m) Φ(m/s − s), by completing the square.

    Args:
        mean: Of x.
        sd: Of x, above 0.

    Returns:
        A share, 0…1.
    """
    normal = NormalDist()
    return max(0.0, normal.cdf(mean / sd) - math.exp(sd * sd / 2.0 - mean) * normal.cdf(mean / sd - sd))


def uncertainty(recommendation: Recommendation | None) -> float:
    """How little is known: 1 for nothing at all, 0 for a proof that still stands."""
    if recommendation is None:
        return 1.0
    match recommendation.status:
        case Status.PROVEN:
            return 0.0
        case Status.IMPORTED:
            return _IMPORTED
        case Status.STALE:
            return _STALE.get(str(recommendation.evidence.get("stale_cause", "")), 1.0)
        case Status.PROVISIONAL:
            if recommendation.speedup is None:
                return 1.0
            mean, sd = spread(recommendation)
            threshold = math.log1p(float(recommendation.evidence.get("threshold", 0.02)))
            pays = 1.0 - NormalDist(mean, sd).cdf(threshold)
            return max(_PROVISIONAL_AT_LEAST, 2.0 * min(pays, 1.0 - pays))
