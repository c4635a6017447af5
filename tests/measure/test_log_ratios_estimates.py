"""The signed-rank estimate against SciPy's test, and its coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from autospec.measure.log_ratios import (
    chance_by_signs,
    critical_rank,
    signed_rank_estimate,
    stratified_estimate,
)


@pytest.mark.parametrize(("n", "level"), [(8, 0.004), (8, 0.05), (16, 0.001), (24, 0.01), (40, 0.0025)])
def test_interval_ends_where_scipys_test_turns(n, level):
    """Just inside the lower end the exact one-sided test accepts, just below it it rejects."""
    values = np.random.default_rng(n).normal(0.05, 0.1, n)
    low = signed_rank_estimate(values, level).low
    inside = stats.wilcoxon(values - (low + 1e-9), alternative="greater", method="exact").pvalue
    outside = stats.wilcoxon(values - (low - 1e-9), alternative="greater", method="exact").pvalue
    assert outside <= level < inside


def test_eight_pairs_reach_four_in_a_thousand_and_no_less():
    """The first look's level is what eight pairs can just reach: P = 2^-8."""
    assert critical_rank(8, 0.004) == 1
    assert critical_rank(8, 0.0039) == 0
    assert critical_rank(7, 0.004) == 0


def test_too_few_pairs_leave_the_interval_open():
    """Three pairs say nothing at one per cent."""
    estimate = signed_rank_estimate([0.1, 0.2, 0.3], 0.01)
    assert (estimate.low, estimate.high) == (-math.inf, math.inf)
    assert estimate.ratio == pytest.approx(math.exp(0.2))


def test_one_stall_moves_the_centre_little():
    """A pair five times slower moves the estimate of sixteen by less than the noise's own width."""
    values = np.random.default_rng(1).normal(0.05, 0.01, 16)
    stalled = values.copy()
    stalled[3] = -1.6
    before, after = (signed_rank_estimate(v, 0.01).center for v in (values, stalled))
    assert abs(after - before) < 0.01
    assert abs(stalled.mean() - values.mean()) > 0.05


def test_one_sided_error_rate_holds():
    """Over 4000 samples the lower end exceeds the truth no more often than the level allows."""
    rng = np.random.default_rng(2)
    level = 0.05
    misses = sum(signed_rank_estimate(rng.standard_t(3, 12) * 0.03, level).low > 0.0 for _ in range(4000))
    # 4000 draws know a rate of 5 % to ±0.7 points (two standard errors).
    assert misses / 4000 <= level + 0.007


@pytest.mark.parametrize("values", [[], [math.nan], [0.1, math.inf]])
def test_rejects_what_is_no_number(values):
    """No values, and values that are not finite, are refused."""
    with pytest.raises(ValueError, match="finite"):
        signed_rank_estimate(values, 0.01)


def test_stratified_interval_of_two_prompts_is_welchs():
    """The mean of two prompts has the interval that Welch's test gives their sum."""
    one, two = (np.random.default_rng(k).normal(0.3, scale, 8) for k, scale in ((4, 0.02), (5, 0.2)))
    estimate = stratified_estimate([one, two], 0.01)
    welch = stats.ttest_ind(one, -two, equal_var=False).confidence_interval(0.98)
    assert (estimate.low, estimate.high) == pytest.approx((welch.low / 2, welch.high / 2))
    assert estimate.n == 16


def test_stratified_error_rate_holds_however_prompts_differ():
    """Over 4000 sets of eight prompts asked twice, the lower end exceeds their mean no more often than the level says."""
    rng = np.random.default_rng(5)
    level, misses = 0.05, 0
    for _ in range(4000):
        truth = rng.normal(0.0, 0.5, 8)
        estimate = stratified_estimate(list(truth[:, None] + rng.normal(0.0, 0.03, (8, 2))), level)
        misses += estimate.low > truth.mean()
    # Satterthwaite's degrees of freedom are on the safe side for two repeats; 4000 draws know a rate to ±0.7 points.
    assert 0.02 <= misses / 4000 <= level + 0.007


def test_stratified_error_rate_holds_where_some_prompts_are_noisy():
    """Fourteen quiet prompts lend two noisy ones no degrees of freedom."""
    rng = np.random.default_rng(6)
    noise = np.array([0.005] * 14 + [0.05] * 2)[:, None]
    draws = 4000
    misses = sum(
        stratified_estimate(list(rng.normal(0.0, noise, (16, 4))), 0.001).low > 0.0 for _ in range(draws)
    )
    # 4000 draws know a rate of 0.1 % to ±0.1 points; with pooled variances it was 0.7 %.
    assert misses / draws <= 0.003


def test_stratified_without_noise_is_a_point():
    """Nothing varies, nothing breaks."""
    estimate = stratified_estimate([[0.1, 0.1]] * 8, 0.01)
    assert (estimate.low, estimate.high) == pytest.approx((0.1, 0.1))


def test_stratified_weighs_prompts_alike():
    """A prompt that was asked more often counts once."""
    estimate = stratified_estimate([[0.0] * 8, [1.0], [0.0, 0.0, 0.0]], 0.05)
    assert estimate.center == pytest.approx(1 / 3)


def test_stratified_takes_no_freedom_from_prompts_that_were_asked_once():
    """Eight prompts with one residual each know the noise with eight degrees of freedom, however many others share it."""
    repeated, once = [[-0.01, 0.01]] * 8, [[0.0]] * 24
    estimate = stratified_estimate([*repeated, *once], 0.001)
    variance = 0.01**2 * 2.0
    assert estimate.high == pytest.approx(
        stats.t.isf(0.001, 8) * math.sqrt(8 * variance / 2 + 24 * variance) / 32
    )


def test_stratified_needs_repeats():
    """Sixteen prompts that were asked once tell nothing of noise."""
    assert stratified_estimate([[0.1 * k] for k in range(16)], 0.05) is None


@pytest.mark.parametrize("n", [4, 8, 12])
def test_chance_by_signs_is_scipys_permutation_test(n):
    """The same probability as SciPy's over all patterns of signs."""
    values = np.random.default_rng(n).normal(0.05, 0.1, n)
    reference = stats.permutation_test(
        (values,), np.sum, permutation_type="samples", alternative="greater", n_resamples=np.inf
    )
    assert chance_by_signs(values) == pytest.approx(reference.pvalue)


@pytest.mark.parametrize("n", [16, 17, 24, 40])
def test_a_few_large_values_are_chance_however_many_others_there_are(n):
    """Three prompts at twice the speed come up together one time in eight, also where patterns are drawn at random."""
    values = [0.7] * 3 + [-0.005] * (n - 3)
    assert chance_by_signs(values) == pytest.approx(1 / 8, abs=0.01)


def test_the_order_of_the_prompts_does_not_change_their_chance():
    """Beyond 16 values the patterns of signs are drawn, and each place has its own."""
    rng = np.random.default_rng(5)
    values = rng.normal(0.05, 0.1, 24)
    assert len({chance_by_signs(rng.permutation(values)) for _ in range(5)}) == 1


def test_chance_by_signs_of_nothing_is_certain():
    """Values that do not differ from zero are no evidence."""
    assert chance_by_signs([0.0] * 20) == 1.0
