"""From pairs to a verdict: a group-sequential test with a stated error rate. Pure.

The method, and why:

* **What is tested.** Each pair gives ln(drafting ÷ off). Two things must be shown before drafting is enabled:
  the gain on these prompts exceeds the threshold (default +2 %) beyond measurement noise, and it is not a few prompts that
  carry it: across the prompts' medians, a signed-rank lower bound stays above 1, or gains and losses with random signs
  would hardly add up to as much. The first of these is blind to stalls; the second knows how large a gain is.
* **Noise.** Signed-rank interval (see `autospec.measure.statistics`), because stalls are part of life. It takes
  differences between prompts for noise, too. n-gram modes double the speed of one prompt and do nothing for the next, however
  exactly both are measured; so once prompts have been repeated, a second interval has a fifth of the error rate: around
  the mean of the prompts' means, with noise from repeats alone. Either may decide. Neither knows the luck that a launch has
  for all of its requests; rounds average that of drafting (one launch each) and not that of off.
* **Which prompts.** A round asks some of the prompts, the next one others; nothing is enabled before all have been asked,
  since those that lose may be among the rest. Both intervals are for the prompts that were asked; the condition on prompts is
  what speaks for their kind. It is right where gains and losses are alike, on the safe side where few
  prompts gain much (n-grams), and blind to rare large losses among prompts that were not asked.
* **Looking more than once.** After rounds 1, 2, 4, 8, 16, 24 the interval is looked at, each time with its share of
  the error rate; the shares add up to it, so that the union bound (Bonferroni) holds whatever the dependence
  between looks. The first look has 40 %, so that a clear case of eight prompts ends there; the rest leans to
  the last, where small gains are decided. These are the repeated confidence intervals of Jennison and
  Turnbull (*Group Sequential Methods*, 2000, ch. 9), with spending by union bound.
* **Ending early without an answer.** When the upper end has fallen below the gain that is worth proving (default
  +5 %), more launches would buy nothing: undecided, which configures as off. The same where no later look could decide
  even if every further round showed what these rounds showed, give or take one and a half standard errors
  (stochastic curtailment: Jennison and Turnbull, ch. 10): prompts that differ much stay different however often they
  are asked. Neither can raise the error rate, since neither enables.
* **A second drafting.** The search's prompts are few, and its winner may be none on others. Where the search has found
  two drafting methods that seem to pay, each is proved at half of the error rate, so that the union bound holds for the
  cell in whatever order they are measured; the second one only where the first is slower or not enabled.

`studies/bench/verdict_simulation.py` prints false enables, power and cost of exactly this code.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

from autospec.measure.measurements import Pair
from autospec.measure.statistics import (
    Estimate,
    chance_by_signs,
    signed_rank_estimate,
    stratified_estimate,
)
from autospec.recommendations import Verdict

__all__ = ["DEFAULT_RULE", "METHOD", "Decision", "Rule", "decide", "decide_log_ratios"]

# Counts up whenever the same pairs may get another verdict: proofs by an earlier method are made again, from the same pairs.
METHOD = 2
# Before so many looks no small gain is given up.
_LOOKS_BEFORE_GIVING_UP = 3
# Measurements of a prompt of which one may be a stall without being their median.
_SETTLED = 3
# Part of each look's error rate that the stratified interval has. Where it decides, prompts differ by far more than noise,
# and a stricter level costs it little.
_STRATIFIED_SHARE = 0.2
# One and a half standard errors to either side.
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
    """

    threshold: float = 0.02
    worth_proving: float = 0.05
    error_rate: float = 0.01
    looks: tuple[int, ...] = (1, 2, 4, 8, 16, 24)
    first_share: float = 0.40
    across_prompts: float = 0.05

    def level(self, look: int) -> float:
        """The one-sided error rate of look number `look` (from 0). All of them add up to `error_rate`."""
        if len(self.looks) == 1:
            return self.error_rate
        if look == 0:
            return self.error_rate * self.first_share
        # 1 : 1 : 2 : 3 : 4 for the five that follow the first, and the same rising shape for other counts.
        weights = [max(1, k) for k in range(len(self.looks) - 1)]
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
    """

    verdict: Verdict
    final: bool
    estimate: Estimate | None
    prompts: int
    prompts_faster: int
    mean: float
    reason: str


def decide(
    pairs: Sequence[Pair], rounds: int, rule: Rule = DEFAULT_RULE, *, complete: bool = True
) -> Decision:
    """Look at the pairs of the proof so far.

    Args:
        pairs: All proof pairs of one drafting in one cell.
        rounds: Rounds completed; a number that is not among `Rule.looks` counts as the look before it.
        rule: Thresholds and error rate.
        complete: False while there are prompts that no round has asked yet: nothing is enabled before the last look then.
    """
    by_prompt: dict[str, list[float]] = defaultdict(list)
    for pair in pairs:
        by_prompt[pair.drafted.prompt_id].append(pair.log_ratio)
    return decide_log_ratios(list(by_prompt.values()), rounds, rule, complete=complete)


def decide_log_ratios(
    by_prompt: Sequence[Sequence[float]], rounds: int, rule: Rule = DEFAULT_RULE, *, complete: bool = True
) -> Decision:
    """The same on bare numbers: one sequence of log-ratios per prompt."""
    if not any(by_prompt):
        return Decision(Verdict.UNDECIDED, final=False, estimate=None, prompts=0, prompts_faster=0,
                        mean=0.0, reason="nothing has been measured yet")  # fmt: skip
    reached = [i for i, at in enumerate(rule.looks) if at <= rounds]
    look = reached[-1] if reached else 0
    prompts = [list(prompt) for prompt in by_prompt if prompt]
    view = _View.at(prompts, rule.level(look), len(reached))
    last = rounds >= rule.looks[-1]
    verdict, final, estimate, reason = _judge(view, rule, last=last)
    if verdict is Verdict.ENABLE and not (complete or last):
        verdict, final, reason = Verdict.UNDECIDED, False, f"{reason}, with other prompts still to be asked"
    if not final and view.settled and _hopeless(prompts, rounds, rule):
        final, reason = True, f"{reason}, and more rounds of these prompts would not tell"
    faster = sum(m > 0.0 for m in view.medians)
    return Decision(verdict, final, estimate, len(prompts), faster, statistics.fmean(view.medians), reason)


@dataclass(frozen=True, slots=True)
class _View:
    """What one look sees.

    Attributes:
        estimates: By signed ranks; where prompts were repeated, the stratified one after it.
        medians: Of every prompt.
        looks_done: Looks, this one included; 0 before the first.
        settled: True if the prompts have been asked often enough for a stall not to be their median; since rounds go
            through all prompts before they ask one again, there are no others to come.
    """

    estimates: tuple[Estimate, ...]
    medians: tuple[float, ...]
    looks_done: int
    settled: bool

    @classmethod
    def at(cls, prompts: list[list[float]], level: float, looks_done: int) -> Self:
        """Look at the log-ratios of every prompt, at a level that the estimates share."""
        values = [v for prompt in prompts for v in prompt]
        stratified = stratified_estimate(prompts, _STRATIFIED_SHARE * level)
        estimates = (
            (signed_rank_estimate(values, level),)
            if stratified is None
            else (signed_rank_estimate(values, (1.0 - _STRATIFIED_SHARE) * level), stratified)
        )
        # One prompt in eight may be disturbed each time that it is asked.
        settled = sorted(map(len, prompts))[len(prompts) // 8] >= _SETTLED
        return cls(estimates, tuple(statistics.median(p) for p in prompts), looks_done, settled)

    def moved(self, by: float) -> Self:
        """The same with all prompts faster by so much."""
        estimates = tuple(
            replace(e, center=e.center + by, low=e.low + by, high=e.high + by) for e in self.estimates
        )
        return replace(self, estimates=estimates, medians=tuple(m + by for m in self.medians))


def _hopeless(prompts: list[list[float]], rounds: int, rule: Rule) -> bool:
    """Whether no later look would decide if the rounds to come showed what these showed, a little up or down."""
    now = stratified_estimate(prompts, _PROJECTION_LEVEL) or signed_rank_estimate(
        [v for prompt in prompts for v in prompt], _PROJECTION_LEVEL
    )
    if math.isinf(now.low):
        return False  # so few pairs say nothing of what is to come
    for look, at in enumerate(rule.looks):
        if at <= rounds:
            continue
        then = [prompt * max(1, round(at / rounds)) for prompt in prompts]
        projected = _View.at(then, rule.level(look), look + 1)
        for shift in (now.high - now.center, now.low - now.center):
            verdict, *_ = _judge(projected.moved(shift), rule, last=True)
            if verdict is not Verdict.UNDECIDED:
                return False
    return True


def _judge(view: _View, rule: Rule, *, last: bool) -> tuple[Verdict, bool, Estimate, str]:
    """Verdict, whether it is the last word, the estimate that it rests on, and why."""
    threshold = math.log1p(rule.threshold)
    first = view.estimates[0]
    if view.looks_done == 0:
        return Verdict.UNDECIDED, False, first, f"first round not complete; so far {_percent(first.center)}"
    above = next((e for e in view.estimates if e.low > threshold), None)
    below = next((e for e in view.estimates if e.high < threshold), None)
    # Where most prompts gain a little and a few lose much, the mean has the last word; where a few gain much, too.
    if above is not None and (below is None or above is not first):
        if _holds_across(view.medians, rule.across_prompts):
            on_average = "" if above is first else " on average"
            return Verdict.ENABLE, True, above, f"drafting is {_gain(above)} over off{on_average}"
        faster = sum(m > 0.0 for m in view.medians)
        reason = (
            f"{_gain(above)} over all, but it rests on few prompts: {faster} of {len(view.medians)} are faster, "
            f"the prompts gain {_percent(min(view.medians))} to {_percent(max(view.medians))}"
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
    # Where prompts differ, the ranks know little of their mean, and the stratified interval is the narrower one.
    told = min(view.estimates, key=lambda e: e.high - e.low)
    reason = f"{_gain(told)}: neither clearly above {_plain(rule.threshold)} nor below"
    return Verdict.UNDECIDED, last, told, reason


def _holds_across(medians: Sequence[float], level: float) -> bool:
    """Whether prompts like these gain, not only a few of them."""
    # Few prompts (a user's small suite) cannot reach the level; then every one must be faster.
    reachable = max(level, 0.5 ** len(medians))
    return signed_rank_estimate(medians, reachable).low > 0.0 or chance_by_signs(medians) <= reachable


def _gain(estimate: Estimate) -> str:
    unbounded = math.isinf(estimate.low) or math.isinf(estimate.high)
    span = (
        "too few pairs for an interval"
        if unbounded
        else f"{_percent(estimate.low)} to {_percent(estimate.high)}"
    )
    return f"{_percent(estimate.center)} ({span})"


def _percent(log_ratio: float) -> str:
    return f"{100.0 * math.expm1(log_ratio):+.1f} %"


def _plain(fraction: float) -> str:
    return f"+{100 * fraction:g} %"
