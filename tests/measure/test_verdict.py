"""The sequential verdict: levels, each answer, and its error rate."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from autospec.measure.launch_scatter import LaunchScatter
from autospec.measure.log_ratios import LogRatio
from autospec.measure.verdict import DEFAULT_RULE, Decision, Rule, decide
from autospec.recommendations import Verdict
from tests.measure.rows import of_rows

# Launches of a machine that is known to start every server alike.
ALIKE = LaunchScatter(sd=0.001, freedom=20)


def decide_rows(
    rows: Sequence[Sequence[float]], rounds: int, rule: Rule = DEFAULT_RULE, *, complete: bool = True
) -> Decision:
    """Decide on a table of prompts and rounds, on a machine whose launches do not differ."""
    return decide(of_rows(rows), rounds, rule, complete=complete, scatter=ALIKE)


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
    decision = decide_rows(prompts(0.30, 0.02, 1), 1)
    assert (decision.verdict, decision.final) == (Verdict.ENABLE, True)
    assert decision.prompts == 8
    assert decision.estimate.interval[0] > 1.02


def test_nothing_is_enabled_before_all_prompts_have_been_asked():
    """Those that lose may be among the rest; a loss is one at once, and the last look takes what there is."""
    gain, loss = prompts(0.12, 0.02, 1), prompts(-0.20, 0.02, 1)
    decision = decide_rows(gain, 1, complete=False)
    assert (decision.verdict, decision.final) == (Verdict.UNDECIDED, False)
    assert "other prompts have not been asked yet" in decision.reason
    assert decide_rows(loss, 1, complete=False).verdict is Verdict.DISABLE
    assert decide_rows(gain, 1, Rule(looks=(1,)), complete=False).verdict is Verdict.ENABLE


def test_clear_loss_is_disabled_after_one_round():
    """Eight prompts at −20 % end the proof at the first look."""
    decision = decide_rows(prompts(-0.20, 0.02, 1), 1)
    assert (decision.verdict, decision.final) == (Verdict.DISABLE, True)
    assert "−" not in decision.reason
    assert "-19.4 %" in decision.reason


def test_gain_below_the_threshold_is_disabled():
    """+1 % measured to a tenth of a per cent is not worth enabling: the rounds' own interval stays below +2 %."""
    assert not decide_rows(prompts(0.01, 0.001, 2), 2).final  # two launches with drafting may both be slow
    decision = decide_rows(prompts(0.01, 0.001, 8), 8)
    assert (decision.verdict, decision.final) == (Verdict.DISABLE, True)


def test_small_gain_that_is_not_worth_proving_ends_undecided():
    """At +2.5 % with 1 % of noise the upper end falls below +5 % while the lower does not clear +2 %."""
    decision = decide_rows(prompts(0.022, 0.015, 8), 8)
    assert (decision.verdict, decision.final) == (Verdict.UNDECIDED, True)
    assert "not worth" in decision.reason


def test_unclear_goes_on_until_the_last_look():
    """Noise of 20 % is undecided; only the last look makes that final."""
    noisy = prompts(0.03, 0.20, 24)
    early = decide_rows([p[:2] for p in noisy], 2)
    assert (early.verdict, early.final) == (Verdict.UNDECIDED, False)
    last = decide_rows(noisy, 24)
    assert last.final


def unlike(means: Sequence[float], noise: float, rounds: int, *, seed: int = 1) -> list[list[float]]:
    """Log-ratios of prompts that gain and lose by themselves."""
    rng = np.random.default_rng(seed)
    return [list(rng.normal(mean, noise, rounds)) for mean in means]


def test_proof_ends_where_no_later_look_could_decide():
    """Half of the prompts gain a quarter, half lose a sixth, and the mean is at the threshold: 24 rounds tell no more."""
    drawn = unlike((0.22, 0.24, 0.2, 0.25, -0.16, -0.18, -0.17, -0.19), 0.16, 8)
    values = np.array(drawn) - np.mean(drawn) + math.log(1.02)
    decision = decide_rows(values, 8)
    assert (decision.verdict, decision.final) == (Verdict.UNDECIDED, True)
    assert "more rounds of these prompts would not decide it" in decision.reason
    assert not decide_rows([list(v[:2]) for v in values], 2).final


# Sixteen prompts as n-grams see them: most gain nothing, some double their speed.
def test_a_large_gain_is_enabled_before_all_prompts_have_been_asked():
    """It would outweigh prompts that lose a fifth, a third of all; one slower prompt, or too few prompts, say that it may not."""
    assert DEFAULT_RULE.large_gain == pytest.approx(math.log(1.152), abs=0.002)
    gain = prompts(0.30, 0.02, 1)
    decision = decide_rows(gain, 1, complete=False)
    assert (decision.verdict, decision.final) == (Verdict.ENABLE, True)
    assert decide_rows([*gain[:7], [-0.01]], 1, complete=False).verdict is Verdict.UNDECIDED
    assert decide_rows(gain[:7], 1, complete=False).verdict is Verdict.UNDECIDED


def test_a_large_gain_of_most_prompts_rarely_hides_many_slower_ones():
    """Six of sixteen prompts lose a quarter and the mean is at no gain: a round of eight seldom asks none of them."""
    rng = np.random.default_rng(3)
    losers = [math.log(0.75)] * 6
    truth = np.array([*losers, *[-sum(losers) / 10] * 10])
    enabled = 0
    for _ in range(1000):
        asked = rng.permutation(truth)[:8] + rng.normal(0.0, 0.02, 8)
        enabled += decide_rows([[v] for v in asked], 1, complete=False).verdict is Verdict.ENABLE
    assert enabled / 1000 <= 0.01


SKEWED = (-0.03, -0.02, -0.01, 0.0, 0.01, 0.02, 0.02, 0.03, 0.05, 0.05, 0.15, 0.2, 0.5, 0.55, 0.9, 1.0)


def test_gains_of_some_prompts_without_losses_of_others_enable():
    """Where six of sixteen prompts gain much and none loses much, repeats show that it is no noise."""
    once = decide_rows(unlike(SKEWED, 0.04, 1), 2)
    assert once.verdict is Verdict.UNDECIDED
    twice = decide_rows(unlike(SKEWED, 0.04, 2), 4)
    assert (twice.verdict, twice.final) == (Verdict.ENABLE, True)
    assert "on average" in twice.reason
    assert twice.estimate.center == pytest.approx(np.mean(SKEWED), abs=0.03)


def test_large_losses_of_a_few_prompts_are_not_outvoted():
    """Fourteen prompts that gain a twentieth do not make up for two that take twice as long."""
    values = unlike((0.05,) * 14 + (-0.7,) * 2, 0.005, 4)
    decision = decide_rows(values, 8)
    assert decision.verdict is Verdict.DISABLE
    assert decision.estimate.center < 0.0


def test_too_few_pairs_are_projected_to_nothing():
    """One prompt, one pair of its four lost: nothing is given up, and nothing breaks."""
    decision = decide_rows([[math.log(1.3)] * 3], 4)
    assert (decision.verdict, decision.final) == (Verdict.UNDECIDED, False)


def test_what_a_few_more_rounds_may_decide_is_not_given_up():
    """+6 % with 6 % of noise: the later looks' intervals would clear the threshold."""
    decision = decide_rows(prompts(0.06, 0.06, 4), 4)
    assert (decision.verdict, decision.final) == (Verdict.UNDECIDED, False)


def test_few_prompts_that_carry_the_gain_do_not_enable():
    """Three of eight prompts at twice the speed: the noise interval may clear the threshold, the prompts do not."""
    values = [[math.log(2.0)] * 8] * 3 + [[-0.01 + 0.001 * k for k in range(8)]] * 5
    decision = decide_rows(values, 8)
    assert (decision.verdict, decision.final) == (Verdict.UNDECIDED, True)
    assert "3 of 8 are faster" in decision.reason


def test_four_prompts_enable_only_if_all_are_faster():
    """A user's small suite reaches a verdict when its prompts agree."""
    agree = decide_rows(prompts(0.3, 0.02, 4, count=4), 4)
    assert agree.verdict is Verdict.ENABLE
    differ = [*prompts(0.5, 0.02, 4, count=3), [-0.05] * 4]
    assert decide_rows(differ, 4).verdict is not Verdict.ENABLE


def test_between_looks_the_look_before_counts():
    """Rounds that are no look use the level of the one before, never a larger one."""
    values = prompts(0.05, 0.03, 3)
    assert decide_rows(values, 3).estimate.level == pytest.approx(0.85 * DEFAULT_RULE.level(1))


def test_nothing_measured_is_undecided():
    """No pairs, no verdict, no end."""
    decision = decide_rows([], 0)
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
            decision = decide_rows([list(row[:look]) for row in pairs], look)
            if decision.final:
                enabled += decision.verdict is Verdict.ENABLE
                break
    # 600 draws know a rate of 1 % to ±0.8 points (two standard errors).
    assert enabled / 600 <= 0.018


def test_unknown_launches_are_taken_to_differ():
    """+12 % on eight prompts decides where launches are known to be alike, and not where nothing is known of them."""
    rows = prompts(0.12, 0.005, 1)
    assert decide(of_rows(rows), 1, scatter=ALIKE).verdict is Verdict.ENABLE
    unknown = decide(of_rows(rows), 1)
    assert (unknown.verdict, unknown.final) == (Verdict.UNDECIDED, False)
    assert unknown.scatter.assumed
    # 2.65 standard errors (0.4 %) of two launches of 3 % each.
    assert math.log(unknown.estimate.ratio / unknown.estimate.interval[0]) == pytest.approx(0.1125, abs=0.01)


def test_few_comparisons_of_launches_do_not_replace_the_assumption():
    """Five comparisons that happened to agree are no knowledge of launches."""
    rows = prompts(0.12, 0.005, 1)
    assert decide(of_rows(rows), 1, scatter=LaunchScatter(sd=0.0, freedom=5)).verdict is Verdict.UNDECIDED


def test_luck_of_one_pair_of_launches_does_not_enable():
    """All requests of one lucky launch gain 8 %; rounds on other launches show that nothing gains."""
    luck = (0.08, -0.07, 0.09, -0.08)
    rows = [[x + 0.001 * p for x in luck] for p in range(8)]
    assert decide(of_rows([r[:1] for r in rows]), 1).verdict is Verdict.UNDECIDED
    assert decide(of_rows(rows), 4).verdict is Verdict.UNDECIDED


def test_many_launches_decide_a_small_gain_without_any_assumption():
    """+5 % over sixteen rounds is proven by the rounds' own scatter, though each launch might differ by 3 %."""
    decision = decide(of_rows(prompts(0.05, 0.03, 16)), 16)
    assert decision.verdict is Verdict.ENABLE
    assert decision.units == 16


def test_nothing_is_final_before_both_orders_have_run():
    """Eight pairs whose drafting always came second may be a machine that warms up."""
    for gain, verdict in ((0.5, Verdict.ENABLE), (-0.5, Verdict.DISABLE)):
        one_order = [
            LogRatio(str(p), "o1", "d1", math.log1p(gain) + 0.001 * p, off_first=True) for p in range(8)
        ]
        decision = decide(one_order, 1, scatter=ALIKE)
        assert (decision.verdict, decision.final) == (Verdict.UNDECIDED, False)
        assert "one order" in decision.reason
        both = [*one_order, *(LogRatio(v.prompt, "o2", "d2", v.value, off_first=False) for v in one_order)]
        assert decide(both, 2, scatter=ALIKE).verdict is verdict


def test_stretches_count_as_units_that_time_may_have_moved():
    """Halves that did not alternate carry 5 % of doubt a side: +12 % on known launches is not proven by two stretches."""

    def values(*, by_turns: bool) -> list[LogRatio]:
        return [
            LogRatio(
                str(p), f"o{r}", f"d{r}", 0.12 + 0.001 * p, off_first=r == 0 if by_turns else (p + r) % 2 == 0
            )
            for r in range(2)
            for p in range(8)
        ]

    assert decide(values(by_turns=False), 2, scatter=ALIKE).verdict is Verdict.ENABLE
    assert decide(values(by_turns=True), 2, scatter=ALIKE).verdict is Verdict.UNDECIDED


def test_predicted_prompts_speak_for_those_that_were_not_asked():
    """Eight of sixteen prompts are asked; the prediction of the other eight lets the verdict stand, and holds it back."""
    asked = prompts(0.12, 0.02, 1)
    gains = {str(p): math.log(1.12) + 0.01 * (-1) ** p for p in range(16)}
    decision = decide(of_rows(asked), 1, complete=False, predicted=gains, scatter=ALIKE)
    assert (decision.verdict, decision.final) == (
        Verdict.UNDECIDED,
        False,
    )  # a useless prediction changes nothing
    known = {str(p): row[0] for p, row in enumerate(asked)} | {str(p): 0.11 for p in range(8, 16)}
    decision = decide(of_rows(asked), 1, complete=False, predicted=known, scatter=ALIKE)
    assert (decision.verdict, decision.recorded) == (Verdict.ENABLE, 16)
    losers = known | {str(p): -0.9 for p in range(8, 16)}
    decision = decide(of_rows(asked), 1, complete=False, predicted=losers, scatter=ALIKE)
    assert decision.verdict is not Verdict.ENABLE


@pytest.mark.parametrize("launch_sd", [0.0, 0.02])
def test_launches_that_differ_rarely_enable_at_the_threshold(launch_sd):
    """Over 400 whole proofs at exactly +2 %, whatever the launches' scatter, enables stay within the stated 1 %."""
    rng = np.random.default_rng(11)
    enabled = 0
    for _ in range(400):
        luck = rng.normal(0.0, math.sqrt(2.0) * launch_sd, 24)
        rows = math.log(1.02) + luck + rng.normal(0.0, 0.04, (8, 24))
        for look in DEFAULT_RULE.looks:
            decision = decide(of_rows([list(row[:look]) for row in rows]), look)
            if decision.final:
                enabled += decision.verdict is Verdict.ENABLE
                break
    # 400 draws know a rate of 1 % to ±1.0 points (two standard errors).
    assert enabled / 400 <= 0.02


def test_launches_with_drafting_that_differ_more_than_those_of_off_rarely_enable():
    """Launches of off are known to differ by 0.2 %, those with drafting differ by 2 %: at exactly +2 %, enables stay within 1 %."""
    rng = np.random.default_rng(12)
    enabled = 0
    for _ in range(300):
        luck = rng.normal(0.0, 0.02, 24)
        rows = math.log(1.02) + luck + rng.normal(0.0, 0.014, (8, 24))
        for look in DEFAULT_RULE.looks:
            decision = decide(
                of_rows([list(row[:look]) for row in rows]), look, scatter=LaunchScatter(0.002, 12)
            )
            if decision.final:
                enabled += decision.verdict is Verdict.ENABLE
                break
    # 300 draws know a rate of 1 % to ±1.1 points (two standard errors).
    assert enabled / 300 <= 0.021
