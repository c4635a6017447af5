"""The log-ratios that a verdict looks at, one per pair, and predictions as a control variate.

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
from itertools import chain

import numpy as np

from autospec.measure.measurements import Pair

__all__ = ["Control", "LogRatio", "by_prompt", "control", "of_mix", "of_pairs", "prompt_medians"]


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


def of_pairs(pairs: Iterable[Pair], ratio: Callable[[Pair], float]) -> list[LogRatio]:
    """Return the log-ratios of one drafting's pairs, in their order; `ratio` gives ln(drafting ÷ off) of a pair."""
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
