"""The sequential verdict: levels, each answer, and its error rate."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from autospec.measure.verdict import DEFAULT_RULE, Rule, decide_log_ratios
from autospec.recommendations import Verdict


def prompts(gain: float, noise: float, rounds: int, *, count: int = 8, seed: int = 0) -> list[list[float]]:
    """Log-ratios of prompts with the same gain and normal noise."""
    rng = np.random.default_rng(seed)
    return [list(rng.normal(math.log1p(gain), noise, rounds)) for _ in range(count)]


@pytest.mark.parametrize(
    "looks", [(1,), (1, 2), (1, 2, 4, 8), (1, 2, 4, 8, 16, 24), (1, 2, 4, 8, 16, 24, 32)]
)
def test_levels_of_all_looks_add_up_to_the_error_rate(looks):
    """The union bound spends exactly what was stated."""
    rule = Rule(looks=looks)
    assert sum(rule.level(i) for i in range(len(looks))) == pytest.approx(rule.error_rate)


def test_clear_gain_is_enabled_after_one_round():
    """Eight prompts at +30 % end the proof at the first look."""
    decision = decide_log_ratios(prompts(0.30, 0.02, 1), 1)
    assert (decision.verdict, decision.final) == (Verdict.ENABLE, True)
    assert decision.prompts == decision.prompts_faster == 8
    assert decision.estimate.interval[0] > 1.02


def test_nothing_is_enabled_before_all_prompts_have_been_asked():
    """Those that lose may be among the rest; a loss is one at once, and the last look takes what there is."""
    gain, loss = prompts(0.30, 0.02, 1), prompts(-0.20, 0.02, 1)
    decision = decide_log_ratios(gain, 1, complete=False)
    assert (decision.verdict, decision.final) == (Verdict.UNDECIDED, False)
    assert "other prompts still to be asked" in decision.reason
    assert decide_log_ratios(loss, 1, complete=False).verdict is Verdict.DISABLE
    assert decide_log_ratios(gain, 1, Rule(looks=(1,)), complete=False).verdict is Verdict.ENABLE


def test_clear_loss_is_disabled_after_one_round():
    """Eight prompts at −20 % end the proof at the first look."""
    decision = decide_log_ratios(prompts(-0.20, 0.02, 1), 1)
    assert (decision.verdict, decision.final) == (Verdict.DISABLE, True)
    assert "−" not in decision.reason
    assert "-20" in decision.reason


def test_gain_below_the_threshold_is_disabled():
    """+1 % measured to a tenth of a per cent is not worth enabling: the interval stays below +2 %."""
    decision = decide_log_ratios(prompts(0.01, 0.001, 2), 2)
    assert (decision.verdict, decision.final) == (Verdict.DISABLE, True)


def test_small_gain_that_is_not_worth_proving_ends_undecided():
    """At +2.5 % with 1 % of noise the upper end falls below +5 % while the lower does not clear +2 %."""
    decision = decide_log_ratios(prompts(0.022, 0.015, 4), 4)
    assert (decision.verdict, decision.final) == (Verdict.UNDECIDED, True)
    assert "not worth" in decision.reason


def test_unclear_goes_on_until_the_last_look():
    """Noise of 20 % is undecided; only the last look makes that final."""
    noisy = prompts(0.03, 0.20, 24)
    early = decide_log_ratios([p[:2] for p in noisy], 2)
    assert (early.verdict, early.final) == (Verdict.UNDECIDED, False)
    last = decide_log_ratios(noisy, 24)
    assert last.final


def unlike(means: Sequence[float], noise: float, rounds: int, *, seed: int = 1) -> list[list[float]]:
    """Log-ratios of prompts that gain and lose by themselves."""
    rng = np.random.default_rng(seed)
    return [list(rng.normal(mean, noise, rounds)) for mean in means]


def test_prompts_that_differ_are_not_asked_for_ever():
    """Half of the prompts gain a quarter and half lose a sixth, with much noise: no further round can decide that."""
    values = unlike((0.22, 0.24, 0.2, 0.25, -0.16, -0.18, -0.17, -0.19), 0.08, 4)
    decision = decide_log_ratios(values, 4)
    assert (decision.verdict, decision.final) == (Verdict.UNDECIDED, True)
    assert "more rounds of these prompts would not tell" in decision.reason
    assert not decide_log_ratios([v[:2] for v in values], 2).final


# Sixteen prompts as n-grams see them: most gain nothing, some double their speed.
SKEWED = (-0.03, -0.02, -0.01, 0.0, 0.01, 0.02, 0.02, 0.03, 0.05, 0.05, 0.15, 0.2, 0.5, 0.55, 0.9, 1.0)


def test_gains_of_some_prompts_without_losses_of_others_enable():
    """Where six of sixteen prompts gain much and none loses much, repeats show that it is no noise."""
    once = decide_log_ratios(unlike(SKEWED, 0.04, 1), 2)
    assert once.verdict is Verdict.UNDECIDED
    twice = decide_log_ratios(unlike(SKEWED, 0.04, 2), 4)
    assert (twice.verdict, twice.final) == (Verdict.ENABLE, True)
    assert "on average" in twice.reason
    assert twice.estimate.center == pytest.approx(np.mean(SKEWED), abs=0.03)


def test_large_losses_of_a_few_prompts_are_not_outvoted():
    """Fourteen prompts that gain a twentieth do not make up for two that take twice as long."""
    values = unlike((0.05,) * 14 + (-0.7,) * 2, 0.005, 4)
    decision = decide_log_ratios(values, 8)
    assert decision.verdict is Verdict.DISABLE
    assert decision.estimate.center < 0.0


def test_too_few_pairs_are_projected_to_nothing():
    """One prompt, one pair of its four lost: nothing is given up, and nothing breaks."""
    decision = decide_log_ratios([[math.log(1.3)] * 3], 4)
    assert (decision.verdict, decision.final) == (Verdict.UNDECIDED, False)


def test_what_a_few_more_rounds_may_decide_is_not_given_up():
    """+6 % with 6 % of noise: the later looks' intervals would clear the threshold."""
    decision = decide_log_ratios(prompts(0.06, 0.06, 4), 4)
    assert (decision.verdict, decision.final) == (Verdict.UNDECIDED, False)


def test_few_prompts_that_carry_the_gain_do_not_enable():
    """Three of eight prompts at twice the speed: the noise interval may clear the threshold, the prompts do not."""
    values = [[math.log(2.0)] * 8] * 3 + [[-0.01 + 0.001 * k for k in range(8)]] * 5
    decision = decide_log_ratios(values, 8)
    assert (decision.verdict, decision.final) == (Verdict.UNDECIDED, True)
    assert "3 of 8 are faster" in decision.reason


def test_four_prompts_enable_only_if_all_are_faster():
    """A user's small suite reaches a verdict when its prompts agree."""
    agree = decide_log_ratios(prompts(0.3, 0.02, 4, count=4), 4)
    assert agree.verdict is Verdict.ENABLE
    differ = [*prompts(0.5, 0.02, 4, count=3), [-0.05] * 4]
    assert decide_log_ratios(differ, 4).verdict is not Verdict.ENABLE


def test_between_looks_the_look_before_counts():
    """Rounds that are no look use the level of the one before, never a larger one."""
    values = prompts(0.05, 0.03, 3)
    assert decide_log_ratios(values, 3).estimate.level == pytest.approx(0.8 * DEFAULT_RULE.level(1))


def test_nothing_measured_is_undecided():
    """No pairs, no verdict, no end."""
    decision = decide_log_ratios([], 0)
    assert (decision.verdict, decision.final, decision.estimate) == (Verdict.UNDECIDED, False, None)


def test_drafting_at_the_threshold_is_rarely_enabled():
    """Over 600 whole proofs at exactly +2 % with stalls, enables stay near the stated 1 %."""
    rng = np.random.default_rng(3)
    enabled = 0
    for _ in range(600):
        pairs = rng.normal(math.log(1.02), 0.03, (8, 24)) + np.where(
            rng.random((8, 24)) < 0.02, 0.5, 0.0
        ) * rng.choice((-1, 1), (8, 24))
        for look in DEFAULT_RULE.looks:
            decision = decide_log_ratios([list(row[:look]) for row in pairs], look)
            if decision.final:
                enabled += decision.verdict is Verdict.ENABLE
                break
    # 600 draws know a rate of 1 % to ±0.8 points (two standard errors).
    assert enabled / 600 <= 0.018
