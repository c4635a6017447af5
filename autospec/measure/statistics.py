"""Estimates from paired log-ratios: signed-rank interval, mean stratified by prompt, and sign-flip test.

Noise on a working machine is not normal: some requests stall and take twice as long. Each stall costs the mean and the t-test
power. The Wilcoxon signed-rank statistic and its Hodges-Lehmann estimate lose 4.5 % of power on normal noise and almost none
on stalls (Hollander, Wolfe and Chicken, *Nonparametric Statistical Methods*, 3rd ed., ch. 3), but they count differences
between prompts as noise. For prompts that were repeated, the stratified mean takes the noise from the repeats alone.
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

# Residuals that a noise estimate needs: with fewer degrees of freedom the t quantile is too wide to decide anything.
_LEAST_RESIDUALS = 8
# Up to this many values all sign patterns are used, 65 536 of them; beyond, as many random ones.
_MOST_EXACT = 16


@dataclass(frozen=True, slots=True)
class Estimate:
    """A location of `n` log-ratios and its interval, in logs; an end is infinite if n is too small for the one-sided level."""

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
    """Return how many of the smallest Walsh averages the interval leaves out at each end.

    This is the largest k with P(T⁺ < k) ≤ level under the null hypothesis, where T⁺ is the signed-rank statistic of n values;
    0 means that n is too small for this level. SciPy has the test but not the quantile. The exact null distribution is built
    here as the product of n fair coins with the weights 1 … n (Hollander et al., §3.1, comment 5); tests compare it with
    `scipy.stats.wilcoxon`.
    """
    distribution = np.ones(1)
    for rank in range(1, n + 1):
        longer = np.zeros(len(distribution) + rank)
        longer[: len(distribution)] += distribution
        longer[rank:] += distribution
        distribution = longer / 2.0
    return int(np.searchsorted(np.cumsum(distribution), level * (1.0 + 1e-12), side="right"))


def signed_rank_estimate(log_ratios: Sequence[float], level: float) -> Estimate:
    """Return the Hodges-Lehmann estimate and its distribution-free interval, each end with the one-sided error rate `level`.

    Raises:
        ValueError: No log-ratios, or one that is not finite.
    """
    values = np.asarray(log_ratios, dtype=float)
    if values.size == 0 or not np.isfinite(values).all():
        raise ValueError("needs at least one finite log-ratio")
    walsh = np.sort(_walsh(values))
    k = critical_rank(int(values.size), level)
    low, high = (walsh[k - 1], walsh[walsh.size - k]) if k > 0 else (-math.inf, math.inf)
    return Estimate(int(values.size), float(np.median(walsh)), float(low), float(high), level)


def hodges_lehmann(values: npt.NDArray[np.float64]) -> float:
    """Return the median of all pairwise means; it tolerates up to 29 % stalls."""
    return float(np.median(_walsh(values)))


def _walsh(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The means of all pairs of values, each with itself included."""
    i, j = _pairs(values.size)
    return np.asarray((values[i] + values[j]) / 2.0)


@lru_cache(maxsize=512)
def _pairs(n: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    i, j = np.triu_indices(n)
    return i, j


def stratified_estimate(by_prompt: Sequence[Sequence[float]], level: float) -> Estimate | None:
    """Return the mean of the prompts' means, with an interval for these prompts from repeats; ``None`` for too few repeats.

    Student's t on the residuals within prompts. Some prompts are noisier than others, so each has its own variance, and
    the degrees of freedom are Satterthwaite's (*Biometrics Bulletin* 2, 1946, 110-114); a prompt that was asked once gets
    the pooled variance of the others and adds no degrees of freedom. The interval is not about other prompts, and one stall
    widens it much.
    """
    from scipy.stats import t  # noqa: PLC0415  (half a second that most commands need not spend)

    prompts = [np.asarray(values, dtype=float) for values in by_prompt if len(values)]
    residuals = sum(p.size - 1 for p in prompts)
    if residuals < _LEAST_RESIDUALS:
        return None
    repeated = [p for p in prompts if p.size > 1]
    once = len(prompts) - len(repeated)
    # The variance of the sum of the prompts' means, as each repeated prompt's own part and its degrees of freedom. The pooled
    # variance consists of theirs.
    parts = [
        (float(p.var(ddof=1)) * (1.0 / p.size + once * (p.size - 1) / residuals), p.size - 1)
        for p in repeated
    ]
    variance = sum(part for part, _ in parts)
    uncertainty = sum(part**2 / freedom for part, freedom in parts)
    # Without any noise the quantile does not matter.
    freedom = variance**2 / uncertainty if uncertainty > 0.0 else float(residuals)
    center = float(np.mean([p.mean() for p in prompts]))
    half = float(t.isf(level, freedom)) * math.sqrt(variance) / len(prompts)
    return Estimate(sum(p.size for p in prompts), center, center - half, center + half, level)


def chance_by_signs(values: Sequence[float]) -> float:
    """Return how often the sum of these values would be as large if each sign were random.

    This is the one-sided randomisation test of symmetry around 0 (Fisher, *The Design of Experiments*, §21). Unlike ranks, it
    lets one large gain outweigh several small losses. It is exact up to 16 values. Beyond, it uses 65 536 random sign patterns,
    which give a chance of 5 % to ±0.2 points; a normal approximation would call three large values among twenty significant.
    `scipy.stats.permutation_test` gives the same, 300 times slower; the tests compare them.
    """
    x = np.asarray(values, dtype=float)
    # The order of summation changes the last bits.
    return float(np.mean(_signs(x.size) @ x >= x.sum() - 1e-12))


@lru_cache(maxsize=_MOST_EXACT)
def _signs(n: int) -> npt.NDArray[np.int8]:
    """Patterns of n signs, one per row: all of them, or 65 536 drawn with a fixed seed."""
    if n > _MOST_EXACT:
        drawn = np.random.default_rng(n).integers(0, 2, (2**_MOST_EXACT, n), dtype=np.int8)
        drawn[0] = 0  # the observed pattern is one of them, so the chance is never 0
        return 1 - 2 * drawn
    bits = np.arange(2**n)[:, None] >> np.arange(n)
    return (1 - 2 * (bits & 1)).astype(np.int8)
