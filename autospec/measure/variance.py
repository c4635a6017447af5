"""The level of launches: what the values of two launches share, and an interval that needs no assumption about it.

Requests of one launch are no independent samples: the launch may be a little faster or slower than another launch of the
same server, and all its requests with it. Kalibera and Jones (*Rigorous Benchmarking in Reasonable Time*, ISMM 2013) take
the highest level that varies as the unit of the interval. A *unit* here is a pair of launches, one without and one with
drafting, or one stretch of each where they run by turns.

Two ways to count with the scatter of units:

* `launch_half_width` adds it to an interval that knows the requests only, from a known standard deviation.
* `unit_estimate` takes the units' own values as the sample. It holds for any scatter, but it takes many units.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autospec.measure.launch_scatter import LaunchScatter
from autospec.measure.log_ratios import LogRatio
from autospec.measure.statistics import Estimate, hodges_lehmann

__all__ = ["LEAST_FREEDOM", "UnitFit", "fit_units", "launch_half_width", "unit_estimate", "unit_variance"]

Floats = npt.NDArray[np.float64]

# A measured scatter replaces the assumed one from so many degrees of freedom on: with fewer, Student's quantile is so
# large that the assumption decides earlier.
LEAST_FREEDOM = 6
# The two-way fit converges within a few steps; the last ones change the sixth digit.
_STEPS = 6


def unit_variance(values: Sequence[LogRatio], *, launch_sd: float, turn_sd: float) -> float:
    """Variance that the units add to the mean of all values.

    Args:
        values: At least one.
        launch_sd: Standard deviation of ln(speed) between launches of one side.
        turn_sd: The same between two stretches of time, for units whose halves did not alternate.

    Returns:
        The weighted sum of the units' variances. Units with few values weigh little.
    """
    sizes = Counter(v.unit for v in values)
    orders: dict[str, set[bool]] = defaultdict(set)
    for v in values:
        orders[v.unit].add(v.off_first)
    total = len(values)
    return sum(
        (size / total) ** 2
        * 2.0
        * (launch_sd**2 + (turn_sd**2 if size > 1 and len(orders[unit]) == 1 else 0.0))
        for unit, size in sizes.items()
    )


def launch_half_width(
    values: Sequence[LogRatio], level: float, scatter: LaunchScatter, *, assumed_sd: float, turn_sd: float
) -> float:
    """Half of the interval that the scatter of units adds.

    Args:
        values: At least one.
        level: One-sided error rate.
        scatter: What is known of this machine's launches.
        assumed_sd: Used where too little is known.
        turn_sd: See `unit_variance`.
    """
    from scipy import stats  # noqa: PLC0415  (half a second that most commands need not spend)

    if scatter.freedom >= LEAST_FREEDOM:
        quantile, sd = float(stats.t.isf(level, scatter.freedom)), scatter.sd
    else:
        quantile, sd = float(stats.norm.isf(level)), assumed_sd
    return quantile * math.sqrt(unit_variance(values, launch_sd=sd, turn_sd=turn_sd))


@dataclass(frozen=True, slots=True)
class UnitFit:
    """A two-way fit: value = prompt + unit + noise.

    Attributes:
        center: Mean of the prompts' parts.
        squares: Sum of the squares of the units' parts.
        units: Number of units.
        groups: Groups of units that share prompts, directly or through other units. Units of different groups
            cannot be compared, so that each group costs a degree of freedom.
        weight: Sum of the squares of the units' shares of all values: 1 ÷ units where all are of one size.
        n: Values.
    """

    center: float
    squares: float
    units: int
    groups: int
    weight: float
    n: int

    @property
    def freedom(self) -> int:
        """Degrees of freedom of the units' variance."""
        return self.units - self.groups

    @property
    def standard_error(self) -> float:
        """Of the centre, as the units' scatter shows it; 0 where no two units can be compared."""
        return math.sqrt(self.squares / self.freedom * self.weight) if self.freedom else 0.0

    def repeated(self, times: int) -> UnitFit:
        """What it would be if every unit came so many times."""
        units = self.units * times
        return UnitFit(
            self.center, self.squares * times, units, self.groups, self.weight / times, self.n * times
        )


def fit_units(values: Sequence[LogRatio]) -> UnitFit:
    """Fit prompts and units, robustly: a unit's part is the Hodges-Lehmann estimate over its values.

    Args:
        values: At least one.
    """
    prompts = {p: i for i, p in enumerate(dict.fromkeys(v.prompt for v in values))}
    units = {u: i for i, u in enumerate(dict.fromkeys(v.unit for v in values))}
    row = np.array([prompts[v.prompt] for v in values])
    column = np.array([units[v.unit] for v in values])
    y = np.array([v.value for v in values])
    groups = _groups(row, column, len(prompts), len(units))
    of_unit = [np.flatnonzero(column == u) for u in range(len(units))]
    of_prompt = [np.flatnonzero(row == p) for p in range(len(prompts))]
    effect = np.zeros(len(units))
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
        units=len(units),
        groups=int(groups.max()) + 1,
        weight=float(shares @ shares),
        n=y.size,
    )


def unit_estimate(fit: UnitFit, level: float) -> Estimate | None:
    """The interval with units as the sample, by Student's t.

    Args:
        fit: Of `fit_units`.
        level: One-sided error rate of each end.

    Returns:
        The estimate, or ``None`` where no two units can be compared.
    """
    from scipy import stats  # noqa: PLC0415  (half a second that most commands need not spend)

    if fit.freedom < 1:
        return None
    half = float(stats.t.isf(level, fit.freedom)) * fit.standard_error
    return Estimate(fit.n, fit.center, fit.center - half, fit.center + half, level)


def _middle(x: Floats) -> float:
    """The median of few values, since a stall among three is not their middle; of more, Hodges-Lehmann's estimate."""
    return float(np.median(x)) if x.size < 5 else hodges_lehmann(x)


def _groups(
    row: npt.NDArray[np.int64], column: npt.NDArray[np.int64], prompts: int, units: int
) -> npt.NDArray[np.int64]:
    """The group of every unit, numbered from 0; shape (units,)."""
    from scipy.sparse import coo_array  # noqa: PLC0415
    from scipy.sparse.csgraph import connected_components  # noqa: PLC0415

    size = prompts + units
    graph = coo_array((np.ones(row.size), (row, prompts + column)), shape=(size, size))
    _, labels = connected_components(graph, directed=False)
    return np.unique(labels[prompts:], return_inverse=True)[1].astype(np.int64)
