"""How much the speed of one server differs between launches: measurement, and what it adds to an interval.

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

Requests of one launch are not independent samples. Kalibera and Jones (*Rigorous Benchmarking in Reasonable Time*, ISMM 2013)
take the highest level that varies as the unit of the interval. There are two ways to do this here:

* `launch_half_width` adds the launch scatter to an interval that knows only the requests: the measured one for launches of off,
  and at least `ASSUMED_SD` for those with drafting, which are never compared.
* `unit_estimate` uses *units* as the sample: all values with connected launches, which is one round of the proof because both
  servers are new in each round. It holds for any scatter, but needs many units.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from autospec.measure.log_ratios import Estimate, LogRatio, hodges_lehmann

__all__ = [
    "ASSUMED_SD",
    "LaunchComparison",
    "LaunchScatter",
    "UnitFit",
    "fit_units",
    "launch_half_width",
    "launch_variance",
    "speed_difference",
    "unit_estimate",
]

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


Floats = npt.NDArray[np.float64]

# The two-way fit converges within a few steps; the last ones change the sixth digit.
_STEPS = 6


def launch_variance(values: Sequence[LogRatio], *, off_sd: float, drafted_sd: float, turn_sd: float) -> float:
    """Return the variance that launches, and stretches of time, add to the mean of all values.

    It is the sum of the squared shares of all launches, times the variance of their side. `turn_sd` is the standard deviation
    between two stretches of time, for launches whose requests did not alternate.
    """
    total = len(values)
    off, drafted = Counter(v.off_launch for v in values), Counter(v.drafted_launch for v in values)
    variance = off_sd**2 * sum((size / total) ** 2 for size in off.values())
    variance += drafted_sd**2 * sum((size / total) ** 2 for size in drafted.values())
    orders: dict[tuple[str, str], set[bool]] = defaultdict(set)
    for v in values:
        orders[v.stretch].add(v.off_first)
    sizes = Counter(v.stretch for v in values)
    one_sided = [size for stretch, size in sizes.items() if size > 1 and len(orders[stretch]) == 1]
    return variance + 2.0 * turn_sd**2 * sum((size / total) ** 2 for size in one_sided)


def launch_half_width(
    values: Sequence[LogRatio], level: float, scatter: LaunchScatter, *, assumed_sd: float, turn_sd: float
) -> float:
    """Return half of the interval that the scatter of launches adds; `assumed_sd` counts if too little is known.

    Only launches of off are compared. Those with drafting load more, and may differ by more: they never count with less than
    `assumed_sd`.
    """
    from scipy import stats  # noqa: PLC0415  (half a second that most commands need not spend)

    normal = float(stats.norm.isf(level))
    if scatter.assumed:
        quantile, off_sd = normal, max(assumed_sd, scatter.sd)
    else:
        quantile, off_sd = float(stats.t.isf(level, scatter.freedom)), scatter.sd
    # What is assumed has no degrees of freedom.
    drafted_sd = max(off_sd, assumed_sd * normal / quantile)
    return quantile * math.sqrt(
        launch_variance(values, off_sd=off_sd, drafted_sd=drafted_sd, turn_sd=turn_sd)
    )


@dataclass(frozen=True, slots=True)
class UnitFit:
    """A two-way fit: value = prompt + unit + noise.

    `center` is the mean of the prompts' parts, `squares` the sum of the squares of the units' parts, `weight` the sum of the squares
    of the units' shares of all values. Units of different `groups` share no prompts and cannot be compared, so each group costs a
    degree of freedom. `of_prompts` is the variance of the center from the prompts' own repeats: if half of a prompt's few values
    stalled, its part is uncertain, and no unit shows that.
    """

    center: float
    squares: float
    units: int
    groups: int
    weight: float
    n: int
    of_prompts: float = 0.0

    @property
    def freedom(self) -> int:
        """Degrees of freedom of the units' variance."""
        return self.units - self.groups

    @property
    def standard_error(self) -> float:
        """Standard error of the center, from units or prompts, whichever is larger; 0 without comparable units."""
        if not self.freedom:
            return 0.0
        return math.sqrt(max(self.squares / self.freedom * self.weight, self.of_prompts))

    def repeated(self, times: int) -> UnitFit:
        """Return the fit as if every unit had occurred `times` times."""
        units = self.units * times
        return UnitFit(
            center=self.center,
            squares=self.squares * times,
            units=units,
            groups=self.groups * times if self.freedom == 0 else self.groups,
            weight=self.weight / times,
            n=self.n * times,
            of_prompts=self.of_prompts / times,
        )


def fit_units(values: Sequence[LogRatio]) -> UnitFit:
    """Fit prompts and units robustly: a unit's part is the Hodges-Lehmann estimate over its values."""
    prompts = {p: i for i, p in enumerate(dict.fromkeys(v.prompt for v in values))}
    row = np.array([prompts[v.prompt] for v in values])
    column = _connected([v.off_launch for v in values], [v.drafted_launch for v in values])
    units = int(column.max()) + 1
    y = np.array([v.value for v in values])
    # For every unit, its group: the units that it shares prompts with, directly or not.
    groups = np.zeros(units, dtype=np.int64)
    groups[column] = _connected(row.tolist(), column.tolist())
    of_unit = [np.flatnonzero(column == u) for u in range(units)]
    of_prompt = [np.flatnonzero(row == p) for p in range(len(prompts))]
    effect = np.zeros(units)
    for _ in range(_STEPS):
        base = np.array([_middle(y[k] - effect[column[k]]) for k in of_prompt])
        effect = np.array([hodges_lehmann(y[k] - base[row[k]]) for k in of_unit])
        for group in range(groups.max() + 1):
            effect[groups == group] -= effect[groups == group].mean()
    base = np.array([_middle(y[k] - effect[column[k]]) for k in of_prompt])
    shares = np.array([k.size for k in of_unit]) / y.size
    return UnitFit(
        center=float(base.mean()),
        squares=float(effect @ effect),
        units=units,
        groups=int(groups.max()) + 1,
        weight=float(shares @ shares),
        n=y.size,
        of_prompts=sum(_variance(y[k] - effect[column[k]]) for k in of_prompt) / len(prompts) ** 2,
    )


def unit_estimate(fit: UnitFit, level: float) -> Estimate | None:
    """Return the Student's t interval with units as the sample; ``None`` if no two units can be compared."""
    from scipy import stats  # noqa: PLC0415  (half a second that most commands need not spend)

    if fit.freedom < 1:
        return None
    half = float(stats.t.isf(level, fit.freedom)) * fit.standard_error
    return Estimate(fit.n, fit.center, fit.center - half, fit.center + half, level)


def _variance(x: Floats) -> float:
    """Variance of the middle of a prompt's values, from their median distance; 0 for a single value."""
    distance = float(np.median(np.abs(x - np.median(x))))
    return (_MAD_TO_SD * distance) ** 2 * math.pi / 2.0 / x.size


def _middle(x: Floats) -> float:
    """The median of fewer than five values, which one stall of three does not move; else Hodges-Lehmann."""
    return float(np.median(x)) if x.size < 5 else hodges_lehmann(x)


def _connected(one: Sequence[object], other: Sequence[object]) -> npt.NDArray[np.int64]:
    """The component number of every value, from 0: values that share either name are connected."""
    from scipy.sparse import coo_array  # noqa: PLC0415
    from scipy.sparse.csgraph import connected_components  # noqa: PLC0415

    rows = np.unique(np.array(one, dtype=str), return_inverse=True)[1]
    columns = np.unique(np.array(other, dtype=str), return_inverse=True)[1]
    size = int(rows.max()) + int(columns.max()) + 2
    graph = coo_array((np.ones(rows.size), (rows, columns + int(rows.max()) + 1)), shape=(size, size))
    labels = connected_components(graph, directed=False)[1][rows]
    return np.unique(labels, return_inverse=True)[1].astype(np.int64)
