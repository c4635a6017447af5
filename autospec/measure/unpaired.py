"""Compare runs that were not paired: recorded benchmarks, where only a few speeds of each drafting are left.

Runs of one drafting and runs of another, minutes or days apart, know nothing of what changed in between. What can
be said honestly is less than from pairs, and it is said with Student's t on log speeds:

* Both repeated: Welch's interval, which does not assume that both scatter alike (B. L. Welch, *Biometrika* 34,
  1947, 28-35). In the founding record one group scatters twenty times more than another.
* One of them a single run: its scatter cannot be known from it. The scatter pooled over all repeated groups of the
  same record stands in, but never less than `SINGLE_RUN_SD`, with the pooled degrees of freedom.
* No group repeated at all: nothing is known about the noise, and there is no interval.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["SINGLE_RUN_SD", "Comparison", "Noise", "compare_runs", "pooled_noise"]

# What to reckon with for a single run, as SD of the log speed. Runs repeated on one launch scatter by tenths of a
# percent; launches of a working machine by 1 to 5 %, and a single run has all of that in it. 3 % is the middle.
SINGLE_RUN_SD = 0.03
# Speeds are written down with one digit after the point: equal runs do not prove that nothing scatters.
_ROUNDING_SD = 0.001


@dataclass(frozen=True, slots=True)
class Noise:
    """Run-to-run scatter.

    Attributes:
        sd: Standard deviation of the log speed; 0.01 is 1 %.
        df: Degrees of freedom it was estimated with.
    """

    sd: float
    df: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """Drafting ÷ off from unpaired runs, in logs.

    Attributes:
        off_runs: How many runs with drafting off.
        drafted_runs: How many with it.
        center: ln of the ratio of geometric means.
        low: Lower end of the interval; minus infinity where the noise is unknown.
        high: Upper end; plus infinity likewise.
        noise: The scatter that it reckons with, ``None`` where unknown.
        level: One-sided error rate of each end.
    """

    off_runs: int
    drafted_runs: int
    center: float
    low: float
    high: float
    noise: Noise | None
    level: float

    @property
    def ratio(self) -> float:
        """The centre as a speed ratio."""
        return math.exp(self.center)

    @property
    def interval(self) -> tuple[float, float] | None:
        """Both ends as speed ratios; ``None`` where the noise is unknown."""
        return None if math.isinf(self.high) else (math.exp(self.low), math.exp(self.high))

    @property
    def single(self) -> bool:
        """True if one of the two sides is a single run."""
        return min(self.off_runs, self.drafted_runs) == 1


def pooled_noise(groups: Iterable[Sequence[float]]) -> Noise | None:
    """The scatter within repeated groups, pooled.

    Args:
        groups: Runs of each group, in tokens per second.

    Returns:
        The pooled SD of the log speed, or ``None`` if no group has two runs.
    """
    squares, df = 0.0, 0
    for runs in groups:
        if len(runs) > 1:
            squares += statistics.variance([math.log(r) for r in runs]) * (len(runs) - 1)
            df += len(runs) - 1
    return Noise(math.sqrt(squares / df), df) if df else None


def compare_runs(
    off: Sequence[float], drafted: Sequence[float], *, pooled: Noise | None, level: float
) -> Comparison:
    """Compare the runs of a drafting with the runs without.

    Args:
        off: Tokens per second with drafting off, at least one run, all positive.
        drafted: The same with the drafting.
        pooled: Scatter over all repeated groups of the record, for sides that are single runs.
        level: One-sided error rate of each end of the interval.
    """
    sides = [[math.log(r) for r in runs] for runs in (off, drafted)]
    center = statistics.fmean(sides[1]) - statistics.fmean(sides[0])
    if min(map(len, sides)) > 1:
        parts = [max(statistics.variance(s), _ROUNDING_SD**2) / len(s) for s in sides]
        error = math.sqrt(sum(parts))
        # Welch-Satterthwaite
        df = sum(parts) ** 2 / sum(p**2 / (len(s) - 1) for p, s in zip(parts, sides, strict=True))
        noise = pooled_noise((off, drafted))
    elif pooled is not None:
        noise = Noise(max(pooled.sd, SINGLE_RUN_SD), pooled.df)
        error = noise.sd * math.sqrt(sum(1 / len(s) for s in sides))
        df = float(pooled.df)
    else:
        return Comparison(len(off), len(drafted), center, -math.inf, math.inf, None, level)
    # Imported here: SciPy takes a second to load, and most of what imports this module never compares.
    from scipy.stats import t  # noqa: PLC0415

    half = float(t.ppf(1.0 - level, df)) * error
    return Comparison(len(off), len(drafted), center, center - half, center + half, noise, level)
