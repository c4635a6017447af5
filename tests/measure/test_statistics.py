"""The signed-rank estimate against SciPy's test, and its coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from autospec.measure.statistics import critical_rank, signed_rank_estimate


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
