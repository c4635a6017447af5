"""How much the speed of one server differs between launches: measurement, and the value that a verdict uses.

A launch may be faster or slower than another launch of the same command for all its requests: memory placement, cores, how a
GPU placed it. Two launches without drafting run side by side and answer the same short request in turns (old, new, new,
old, …), so that heat, other programs and slow phases of the machine cancel within each pair. One comparison gives the
Hodges-Lehmann estimate d of the pairs' ln(new ÷ old) and its standard error e:

    e² = (1.4826 · MAD)² · (π ÷ 3) ÷ pairs        MAD: median distance of the pairs from their median

A stalled request hardly moves e (3 ÷ π is the efficiency of the estimate on normal noise); e is at least 0.1 %. If ln(speed)
has the standard deviation L between launches, d has the variance 2L² + e². Let T be the mean of d² over n comparisons, E
the mean of e², f the degrees of freedom of T, and c = χ²(0.05; f) ÷ f:

    f = n² ÷ (n + s ÷ 2)                           s: pairs of comparisons that share a launch
    resolution² = (1 − c) · E ÷ 2
    sd² = resolution² + max(0, T − E) ÷ 2

Successive comparisons share a launch (the new one of one is the old one of the next), which correlates them by −½: n in a
row are worth about ⅔·n separate ones. Above the floor, sd² is (T − c·E) ÷ 2, so that sd² ÷ c is the exact upper 95 % limit
of L² for normal noise of known size; not all of the noise is subtracted, because T may be small by chance. An sd of 0 is
therefore never reported. If launches do not differ, the sd falls to the resolution, which shrinks with the number of
comparisons. tests/measure/test_launch_scatter.py checks the limit on simulated machines.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from autospec.measure.statistics import hodges_lehmann

__all__ = ["ASSUMED_SD", "LaunchComparison", "LaunchScatter", "speed_difference"]

# What a verdict assumes if too little was measured: launches on working machines differed by 1 to 5 %.
ASSUMED_SD = 0.03
# With fewer degrees of freedom a measured sd may be far too small: its upper 95 % limit is more than twice as large.
LEAST_FREEDOM = 6.0
# Converts a median distance into a standard deviation, for normal noise.
_MAD_TO_SD = 1.4826
# Server clocks and rounded times resolve no smaller difference, even if all pairs are equal.
_LEAST_ERROR = 0.001
# One-sided error rate of the upper limit from which the resolution follows.
_LEVEL = 0.05


@dataclass(frozen=True, slots=True)
class LaunchComparison:
    """Two launches (ids) of one server, compared side by side, `at` seconds since the epoch.

    `difference` is the estimate of ln(speed of new ÷ speed of old), `error` its standard error.
    """

    at: float
    old: str
    new: str
    difference: float
    error: float
    pairs: int

    @classmethod
    def of(cls, log_ratios: Sequence[float], *, at: float, old: str, new: str) -> Self:
        """Build the comparison from the pairs' log-ratios; see `speed_difference`."""
        difference, error = speed_difference(log_ratios)
        return cls(at, old, new, difference, error, len(log_ratios))


def speed_difference(log_ratios: Sequence[float]) -> tuple[float, float]:
    """The Hodges-Lehmann estimate of at least two finite log-ratios, and its standard error; else `ValueError`."""
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
        sd: Standard deviation of ln(speed) between launches, never below `resolution`; 0 if nothing was measured.
        freedom: Degrees of freedom of `sd`; 0 if nothing was measured.
        resolution: The value of `sd` if launches do not differ at all: the smallest scatter that could be seen.
        comparisons: Number of comparisons.
    """

    sd: float = 0.0
    freedom: float = 0.0
    resolution: float = 0.0
    comparisons: int = 0

    @classmethod
    def of(cls, comparisons: Sequence[LaunchComparison]) -> Self:
        """Combine comparisons of two launches each; the module describes how."""
        n = len(comparisons)
        if n == 0:
            return cls()
        launches = Counter(launch for c in comparisons for launch in (c.old, c.new))
        shared = sum(k * (k - 1) // 2 for k in launches.values())
        square = sum(c.difference**2 for c in comparisons) / n
        return cls._known(comparisons, square, n**2 / (n + shared / 2.0), launches_differing=2)

    @classmethod
    def of_control(cls, comparisons: Sequence[LaunchComparison]) -> Self:
        """Combine comparisons with one control launch: n − 1 degrees of freedom, variance L² + e² (see the module)."""
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
        """True if too little was measured to use it."""
        return self.freedom < LEAST_FREEDOM

    @property
    def counted_sd(self) -> float:
        """The sd that a verdict uses: the measured one, or at least `ASSUMED_SD` if too little was measured."""
        return max(self.sd, ASSUMED_SD) if self.assumed else self.sd

    @property
    def upper(self) -> float:
        """Upper 95 % limit of the standard deviation; infinite if nothing was measured."""
        return self.sd / math.sqrt(_least_share(self.freedom)) if self.freedom > 0.0 else math.inf

    @property
    def words(self) -> str:
        """What is known, as a clause: ``launches differ by 0.4 % (8 comparisons)``."""
        taken = f"autospec assumes up to {100 * self.counted_sd:.2g} %"
        counted = f"{self.comparisons} comparison{'s' if self.comparisons != 1 else ''}"
        if self.comparisons == 0:
            return f"launches have not been compared yet: {taken}"
        if self.assumed:
            return f"too few launches have been compared yet ({counted}): {taken}"
        least = "" if self.sd > self.resolution else " or less"
        return f"launches differ by {100 * self.sd:.1f} %{least} ({counted})"

    def to_json(self) -> dict[str, Any]:
        """The form in a verdict's evidence; ``sd`` is `counted_sd`."""
        return {
            "sd": round(self.counted_sd, 5),
            "freedom": round(self.freedom, 1),
            "assumed": self.assumed,
            "resolution": round(self.resolution, 5),
            "comparisons": self.comparisons,
        }


def _least_share(freedom: float) -> float:
    """The 5 % quantile of a mean of squares with `freedom` degrees of freedom, as a share of its mean."""
    from scipy.special import chdtri  # noqa: PLC0415  (most commands need no SciPy)

    return float(chdtri(freedom, 1.0 - _LEVEL)) / freedom
