"""Estimates from paired log-ratios: the signed-rank test and its interval, and a mean stratified by prompt.

Noise on a working machine is not normal: now and then a request stalls and takes twice as long. The mean
and the t-test pay for every stall; the Wilcoxon signed-rank statistic and the Hodges-Lehmann estimate that
belongs to it lose 4.5 % of power on normal noise and next to none on stalls (Hollander, Wolfe and Chicken,
*Nonparametric Statistical Methods*, 3rd ed., ch. 3). But they take differences between prompts for noise. Where the same
prompts were asked more than once, the stratified mean takes the noise from the repeats alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

__all__ = [
    "Estimate",
    "chance_by_signs",
    "critical_rank",
    "hodges_lehmann",
    "signed_rank_estimate",
    "stratified_estimate",
]

# Residuals that a noise estimate needs: a t quantile of fewer degrees of freedom is too wide to decide anything.
_LEAST_RESIDUALS = 8
# Up to so many values every pattern of signs is looked at, 65 536 of them; beyond, as many at random.
_MOST_EXACT = 16


@dataclass(frozen=True, slots=True)
class Estimate:
    """A location of log-ratios with its interval, in logs.

    Attributes:
        n: Pairs.
        center: Hodges-Lehmann estimate (median of all pairwise means), or mean of the prompts' means.
        low: Lower end; minus infinity where n is too small for the level.
        high: Upper end; plus infinity likewise.
        level: One-sided error rate of each end.
    """

    n: int
    center: float
    low: float
    high: float
    level: float

    @property
    def ratio(self) -> float:
        """The centre as a speed ratio."""
        return math.exp(self.center)

    @property
    def interval(self) -> tuple[float, float]:
        """Both ends as speed ratios."""
        return math.exp(self.low), math.exp(self.high)


@lru_cache(maxsize=4096)
def critical_rank(n: int, level: float) -> int:
    """How many of the smallest Walsh averages the interval leaves out at each end.

    The largest k for which P(T⁺ < k) ≤ level under the null, T⁺ being the signed-rank statistic of n
    values; 0 means that no interval of this level exists for so few pairs. SciPy offers the test but not
    the quantile, so the exact null distribution is built here, as the product of n fair coins that weigh
    1 … n (Hollander et al., §3.1, comment 5); the tests hold it against `scipy.stats.wilcoxon`.
    """
    distribution = np.ones(1)
    for rank in range(1, n + 1):
        longer = np.zeros(len(distribution) + rank)
        longer[: len(distribution)] += distribution
        longer[rank:] += distribution
        distribution = longer / 2.0
    return int(np.searchsorted(np.cumsum(distribution), level * (1.0 + 1e-12), side="right"))


def signed_rank_estimate(log_ratios: Sequence[float], level: float) -> Estimate:
    """The Hodges-Lehmann estimate and its distribution-free interval.

    Args:
        log_ratios: One per pair, at least one, all finite.
        level: One-sided error rate of each end of the interval.

    Raises:
        ValueError: No values, or one that is not finite.
    """
    values = np.asarray(log_ratios, dtype=float)
    if values.size == 0 or not np.isfinite(values).all():
        raise ValueError("needs at least one finite log-ratio")
    walsh = np.sort(_walsh(values))
    k = critical_rank(int(values.size), level)
    low, high = (walsh[k - 1], walsh[walsh.size - k]) if k > 0 else (-math.inf, math.inf)
    return Estimate(int(values.size), float(np.median(walsh)), float(low), float(high), level)


def hodges_lehmann(values: npt.NDArray[np.float64]) -> float:
    """The median of all pairwise means; up to 29 % of the values may be stalls."""
    return float(np.median(_walsh(values)))


def _walsh(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The means of all pairs of values, each with itself too."""
    i, j = _pairs(values.size)
    return np.asarray((values[i] + values[j]) / 2.0)


@lru_cache(maxsize=512)
def _pairs(n: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    i, j = np.triu_indices(n)
    return i, j


def stratified_estimate(by_prompt: Sequence[Sequence[float]], level: float) -> Estimate | None:
    """The mean of the prompts' means, with an interval for these prompts: noise comes from repeats of the same prompt.

    Student's t on the residuals within prompts. Some prompts are noisier than others, so each has a variance of its own, and
    the degrees of freedom are Satterthwaite's (*Biometrics Bulletin* 2, 1946, 110-114); a prompt that was asked once gets
    the pooled variance. It says nothing of other prompts, and a stall widens it much.

    Args:
        by_prompt: One sequence of log-ratios per prompt.
        level: One-sided error rate of each end of the interval.

    Returns:
        The estimate, or ``None`` where the repeats are too few to know the noise from them.
    """
    from scipy.stats import t  # noqa: PLC0415  (half a second that most commands need not spend)

    prompts = [np.asarray(values, dtype=float) for values in by_prompt if len(values)]
    residuals = sum(p.size - 1 for p in prompts)
    if residuals < _LEAST_RESIDUALS:
        return None
    pooled = sum(float(((p - p.mean()) ** 2).sum()) for p in prompts) / residuals
    # Of each prompt's mean: its variance, and the degrees of freedom that it is known with.
    parts = [
        (float(p.var(ddof=1)) / p.size, p.size - 1) if p.size > 1 else (pooled, residuals) for p in prompts
    ]
    variance = sum(part for part, _ in parts)
    uncertainty = sum(part**2 / freedom for part, freedom in parts)
    # Without any noise the quantile does not matter.
    freedom = variance**2 / uncertainty if uncertainty > 0.0 else float(residuals)
    center = float(np.mean([p.mean() for p in prompts]))
    half = float(t.isf(level, freedom)) * math.sqrt(variance) / len(prompts)
    return Estimate(sum(p.size for p in prompts), center, center - half, center + half, level)


def chance_by_signs(values: Sequence[float]) -> float:
    """How often the sum of these values would be as large if each had come up with either sign alike.

    The one-sided randomisation test of symmetry around 0 (Fisher, *The Design of Experiments*, §21); unlike ranks it knows
    that a large gain outweighs several small losses. Exact up to 16 values, beyond from 65 536 patterns of signs, which know
    a chance of 5 % to ±0.2 points; no normal approximation, to which three large values among twenty are significant.
    `scipy.stats.permutation_test` gives the same, 300 times slower; the tests hold this against it.
    """
    x = np.asarray(values, dtype=float)
    # Sums of the same values in another order differ in their last bits.
    return float(np.mean(_signs(x.size) @ x >= x.sum() - 1e-12))


@lru_cache(maxsize=_MOST_EXACT)
def _signs(n: int) -> npt.NDArray[np.int8]:
    """Patterns of n signs, one to a row: all of them, or as many as are practical, drawn with a fixed seed."""
    if n > _MOST_EXACT:
        drawn = np.random.default_rng(n).integers(0, 2, (2**_MOST_EXACT, n), dtype=np.int8)
        drawn[0] = 0  # what was observed is one of them: no chance is nothing
        return 1 - 2 * drawn
    bits = np.arange(2**n)[:, None] >> np.arange(n)
    return (1 - 2 * (bits & 1)).astype(np.int8)
