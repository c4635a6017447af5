"""How much launches of one server differ in speed: what is measured of it, and what a verdict counts with. Pure.

A launch may be faster or slower than another one of the same command for all of its requests: where its memory lies, which
cores it got, how a GPU placed it. Two launches of drafting off that run side by side are asked the same short request by
turns (old, new, new, old, …), so that heat, neighbours and the machine's own slow phases cancel out of each pair. One
comparison is the Hodges-Lehmann estimate d of the pairs' ln(new ÷ old), and its standard error e:

    e² = (1.4826 · MAD)² · (π ÷ 3) ÷ pairs        MAD: median distance of the pairs from their median

which a stalled request hardly moves (3 ÷ π is the efficiency of the estimate on normal noise); it is never taken for less
than 0.1 %. Where ln(speed) has the standard
deviation L between launches, d has the variance 2L² + e². With T the mean of d² over n comparisons, E the mean of e², f the
degrees of freedom of T, and c = χ²(0.05; f) ÷ f:

    f = n² ÷ (n + s ÷ 2)                           s: pairs of comparisons that share a launch
    resolution² = (1 − c) · E ÷ 2
    sd² = resolution² + max(0, T − E) ÷ 2

Comparisons in a row share launches (the new one is the next one's old one), which correlates them by −½: n of them in a row
know as much as about ⅔·n separate ones. Above the floor sd² is (T − c·E) ÷ 2, so that sd² ÷ c is the exact upper 95 % limit
of L² where noise is normal and known: not all of the noise is subtracted, as T may be small by chance. So an sd of 0 is
never reported, and where launches do not differ the sd comes down to the resolution, which falls with the number of
comparisons. tests/measure/test_launch_scatter.py holds the limit against simulated machines.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from autospec.measure.statistics import hodges_lehmann

__all__ = ["ASSUMED_SD", "LEAST_FREEDOM", "LaunchComparison", "LaunchScatter", "speed_difference"]

# What a verdict takes for a launch where too little was measured: launches of working machines were seen to differ by 1 to
# 5 % (autospec.measure.unpaired).
ASSUMED_SD = 0.03
# With fewer degrees of freedom a measured sd may be far too small: its upper 95 % limit is more than twice as large.
LEAST_FREEDOM = 6.0
# A median distance times this is a standard deviation, where noise is normal.
_MAD_TO_SD = 1.4826
# Server clocks and the rounding of their answers know no difference better than this, however equal the pairs are.
_LEAST_ERROR = 0.001
# One-sided error of the upper limit that the resolution follows from.
_LEVEL = 0.05


@dataclass(frozen=True, slots=True)
class LaunchComparison:
    """Two launches of one server, compared side by side.

    Attributes:
        at: Seconds since the epoch when it ended.
        old: Launch id.
        new: Launch id of the one that it was compared with.
        difference: Estimate of ln(speed of the new one ÷ speed of the old one).
        error: Its standard error.
        pairs: Pairs of requests that it rests on.
    """

    at: float
    old: str
    new: str
    difference: float
    error: float
    pairs: int

    @classmethod
    def of(cls, log_ratios: Sequence[float], *, at: float, old: str, new: str) -> Self:
        """The comparison that pairs of requests give; see `speed_difference`."""
        difference, error = speed_difference(log_ratios)
        return cls(at, old, new, difference, error, len(log_ratios))


def speed_difference(log_ratios: Sequence[float]) -> tuple[float, float]:
    """The Hodges-Lehmann estimate of pairs' log-ratios, and its standard error from their median distance.

    Args:
        log_ratios: One per pair, at least two, all finite.

    Raises:
        ValueError: Fewer than two values, or one that is not finite.
    """
    values = np.asarray(log_ratios, dtype=float)
    if values.size < 2 or not np.isfinite(values).all():
        raise ValueError("needs at least two finite log-ratios")
    center = hodges_lehmann(values)
    distance = float(np.median(np.abs(values - np.median(values))))
    error = _MAD_TO_SD * distance * math.sqrt(math.pi / 3.0 / values.size)
    return center, max(error, _LEAST_ERROR)


@dataclass(frozen=True, slots=True)
class LaunchScatter:
    """How much launches of one server differ, as far as it is known.

    Attributes:
        sd: Standard deviation of ln(speed) between launches, never below `resolution`; 0 where nothing was measured.
        freedom: Degrees of freedom that it is known with; 0 where nothing was measured.
        resolution: What `sd` comes to where launches do not differ at all: nothing smaller could have been seen.
        comparisons: How many it rests on.
    """

    sd: float = 0.0
    freedom: float = 0.0
    resolution: float = 0.0
    comparisons: int = 0

    @classmethod
    def of(cls, comparisons: Sequence[LaunchComparison]) -> Self:
        """What comparisons of two launches each say together; the module describes how."""
        n = len(comparisons)
        if n == 0:
            return cls()
        launches = Counter(launch for c in comparisons for launch in (c.old, c.new))
        shared = sum(k * (k - 1) // 2 for k in launches.values())
        square = sum(c.difference**2 for c in comparisons) / n
        return cls._known(comparisons, square, n**2 / (n + shared / 2.0), launches_differing=2)

    @classmethod
    def of_control(cls, comparisons: Sequence[LaunchComparison]) -> Self:
        """The same where all were compared with one launch that stayed: it drops out of the differences' own scatter.

        n comparisons then have n − 1 degrees of freedom and the variance L² + e² (see the module).
        """
        n = len(comparisons)
        if n < 2:
            return cls(comparisons=n)
        square = float(np.var([c.difference for c in comparisons], ddof=1))
        return cls._known(comparisons, square, n - 1.0, launches_differing=1)

    @classmethod
    def _known(
        cls,
        comparisons: Sequence[LaunchComparison],
        square: float,
        freedom: float,
        *,
        launches_differing: int,
    ) -> Self:
        n = len(comparisons)
        noise = sum(c.error**2 for c in comparisons) / n
        floor = (1.0 - _least_share(freedom)) * noise / launches_differing
        seen = floor + max(0.0, square - noise) / launches_differing
        return cls(math.sqrt(seen), freedom, math.sqrt(floor), n)

    @property
    def assumed(self) -> bool:
        """True where too little was measured to count with it."""
        return self.freedom < LEAST_FREEDOM

    @property
    def counted_sd(self) -> float:
        """What a verdict counts with: the measured sd, or `ASSUMED_SD` where too little was measured and that is more."""
        return max(self.sd, ASSUMED_SD) if self.assumed else self.sd

    @property
    def upper(self) -> float:
        """Upper 95 % limit of the standard deviation; infinite where nothing was measured."""
        return self.sd / math.sqrt(_least_share(self.freedom)) if self.freedom > 0.0 else math.inf

    @property
    def words(self) -> str:
        """What is known, as a clause: ``launches differ by 0.4 % (8 comparisons)``."""
        taken = f"they are taken to differ by up to {100 * self.counted_sd:.2g} %"
        counted = f"{self.comparisons} comparison{'s' if self.comparisons != 1 else ''}"
        if self.comparisons == 0:
            return f"launches have not been compared yet: {taken}"
        if self.assumed:
            return f"too few launches have been compared yet ({counted}): {taken}"
        least = "" if self.sd > self.resolution else " or less"
        return f"launches differ by {100 * self.sd:.1f} %{least} ({counted})"

    def to_json(self) -> dict[str, Any]:
        """What a verdict counted with, for its evidence; ``sd`` is `counted_sd`."""
        return {
            "sd": round(self.counted_sd, 5),
            "freedom": round(self.freedom, 1),
            "assumed": self.assumed,
            "resolution": round(self.resolution, 5),
            "comparisons": self.comparisons,
        }


def _least_share(freedom: float) -> float:
    """Of its mean, the value that a mean of squares with so many degrees of freedom stays below in 5 % of cases."""
    from scipy.special import chdtri  # noqa: PLC0415  (most commands need no SciPy)

    return float(chdtri(freedom, 1.0 - _LEVEL)) / freedom
