"""The scatter of launches in an interval: what requests of one launch share.

Requests of one launch are not independent samples: a launch may be faster or slower than another launch of the same server.
Kalibera and Jones (*Rigorous Benchmarking in Reasonable Time*, ISMM 2013) take the highest level that varies as the unit of
the interval. There are two ways to do this here:

* `launch_half_width` adds a known launch scatter to an interval that knows only the requests.
* `unit_estimate` uses *units* as the sample: all values with connected launches, which is one round of the proof because both
  servers are new in each round. It holds for any scatter, but needs many units.
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

__all__ = ["UnitFit", "fit_units", "launch_half_width", "launch_variance", "unit_estimate"]

Floats = npt.NDArray[np.float64]

# Converts a median distance into a standard deviation, for normal noise.
_DISTANCE_TO_SD = 1.4826
# The two-way fit converges within a few steps; the last ones change the sixth digit.
_STEPS = 6


def launch_variance(values: Sequence[LogRatio], *, launch_sd: float, turn_sd: float) -> float:
    """Return the variance that launches, and stretches of time, add to the mean of all values.

    It is the sum of the squared shares of all launches, times the variance. `turn_sd` is the standard deviation between two
    stretches of time, for launches whose requests did not alternate.
    """
    total = len(values)
    launches = Counter(("off", v.off_launch) for v in values)
    launches.update(("drafted", v.drafted_launch) for v in values)
    variance = launch_sd**2 * sum((size / total) ** 2 for size in launches.values())
    orders: dict[tuple[str, str], set[bool]] = defaultdict(set)
    for v in values:
        orders[v.stretch].add(v.off_first)
    sizes = Counter(v.stretch for v in values)
    one_sided = [size for stretch, size in sizes.items() if size > 1 and len(orders[stretch]) == 1]
    return variance + 2.0 * turn_sd**2 * sum((size / total) ** 2 for size in one_sided)


def launch_half_width(
    values: Sequence[LogRatio], level: float, scatter: LaunchScatter, *, assumed_sd: float, turn_sd: float
) -> float:
    """Return half of the interval that the scatter of launches adds; `assumed_sd` counts if too little is known."""
    from scipy import stats  # noqa: PLC0415  (half a second that most commands need not spend)

    if scatter.assumed:
        quantile, sd = float(stats.norm.isf(level)), max(assumed_sd, scatter.sd)
    else:
        quantile, sd = float(stats.t.isf(level, scatter.freedom)), scatter.sd
    return quantile * math.sqrt(launch_variance(values, launch_sd=sd, turn_sd=turn_sd))


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
    return (_DISTANCE_TO_SD * distance) ** 2 * math.pi / 2.0 / x.size


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
