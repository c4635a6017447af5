"""The log-ratios that a verdict looks at, one per pair; estimates from them; and predictions as a control variate.

Noise on a working machine is not normal: some requests stall and take twice as long. Each stall costs the mean and the t-test
power. The Wilcoxon signed-rank statistic and its Hodges-Lehmann estimate lose 4.5 % of power on normal noise and almost none
on stalls (Hollander, Wolfe and Chicken, *Nonparametric Statistical Methods*, 3rd ed., ch. 3), but they count differences
between prompts as noise. For prompts that were repeated, the stratified mean takes the noise from the repeats alone.

The replay predicts the gain of every prompt whose answer is recorded. The estimate is the mean prediction over all recorded
prompts plus the mean difference between measured and predicted (Angelopoulos et al., *Prediction-powered inference*, Science
382, 2023; the weight as in PPI++, arXiv 2311.01453). If the measured prompts are a sample of the recorded ones, this is the
regression estimator of survey sampling (Cochran, *Sampling Techniques*, ch. 7). It stays right if the predictions are wrong:
a useless prediction gets the weight 0, which leaves the plain estimate.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain

import numpy as np
import numpy.typing as npt

from autospec.measure.measurements import Pair

__all__ = [
    "Control",
    "Estimate",
    "LogRatio",
    "by_prompt",
    "chance_by_signs",
    "control",
    "critical_rank",
    "hodges_lehmann",
    "of_mix",
    "of_pairs",
    "prompt_medians",
    "signed_rank_estimate",
    "stratified_estimate",
]


@dataclass(frozen=True, slots=True)
class LogRatio:
    """One pair as the statistics see it: `value` is ln(drafting ÷ off), above 0 the drafting is faster."""

    prompt: str
    off_launch: str
    drafted_launch: str
    value: float
    off_first: bool = True

    @property
    def stretch(self) -> tuple[str, str]:
        """The two launches; if off and drafting run in turns, one stretch of time."""
        return self.off_launch, self.drafted_launch


def of_pairs(
    pairs: Iterable[Pair], ratio: Callable[[Pair], float] = lambda pair: pair.log_ratio
) -> list[LogRatio]:
    """Return the log-ratios of one drafting's pairs, in their order; `ratio` gives ln(drafting ÷ off) of a pair, by default of speeds."""
    return [
        LogRatio(
            prompt=pair.off.prompt_id,
            off_launch=pair.off.launch_id,
            drafted_launch=pair.drafted.launch_id,
            value=ratio(pair),
            off_first=pair.off.position == 0,
        )
        for pair in pairs
    ]


def of_mix(
    pairs: Mapping[str, Sequence[Pair]], time_shares: Mapping[str, float]
) -> tuple[list[LogRatio], int]:
    """Return the log-ratios of a mix of prompt types, and the number of rounds that every type has.

    One value stands for a set of requests with one or more prompts of every type, asked in the same round: ln(time of the mix
    without drafting ÷ its time with drafting). The sets are independent, because no two of a round share a prompt. If a type
    has more rounds than another, several of its rounds count as one.

    Args:
        pairs: Name of a prompt type → all pairs of one drafting, at least one.
        time_shares: Name of a prompt type → its part of the mix's time without drafting; they add up to 1.
    """
    rounds = min(len({pair.off.round for pair in own}) for own in pairs.values())
    by_type = {name: _by_slot(own, rounds) for name, own in pairs.items()}
    launches = _launches([[p for own in by_type.values() for p in chain(*own[k])] for k in range(rounds)])
    # The sets are named after a prompt of the type with the fewest: the values have no more prompts than that type.
    scarcest = min(pairs, key=lambda name: (len({pair.off.prompt_id for pair in pairs[name]}), name))
    values = []
    for slot, launch in enumerate(launches):
        sets = min(len(own[slot]) for own in by_type.values())
        for k in range(sets):
            members = {name: list(chain(*own[slot][k::sets])) for name, own in by_type.items()}
            time = math.fsum(
                time_shares[name] * statistics.fmean(math.exp(-pair.log_ratio) for pair in own)
                for name, own in members.items()
            )
            first = members[scarcest][0].off
            launched = f"off {launch}", f"drafted {launch}"
            values.append(LogRatio(first.prompt_id, *launched, -math.log(time), first.position == 0))
    return values, rounds


def _by_slot(pairs: Sequence[Pair], slots: int) -> list[list[list[Pair]]]:
    """The pairs of a type in as many groups of whole rounds; a group has a list of pairs for each prompt."""
    numbers = {round_: k % slots for k, round_ in enumerate(sorted({pair.off.round for pair in pairs}))}
    groups: list[dict[str, list[Pair]]] = [{} for _ in range(slots)]
    for pair in sorted(pairs, key=lambda pair: (pair.off.round, pair.off.prompt_id)):
        groups[numbers[pair.off.round]].setdefault(pair.off.prompt_id, []).append(pair)
    return [list(group.values()) for group in groups]


def _launches(slots: Sequence[Sequence[Pair]]) -> list[int]:
    """A number for each slot; slots with a launch in common have the same, as if all their requests were of that launch."""
    numbers = list(range(len(slots)))
    owner: dict[str, int] = {}
    for slot, pairs in enumerate(slots):
        for launch in {half.launch_id for pair in pairs for half in (pair.off, pair.drafted)}:
            earlier = numbers[owner.setdefault(launch, slot)]
            joined = numbers[slot]
            numbers = [earlier if number == joined else number for number in numbers]
    return numbers


def by_prompt(values: Sequence[LogRatio]) -> Mapping[str, list[float]]:
    """Return prompt id → its values, in their order."""
    found: dict[str, list[float]] = defaultdict(list)
    for v in values:
        found[v.prompt].append(v.value)
    return found


def prompt_medians(values: Sequence[LogRatio]) -> list[float]:
    """Return the median of every prompt, in order of first appearance."""
    return [statistics.median(own) for own in by_prompt(values).values()]


# With fewer measured prompts the weight would be a guess.
_LEAST_PROMPTS = 6


@dataclass(frozen=True, slots=True)
class Control:
    """The values after correction by the prediction.

    `values` are the measured ones, each moved by its prompt's predicted difference from the mean of the `recorded` prompts, times its
    weight in `weights` (0 … 1). `recorded` is 0 if the prediction is not used. `spread_variance` is the variance of the mean prediction
    over the recorded prompts, as a sample of their kind.
    """

    values: tuple[LogRatio, ...]
    weights: Mapping[str, float]
    recorded: int = 0
    spread_variance: float = 0.0

    @property
    def weight(self) -> float:
        """Mean weight of the prediction; 0 if it is not used."""
        return statistics.fmean(self.weights.values()) if self.weights else 0.0


def control(values: Sequence[LogRatio], predicted: Mapping[str, float]) -> Control:
    """Correct measured values by `predicted`, which has ln(drafting ÷ off) of all recorded prompts, measured ones included.

    Each prompt's weight comes from the other prompts (leave one out), so that a prompt has no part in its own correction.
    """
    medians = {prompt: statistics.median(own) for prompt, own in by_prompt(values).items()}
    plain = Control(tuple(values), {})
    if len(medians) < _LEAST_PROMPTS or not medians.keys() <= predicted.keys():
        return plain
    names = list(medians)
    y = np.array([medians[p] for p in names])
    f = np.array([predicted[p] for p in names])
    weights = np.array([_slope(np.delete(f, i), np.delete(y, i)) for i in range(y.size)])
    everyone = np.array(list(predicted.values()))
    moved = y - weights * (f - everyone.mean())
    # It must pay: with leave-one-out weights a useless prediction makes the spread larger.
    if not weights.any() or moved.var() >= y.var():
        return plain
    by_name = dict(zip(names, weights.tolist(), strict=True))
    shift = {p: w * (predicted[p] - float(everyone.mean())) for p, w in by_name.items()}
    return Control(
        values=tuple(replace(v, value=v.value - shift[v.prompt]) for v in values),
        weights=by_name,
        recorded=everyone.size,
        spread_variance=float(weights.mean() ** 2 * everyone.var(ddof=1) / everyone.size),
    )


def _slope(f: np.ndarray, y: np.ndarray) -> float:
    """How much of a predicted difference was measured, 0 … 1."""
    spread = float(((f - f.mean()) ** 2).sum())
    return min(1.0, max(0.0, float((f - f.mean()) @ (y - y.mean())) / spread)) if spread > 0.0 else 0.0


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
    # Sorted, because drawn patterns give each place its own signs: the order of the prompts must not decide.
    x = np.sort(np.asarray(values, dtype=float))
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
