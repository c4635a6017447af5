"""From pairs to a verdict: a group-sequential test with a stated error rate. Pure.

The method, and why:

* **What is tested.** Each pair gives ln(drafting ÷ off) for the request that people make (`RequestShape`). Two things must
  be shown before drafting is enabled. First, on these prompts the gain exceeds the threshold (default +2 %) beyond the
  noise of requests, launches and time. Second, it is not a few prompts that carry the gain: across prompts, a lower
  bound of the gain stays above 0.
* **Noise of requests.** The signed-rank interval (`autospec.measure.statistics`), because stalls are part of life. It takes
  differences between prompts for noise, too. Where prompts were repeated, a second interval takes its noise from
  the repeats alone.
* **Noise of launches.** Two launches of one server differ, and all requests of a launch share the difference. Each round
  compares two new launches. Both intervals above are widened by the launches' scatter (`autospec.measure.variance`): the one that
  was measured on this machine, or, as long as there is none, an assumed 3 % per launch. A third interval takes the units
  (pairs of launches) as its sample and assumes nothing. Each of the three has its share of the error rate, and each may decide.
* **Time.** Where off and drafting run by turns, minutes lie between the halves of a pair. A unit whose halves did not alternate
  counts with 5 % more scatter per side. Nothing is final before both orders have run.
* **Which prompts.** A round asks some of the prompts, the next one others. Before all have been asked, a gain is enabled in three
  cases only. (1) The replay predicts every prompt that was not asked: predictions are a control variate
  (`autospec.measure.log_ratios`), and the claim about the kind of prompt then rests on all recorded prompts. (2) The gain is
  large: it would stay above the threshold if a third of all prompts lost a fifth of their speed, and every prompt that was asked is
  faster. Eight prompts drawn from sixteen miss all of five slower ones once in 78 draws. (3) At the last look. The test is
  right where gains and losses are alike, on the safe side where few prompts gain much (n-grams), and blind to rare large
  losses among prompts that were neither asked nor recorded.
* **Looking more than once.** After rounds 1, 2, 4, 8, 16, 24 the intervals are looked at, each time with a share of
  the error rate. The shares add up to it, so that the union bound (Bonferroni) holds whatever the dependence
  between looks. The first look has 40 %: eight prompts cannot decide at a smaller level. These are the repeated
  confidence intervals of Jennison and Turnbull (*Group Sequential Methods*, 2000, ch. 9), with spending by union bound.
* **Ending early without an answer.** When the upper end has fallen below the gain that is worth proving (default
  +5 %), more launches would buy nothing: undecided, which configures as off. The same where no later look could decide
  even if every further round showed what these rounds showed, give or take one and a half standard errors
  (stochastic curtailment: Jennison and Turnbull, ch. 10). Neither can raise the error rate, since neither enables.
* **A second drafting.** The search's prompts are few, and its winner may be none on others. Where the search has found
  two drafting methods that seem to pay, each is proved at half of the error rate, so that the union bound holds for the
  cell in whatever order they are measured; the second one only where the first is slower or not enabled.

`studies/bench/verdict_simulation.py` prints false enables, power and cost of exactly this code.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from autospec.formats import log_percent
from autospec.measure.launch_scatter import ASSUMED_SD, LaunchScatter
from autospec.measure.log_ratios import Control, LogRatio, by_prompt, control, prompt_medians
from autospec.measure.statistics import (
    Estimate,
    chance_by_signs,
    signed_rank_estimate,
    stratified_estimate,
)
from autospec.measure.variance import UnitFit, fit_units, launch_half_width, unit_estimate
from autospec.recommendations import Verdict

__all__ = ["DEFAULT_RULE", "METHOD", "Decision", "Rule", "decide"]

# Counts up whenever the same pairs may get another verdict: proofs by an earlier method are made again, from the same pairs.
METHOD = 4
# A gain counts as large if it outweighs prompts that were not asked: this part of all prompts, each slower by this much.
_SLOWER_PROMPTS = 1.0 / 3.0
_SLOWER_BY = math.log(0.80)
# With fewer prompts asked, too many slower ones may have been missed.
_FEWEST_PROMPTS = 8
# Before so many looks no small gain is given up.
_LOOKS_BEFORE_GIVING_UP = 3
# Measurements of a prompt of which one may be a stall without being their median.
_SETTLED = 3
# Parts of each look's error rate. Where repeats decide, prompts differ by far more than noise, and a stricter level costs
# little. Units decide small gains after many rounds; where the scatter is measured they are needed less.
_REPEATS_SHARE = 0.15
_UNITS_SHARE = 0.7
_UNITS_SHARE_MEASURED = 0.1
# Units that can be compared with each other, less one: with fewer, Student's quantile is of no use at these levels.
_LEAST_UNIT_FREEDOM = 4
# One and a half standard errors to either side, and the level of an interval that reaches as far.
_PROJECTED_ERRORS = 1.5
_PROJECTION_LEVEL = 0.07


@dataclass(frozen=True, slots=True)
class Rule:
    """When to say what.

    Attributes:
        threshold: Least gain for `enable`, as a fraction: 0.02 is +2 %.
        worth_proving: Gains below this are not pursued over more rounds.
        error_rate: One-sided, over all looks together: how often a drafting at the threshold may be enabled.
        looks: Rounds after which the interval is looked at, increasing. The last one ends the proof.
        first_share: Of the error rate, for the first look.
        across_prompts: How often prompts drawn like these may hide that the drafting is no faster than off on their kind;
            for each of the two tests that may show it.
        launch_sd: Standard deviation of ln(speed) between launches of one server, assumed until it is measured.
        turn_sd: The same between two stretches of time of some minutes, where off and drafting run by turns.
    """

    threshold: float = 0.02
    worth_proving: float = 0.05
    error_rate: float = 0.01
    looks: tuple[int, ...] = (1, 2, 4, 8, 16, 24)
    first_share: float = 0.40
    across_prompts: float = 0.05
    launch_sd: float = ASSUMED_SD
    turn_sd: float = 0.05

    def level(self, look: int) -> float:
        """The one-sided error rate of look number `look` (from 0). All of them add up to `error_rate`."""
        if len(self.looks) == 1:
            return self.error_rate
        if look == 0:
            return self.error_rate * self.first_share
        # 3 : 1 : 1 : 2 : 4 for the five that follow the first: the second look decides what all prompts tell, the last ones
        # what only many launches tell.
        weights = [3, *(max(1, k - 1) for k in range(1, len(self.looks) - 1))]
        weights[-1] += len(weights) > 1
        return self.error_rate * (1.0 - self.first_share) * weights[look - 1] / sum(weights)

    def shared(self) -> Rule:
        """The rule for each of two draftings of one cell: half of both error rates.

        The first look keeps its level as far as that goes: with less, a round of eight prompts could not decide.
        """
        return replace(
            self,
            error_rate=self.error_rate / 2.0,
            first_share=min(1.0, 2.0 * self.first_share),
            across_prompts=self.across_prompts / 2.0,
        )

    @property
    def large_gain(self) -> float:
        """The least ln(drafting ÷ off) that outweighs prompts that were not asked."""
        return (math.log1p(self.threshold) - _SLOWER_PROMPTS * _SLOWER_BY) / (1.0 - _SLOWER_PROMPTS)

    def gives_way(self, decision: Decision) -> bool:
        """True if a drafting should give way to another one: it is not enabled, or slower so far."""
        if decision.verdict is Verdict.ENABLE or decision.estimate is None:
            return False
        # An interval without an end rests on so few pairs that one stall decides about the sign. And where few prompts
        # gain much, the typical one may lose.
        slower = max(decision.estimate.center, decision.mean) < 0.0
        return decision.final or (math.isfinite(decision.estimate.high) and slower)


DEFAULT_RULE = Rule()


@dataclass(frozen=True, slots=True)
class Decision:
    """What one look says.

    Attributes:
        verdict: The verdict as things stand; `UNDECIDED` while measuring goes on.
        final: True if more rounds would not be spent.
        estimate: The paired estimate at this look, or ``None`` before the first pair.
        prompts: Distinct prompts behind it.
        prompts_faster: Prompts whose median ratio is above 1.
        mean: Mean of the prompts' median log-ratios; 0 before the first pair.
        reason: One sentence.
        units: Pairs of launches behind it.
        scatter: Of launches, as far as it was known.
        prediction_weight: 0 … 1, how much of the predicted differences between prompts was taken out; 0 for none.
        recorded: Prompts whose prediction took part.
    """

    verdict: Verdict
    final: bool
    estimate: Estimate | None
    prompts: int
    prompts_faster: int
    mean: float
    reason: str
    units: int = 0
    scatter: LaunchScatter = LaunchScatter()  # noqa: RUF009 - a frozen value
    prediction_weight: float = 0.0
    recorded: int = 0

    def to_json(self) -> dict[str, Any]:
        """For the evidence: what the intervals counted with besides the pairs."""
        return {
            "method": METHOD,
            "launches_compared": self.units,
            "launch_scatter": self.scatter.to_json(),
            "predicted_prompts": self.recorded,
            "prediction_weight": round(self.prediction_weight, 3),
        }


def decide(
    values: Sequence[LogRatio],
    rounds: int,
    rule: Rule = DEFAULT_RULE,
    *,
    complete: bool = True,
    predicted: Mapping[str, float] | None = None,
    scatter: LaunchScatter = LaunchScatter(),  # noqa: B008 - a frozen value
) -> Decision:
    """Look at the pairs of the proof so far.

    Args:
        values: All proof pairs of one drafting in one cell, as `log_ratios.of_pairs` gives them.
        rounds: Rounds completed; a number that is not among `Rule.looks` counts as the look before it.
        rule: Thresholds and error rate.
        complete: False while there are prompts that no pair has asked yet.
        predicted: Prompt id → predicted ln(drafting ÷ off), of every prompt of the proof, asked or not; or nothing.
        scatter: How much launches on this machine differ, as far as it was measured.
    """
    if not values:
        return Decision(Verdict.UNDECIDED, final=False, estimate=None, prompts=0, prompts_faster=0,
                        mean=0.0, reason="nothing has been measured yet")  # fmt: skip
    reached = [i for i, at in enumerate(rule.looks) if at <= rounds]
    look = reached[-1] if reached else 0
    last = rounds >= rule.looks[-1]
    evidence = _Evidence.of(values, rule, scatter, complete=complete, predicted=predicted or {})
    view = evidence.view(rule.level(look), len(reached))
    verdict, final, estimate, reason = _judge(view, rule, last=last)
    if verdict is Verdict.ENABLE and not (
        evidence.representative or _outweighs(view, estimate, rule) or last
    ):
        verdict, final, reason = Verdict.UNDECIDED, False, f"{reason}, with other prompts still to be asked"
    if final and not (evidence.both_orders or last):
        verdict, final, reason = (
            Verdict.UNDECIDED,
            False,
            f"{reason}, so far with one order of off and drafting",
        )
    if not final and view.settled and evidence.both_orders and _hopeless(evidence, rounds, rule):
        final, reason = True, f"{reason}, and more rounds of these prompts would not tell"
    return Decision(
        verdict,
        final,
        estimate,
        prompts=len(evidence.medians),
        prompts_faster=sum(m > 0.0 for m in evidence.medians),
        mean=statistics.fmean(evidence.medians),
        reason=reason,
        units=evidence.fit.units,
        scatter=scatter,
        prediction_weight=evidence.control.weight,
        recorded=evidence.control.recorded,
    )


@dataclass(frozen=True, slots=True)
class _Evidence:
    """What is known at one moment, whatever the level at which it is looked at.

    Attributes:
        values: As measured.
        control: The same with the prediction as control variate.
        fit: Prompts and units told apart.
        medians: Of every prompt, as measured.
        across: Lower bound of the gain on prompts of the kind; the same at every look at these values.
        rule: The rule.
        scatter: Of launches, as far as it was measured.
        complete: True if all prompts have been asked.
        representative: True if the values speak for all prompts: all were asked, or the others are predicted.
        both_orders: True if off came first in some pairs and second in others.
    """

    values: tuple[LogRatio, ...]
    control: Control
    fit: UnitFit
    medians: tuple[float, ...]
    across: float
    rule: Rule
    scatter: LaunchScatter
    complete: bool
    representative: bool
    both_orders: bool

    @classmethod
    def of(
        cls,
        values: Sequence[LogRatio],
        rule: Rule,
        scatter: LaunchScatter,
        *,
        complete: bool,
        predicted: Mapping[str, float],
    ) -> _Evidence:
        """Prepare what every look needs."""
        controlled = control(values, predicted)
        medians = tuple(prompt_medians(values))
        return cls(
            values=tuple(values),
            control=controlled,
            fit=fit_units(values),
            medians=medians,
            across=_across(controlled, medians, rule.across_prompts, complete=complete),
            rule=rule,
            scatter=scatter,
            complete=complete,
            representative=complete or controlled.recorded > len(medians),
            both_orders=len({v.off_first for v in values}) == 2 or len(values) == 1,
        )

    def view(self, level: float, looks_done: int, *, times: int = 1) -> _View:
        """Look at a level.

        Args:
            level: That all estimates share.
            looks_done: Looks, this one included; 0 before the first.
            times: As if every unit had come so many times.
        """
        measured = not self.scatter.assumed
        fit = self.fit.repeated(times)
        units_share = (_UNITS_SHARE_MEASURED if measured else _UNITS_SHARE) * (
            fit.freedom >= _LEAST_UNIT_FREEDOM
        )
        repeated = {p: own * times for p, own in by_prompt(self.values).items()}
        stratified = stratified_estimate(list(repeated.values()), _REPEATS_SHARE * level)
        ranks_share = 1.0 - units_share - (_REPEATS_SHARE if stratified is not None else 0.0)
        asked = [v.value for v in self.control.values] * times
        estimates = [self._widened(signed_rank_estimate(asked, ranks_share * level), times)]
        if stratified is not None:
            estimates.append(self._widened(stratified, times))
        if units_share and (by_units := unit_estimate(fit, units_share * level)) is not None:
            estimates.append(by_units)
        # One prompt in eight may be disturbed each time that it is asked.
        sizes = sorted(map(len, repeated.values()))
        return _View(
            tuple(estimates), self.across, self.medians, looks_done, sizes[len(sizes) // 8] >= _SETTLED
        )

    def _widened(self, estimate: Estimate, times: int) -> Estimate:
        """An interval that knows the requests alone, with the scatter of the launches added in quadrature."""
        rule = self.rule
        luck = launch_half_width(
            self.values, estimate.level, self.scatter, assumed_sd=rule.launch_sd, turn_sd=rule.turn_sd
        ) / math.sqrt(times)
        return replace(
            estimate,
            low=estimate.center - math.hypot(estimate.center - estimate.low, luck),
            high=estimate.center + math.hypot(estimate.high - estimate.center, luck),
        )


def _outweighs(view: _View, estimate: Estimate, rule: Rule) -> bool:
    """Whether a gain is so large that the prompts that were not asked need not be asked."""
    every_prompt_faster = min(view.medians) > 0.0
    return len(view.medians) >= _FEWEST_PROMPTS and every_prompt_faster and estimate.low > rule.large_gain


def _across(control: Control, medians: Sequence[float], level: float, *, complete: bool) -> float:
    """A lower bound of the gain on prompts of this kind; minus infinity where too few were asked.

    Args:
        control: The values with the prediction as control variate.
        medians: Of every prompt, as measured.
        level: See `Rule.across_prompts`.
        complete: True if all prompts have been asked.
    """
    # Few prompts (a user's small suite) cannot reach the level; then every one must be faster.
    reachable = max(level, 0.5 ** len(medians))
    if control.recorded == 0 or complete:
        by_signs = math.inf if chance_by_signs(medians) <= reachable else -math.inf
        return max(signed_rank_estimate(medians, reachable).low, by_signs)
    # The prompts that were not asked are predicted: their mean prediction is a sample of the kind, too.
    from scipy import stats  # noqa: PLC0415  (half a second that most commands need not spend)

    corrected = prompt_medians(control.values)
    center = statistics.fmean(corrected)
    spread = float(stats.t.isf(level, control.recorded - 1)) * math.sqrt(control.spread_variance)
    low = max(signed_rank_estimate(corrected, reachable).low, _low_by_signs(corrected, reachable))
    return center - math.hypot(center - low, spread) if math.isfinite(low) else -math.inf


def _low_by_signs(values: Sequence[float], level: float) -> float:
    """The largest shift that random signs would rule out: the sign-flip test's lower bound, to 0.1 %."""
    low, high = min(values) - 1.0, max(values)
    if chance_by_signs([v - low for v in values]) > level:
        return -math.inf
    while high - low > 1e-3:
        middle = (low + high) / 2.0
        if chance_by_signs([v - middle for v in values]) <= level:
            low = middle
        else:
            high = middle
    return low


@dataclass(frozen=True, slots=True)
class _View:
    """What one look sees.

    Attributes:
        estimates: By signed ranks; where prompts were repeated, the stratified one; where units can be compared, theirs.
        across: Lower bound of the gain on prompts of the kind.
        medians: Of every prompt.
        looks_done: Looks, this one included; 0 before the first.
        settled: True if the prompts have been asked often enough for a stall not to be their median; since rounds go
            through all prompts before they ask one again, there are no others to come.
    """

    estimates: tuple[Estimate, ...]
    across: float
    medians: tuple[float, ...]
    looks_done: int
    settled: bool

    def moved(self, by: float) -> _View:
        """The same with all prompts faster by so much."""
        estimates = tuple(
            replace(e, center=e.center + by, low=e.low + by, high=e.high + by) for e in self.estimates
        )
        return replace(
            self, estimates=estimates, across=self.across + by, medians=tuple(m + by for m in self.medians)
        )


def _hopeless(evidence: _Evidence, rounds: int, rule: Rule) -> bool:
    """Whether no later look would decide if the rounds to come showed what these showed, a little up or down."""
    prompts = list(by_prompt(evidence.values).values())
    now = stratified_estimate(prompts, _PROJECTION_LEVEL) or signed_rank_estimate(
        [v for prompt in prompts for v in prompt], _PROJECTION_LEVEL
    )
    if math.isinf(now.low):
        return False  # so few pairs say nothing of what is to come
    # The standard error that the launches show, where it is the larger one; few of them know it badly, and Student's quantile
    # would have every proof go on.
    reach = max(now.high - now.center, _PROJECTED_ERRORS * evidence.fit.standard_error)
    for look, at in enumerate(rule.looks):
        if at <= rounds:
            continue
        projected = evidence.view(rule.level(look), look + 1, times=max(1, round(at / rounds)))
        for shift in (reach, -reach):
            verdict, *_ = _judge(projected.moved(shift), rule, last=True)
            if verdict is not Verdict.UNDECIDED:
                return False
    return True


def _judge(view: _View, rule: Rule, *, last: bool) -> tuple[Verdict, bool, Estimate, str]:
    """Verdict, whether it is the last word, the estimate that it rests on, and why."""
    threshold = math.log1p(rule.threshold)
    first = view.estimates[0]
    if view.looks_done == 0:
        return (
            Verdict.UNDECIDED,
            False,
            first,
            f"first round not complete; so far {log_percent(first.center)}",
        )
    above = next((e for e in view.estimates if e.low > threshold), None)
    below = next((e for e in view.estimates if e.high < threshold), None)
    # Where most prompts gain a little and a few lose much, the mean has the last word; where a few gain much, too.
    if above is not None and (below is None or above is not first):
        if view.across > 0.0:
            on_average = "" if above is first else " on average"
            return Verdict.ENABLE, True, above, f"drafting is {_gain(above)} over off{on_average}"
        faster = sum(m > 0.0 for m in view.medians)
        reason = (
            f"{_gain(above)} over all, but it rests on few prompts: {faster} of {len(view.medians)} are faster, "
            f"the prompts gain {log_percent(min(view.medians))} to {log_percent(max(view.medians))}"
        )
        # Rounds to come would measure the same prompts better, and bring no others.
        return Verdict.UNDECIDED, last or view.settled, above, reason
    if below is not None:
        return Verdict.DISABLE, True, below, f"the best drafting found is {_gain(below)} against off"
    small = next((e for e in view.estimates if e.high < math.log1p(rule.worth_proving)), None)
    if view.looks_done >= _LOOKS_BEFORE_GIVING_UP and small is not None:
        limit = f"{100 * rule.worth_proving:.0f} %"
        return (
            Verdict.UNDECIDED,
            True,
            small,
            f"{_gain(small)}: less than {limit}, not worth more measuring",
        )
    # Where prompts differ, the ranks know little of their mean, and another interval is the narrower one.
    told = min(view.estimates, key=lambda e: e.high - e.low)
    reason = f"{_gain(told)}: neither clearly above {_plain(rule.threshold)} nor below"
    return Verdict.UNDECIDED, last, told, reason


def _gain(estimate: Estimate) -> str:
    unbounded = math.isinf(estimate.low) or math.isinf(estimate.high)
    span = (
        "too few pairs for an interval"
        if unbounded
        else f"{log_percent(estimate.low)} to {log_percent(estimate.high)}"
    )
    return f"{log_percent(estimate.center)} ({span})"


def _plain(fraction: float) -> str:
    return f"+{100 * fraction:g} %"
