"""From pairs to a verdict: a group-sequential test with a stated error rate.

docs/method.md, "Decide", describes the method and its assumptions. `decide` evaluates the pairs after rounds 1, 2, 4, 8, 16 and
24. Each look has a share of the error rate (union bound), so the dependence between looks does not matter. A look computes
up to three intervals of the gain, each with its share of the look's level:

* the signed-rank interval over all pairs, widened by the scatter of launches;
* the interval from repeats of the same prompts, widened likewise;
* the interval with units (rounds of new launches) as the sample, which assumes nothing about launches.

`enable` also needs a lower bound of the gain across prompts above 0. Drafting is enabled before all prompts were asked only if
the replay predicts the others, if the gain is large (`Rule.large_gain`), or at the last look. Ending early never enables.
If a cell proves two draftings, each has half of the error rate (`Rule.shared`).

`studies/bench/verdict_simulation.py` prints false enables, power and cost of this code.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from autospec.cells import Aim
from autospec.formats import counted, log_percent
from autospec.measure.launch_scatter import (
    ASSUMED_SD,
    LaunchScatter,
    UnitFit,
    fit_units,
    launch_half_width,
    unit_estimate,
)
from autospec.measure.log_ratios import (
    Control,
    Estimate,
    LogRatio,
    by_prompt,
    chance_by_signs,
    control,
    prompt_medians,
    signed_rank_estimate,
    stratified_estimate,
)
from autospec.recommendations import THRESHOLD, Verdict

__all__ = ["DEFAULT_RULE", "METHOD", "Decision", "Rule", "decide", "failing_words", "refused"]

# Increases when the same pairs may get another verdict: earlier proofs are then evaluated again from their pairs, at the look
# that they were evaluated at.
METHOD = 6
# A gain is large if it outweighs this share of prompts, each slower by this much. Eight prompts drawn from sixteen miss
# all of five slower ones once in 78 draws.
_SLOWER_PROMPTS = 1.0 / 3.0
_SLOWER_BY = math.log(0.80)
# With fewer prompts asked, too many slower ones may have been missed.
_FEWEST_PROMPTS = 8
# A small gain is not given up before this look.
_LOOKS_BEFORE_GIVING_UP = 3
# With this many measurements of a prompt, one stall is not their median.
_SETTLED = 3
# Shares of each look's error rate. If repeats decide, prompts differ by far more than noise, and a stricter level costs
# little. Units decide small gains after many rounds.
_REPEATS_SHARE = 0.15
_UNITS_SHARE = 0.7
# Degrees of freedom between units: with fewer, Student's quantile is useless at these levels.
_LEAST_UNIT_FREEDOM = 4
# 1.5 standard errors to either side, and the level of an interval of that width.
_PROJECTED_ERRORS = 1.5
_PROJECTION_LEVEL = 0.07


@dataclass(frozen=True, slots=True)
class Rule:
    """Thresholds and error rates of a verdict.

    Attributes:
        threshold: Least gain for `enable`, as a fraction: 0.02 is +2 %.
        worth_proving: Smaller gains are not pursued over more rounds, as a fraction.
        error_rate: One-sided, over all looks together: how often a drafting at the threshold may be enabled.
        looks: Rounds after which the pairs are evaluated, increasing. The last one ends the proof.
        first_share: The first look's share of the error rate; with less, a round of eight prompts could not decide.
        across_prompts: How often prompts drawn like these may hide that the drafting is no faster than off on their kind;
            for each of the two tests that may show it.
        launch_sd: Standard deviation of ln(speed) between launches of one server, assumed until it is measured.
        turn_sd: The same between two stretches of some minutes, for off and drafting that run in turns.
    """

    threshold: float = THRESHOLD
    worth_proving: float = 0.05
    error_rate: float = 0.01
    looks: tuple[int, ...] = (1, 2, 4, 8, 16, 24)
    first_share: float = 0.40
    across_prompts: float = 0.05
    launch_sd: float = ASSUMED_SD
    turn_sd: float = 0.05

    def level(self, look: int) -> float:
        """Return the one-sided error rate of look number `look`, from 0. All levels add up to `error_rate`."""
        if len(self.looks) == 1:
            return self.error_rate
        if look == 0:
            return self.error_rate * self.first_share
        # 3 : 1 : 1 : 2 : 4 for the five looks after the first: the second decides what all prompts show, the last ones what
        # only many launches show.
        weights = [3, *(max(1, k - 1) for k in range(1, len(self.looks) - 1))]
        weights[-1] += len(weights) > 1
        return self.error_rate * (1.0 - self.first_share) * weights[look - 1] / sum(weights)

    def shared(self, parts: int = 2) -> Rule:
        """Return the rule for each of several draftings, of which one may be enabled: its part of both error rates.

        Of two, the first look keeps its level as far as possible: with less, a round of eight prompts could not decide.
        """
        if parts == 1:
            return self
        return replace(
            self,
            error_rate=self.error_rate / parts,
            first_share=min(1.0, 2.0 * self.first_share) if parts == 2 else self.first_share,
            across_prompts=self.across_prompts / parts,
        )

    @property
    def large_gain(self) -> float:
        """The least ln(drafting ÷ off) that outweighs prompts that were not asked."""
        return (math.log1p(self.threshold) - _SLOWER_PROMPTS * _SLOWER_BY) / (1.0 - _SLOWER_PROMPTS)

    def gives_way(self, decision: Decision) -> bool:
        """Return True if another drafting should be tried: this one is not enabled, or slower so far."""
        if decision.verdict is Verdict.ENABLE or decision.estimate is None:
            return False
        # An unbounded interval rests on so few pairs that one stall decides the sign. If few prompts gain much, the typical
        # one may lose.
        slower = max(decision.estimate.center, decision.mean) < 0.0
        return decision.final or (math.isfinite(decision.estimate.high) and slower)


DEFAULT_RULE = Rule()


@dataclass(frozen=True, slots=True)
class Decision:
    """The result of one look.

    Attributes:
        verdict: The verdict so far; `UNDECIDED` while measuring continues.
        final: True if no more rounds should be measured.
        estimate: The paired estimate at this look; ``None`` before the first pair.
        prompts: Number of distinct prompts.
        mean: Mean of the prompts' median log-ratios; 0 before the first pair.
        reason: One sentence.
        units: Pairs of launches.
        scatter: Scatter of launches, as far as it was known.
        prediction_weight: Part of the predicted differences between prompts that was subtracted, 0 … 1.
        recorded: Prompts whose prediction was used.
    """

    verdict: Verdict
    final: bool
    estimate: Estimate | None
    prompts: int
    mean: float
    reason: str
    units: int = 0
    scatter: LaunchScatter = LaunchScatter()  # noqa: RUF009 - a frozen value
    prediction_weight: float = 0.0
    recorded: int = 0

    def to_json(self) -> dict[str, Any]:
        """The form in the evidence: what the intervals used besides the pairs."""
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
    aim: Aim = Aim.SPEED,
) -> Decision:
    """Evaluate the pairs of the proof so far.

    Args:
        values: All proof pairs of one drafting in one cell, from `log_ratios.of_pairs`.
        rounds: Completed rounds; a number between two of `Rule.looks` counts as the earlier look.
        rule: Thresholds and error rates.
        complete: False while some prompts have no pair yet.
        predicted: Prompt id → predicted ln(drafting ÷ off), of every prompt of the proof, asked or not; or nothing.
        scatter: How much launches on this machine differ, as far as it was measured.
        aim: What the ratios are of: it changes the words, and nothing else.
    """
    if not values:
        return Decision(
            Verdict.UNDECIDED,
            final=False,
            estimate=None,
            prompts=0,
            mean=0.0,
            reason="nothing has been measured yet",
        )
    reached = [i for i, at in enumerate(rule.looks) if at <= rounds]
    look = reached[-1] if reached else 0
    last = rounds >= rule.looks[-1]
    evidence = _Evidence.of(values, rule, scatter, complete=complete, predicted=predicted or {})
    view = evidence.view(rule.level(look), len(reached))
    verdict, final, estimate, reason = _judge(view, rule, last=last, aim=aim)
    if verdict is Verdict.ENABLE and not (
        evidence.representative or _outweighs(view, estimate, rule) or last
    ):
        verdict, final, reason = (
            Verdict.UNDECIDED,
            False,
            f"{reason}, but other prompts have not been asked yet",
        )
    if final and not (evidence.both_orders or last):
        verdict, final, reason = (
            Verdict.UNDECIDED,
            False,
            f"{reason}, but off and drafting were measured in one order only so far",
        )
    if not final and view.settled and evidence.both_orders and _hopeless(evidence, rounds, rule):
        final, reason = True, f"{reason}, and more rounds of these prompts would not decide it"
    return Decision(
        verdict,
        final,
        estimate,
        prompts=len(evidence.medians),
        mean=statistics.fmean(evidence.medians),
        reason=reason,
        units=evidence.fit.units,
        scatter=scatter,
        prediction_weight=evidence.control.weight,
        recorded=evidence.control.recorded,
    )


def refused(decision: Decision, failing: int, where: str = "") -> Decision:
    """The decision about a drafting with so many prompts that fail with it and not without: users would get errors.

    `where` is the end of the reason.
    """
    if not failing or decision.verdict is Verdict.DISABLE:
        return decision
    return replace(decision, verdict=Verdict.UNDECIDED, final=True, reason=failing_words(failing, where))


def failing_words(failing: int, where: str = "") -> str:
    """Why a drafting with so many failing prompts is not enabled, without the full stop."""
    return f"{counted(failing, 'prompt')} {'fails' if failing == 1 else 'fail'} with drafting only{where}"


@dataclass(frozen=True, slots=True)
class _Evidence:
    """What the pairs show, independent of the level of a look. `across` bounds the gain on the kind of prompt."""

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
        """The evidence at a level that all estimates share, as if every unit had occurred `times` times."""
        fit = self.fit.repeated(times)
        units_share = _UNITS_SHARE * (fit.freedom >= _LEAST_UNIT_FREEDOM)
        repeated = {p: own * times for p, own in by_prompt(self.values).items()}
        stratified = stratified_estimate(list(repeated.values()), _REPEATS_SHARE * level)
        ranks_share = 1.0 - units_share - (_REPEATS_SHARE if stratified is not None else 0.0)
        asked = [v.value for v in self.control.values] * times
        estimates = [self._widened(signed_rank_estimate(asked, ranks_share * level), times)]
        if stratified is not None:
            estimates.append(self._widened(stratified, times))
        if units_share and (by_units := unit_estimate(fit, units_share * level)) is not None:
            estimates.append(by_units)
        # One prompt in eight may be disturbed every time.
        sizes = sorted(map(len, repeated.values()))
        return _View(
            tuple(estimates), self.across, self.medians, looks_done, sizes[len(sizes) // 8] >= _SETTLED
        )

    def _widened(self, estimate: Estimate, times: int) -> Estimate:
        """An interval that knows only the requests, with the scatter of launches added in quadrature."""
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
    """Whether the gain is so large that the remaining prompts need not be asked."""
    every_prompt_faster = min(view.medians) > 0.0
    return len(view.medians) >= _FEWEST_PROMPTS and every_prompt_faster and estimate.low > rule.large_gain


def _across(control: Control, medians: Sequence[float], level: float, *, complete: bool) -> float:
    """A lower bound of the gain on prompts of this kind; minus infinity if too few were asked."""
    # Few prompts (a small suite) cannot reach the level; then every one must be faster.
    reachable = max(level, 0.5 ** len(medians))
    if control.recorded == 0 or complete:
        by_signs = math.inf if chance_by_signs(medians) <= reachable else -math.inf
        return max(signed_rank_estimate(medians, reachable).low, by_signs)
    # The other prompts are predicted: their mean prediction is a sample of the kind too.
    from scipy import stats  # noqa: PLC0415  (half a second that most commands need not spend)

    corrected = prompt_medians(control.values)
    center = statistics.fmean(corrected)
    spread = float(stats.t.isf(level, control.recorded - 1)) * math.sqrt(control.spread_variance)
    low = max(signed_rank_estimate(corrected, reachable).low, _low_by_signs(corrected, reachable))
    return center - math.hypot(center - low, spread) if math.isfinite(low) else -math.inf


def _low_by_signs(values: Sequence[float], level: float) -> float:
    """The largest shift that random signs would reject: the sign-flip test's lower bound, to 0.1 %."""
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
    """What one look sees. `settled`: each prompt was asked so often that a stall cannot be its median."""

    estimates: tuple[Estimate, ...]
    across: float
    medians: tuple[float, ...]
    looks_done: int
    settled: bool

    def moved(self, by: float) -> _View:
        """The same with all prompts faster by `by`, in logs."""
        estimates = tuple(
            replace(e, center=e.center + by, low=e.low + by, high=e.high + by) for e in self.estimates
        )
        return replace(
            self, estimates=estimates, across=self.across + by, medians=tuple(m + by for m in self.medians)
        )


def _hopeless(evidence: _Evidence, rounds: int, rule: Rule) -> bool:
    """Whether no later look would decide if the next rounds showed the same, within 1.5 standard errors."""
    prompts = list(by_prompt(evidence.values).values())
    now = stratified_estimate(prompts, _PROJECTION_LEVEL) or signed_rank_estimate(
        [v for prompt in prompts for v in prompt], _PROJECTION_LEVEL
    )
    if math.isinf(now.low):
        return False  # too few pairs to project
    # The larger of the two standard errors. Few launches estimate it badly, and Student's quantile would continue every proof.
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


def _judge(
    view: _View, rule: Rule, *, last: bool, aim: Aim = Aim.SPEED
) -> tuple[Verdict, bool, Estimate, str]:
    """Verdict, whether it is final, the estimate behind it, and the reason."""
    energy = aim is Aim.ENERGY
    of = " tokens per joule" if energy else ""
    threshold = math.log1p(rule.threshold)
    first = view.estimates[0]
    if view.looks_done == 0:
        return (
            Verdict.UNDECIDED,
            False,
            first,
            f"first round not complete; so far {log_percent(first.center)}{of}",
        )
    above = next((e for e in view.estimates if e.low > threshold), None)
    below = next((e for e in view.estimates if e.high < threshold), None)
    # If most prompts gain a little and a few lose much, or a few gain much, the mean decides.
    if above is not None and (below is None or above is not first):
        if view.across > 0.0:
            on_average = "" if above is first else " on average"
            effect = "takes less energy" if energy else "makes requests faster"
            return Verdict.ENABLE, True, above, f"drafting {effect}{on_average}: {_gain(above)}{of}"
        better = sum(m > 0.0 for m in view.medians)
        reason = (
            f"{_gain(above)}{of} overall, but it rests on few prompts: {better} of {len(view.medians)} "
            f"{'take less energy' if energy else 'are faster'}, "
            f"the prompts gain {log_percent(min(view.medians))} to {log_percent(max(view.medians))}"
        )
        # Further rounds would repeat the same prompts and add none.
        return Verdict.UNDECIDED, last or view.settled, above, reason
    if below is not None:
        changed = "tokens per joule" if energy else "speed"
        return (
            Verdict.DISABLE,
            True,
            below,
            f"the best drafting found changes the {changed} by {_gain(below)}",
        )
    small = next((e for e in view.estimates if e.high < math.log1p(rule.worth_proving)), None)
    if view.looks_done >= _LOOKS_BEFORE_GIVING_UP and small is not None:
        limit = f"{100 * rule.worth_proving:.0f} %"
        return (
            Verdict.UNDECIDED,
            True,
            small,
            f"{_gain(small)}{of}: less than {limit}, not worth more measuring",
        )
    # If prompts differ, the ranks know little of their mean, and another interval is narrower.
    told = min(view.estimates, key=lambda e: e.high - e.low)
    reason = f"{_gain(told)}{of}: neither clearly above {_plain(rule.threshold)} nor below"
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
