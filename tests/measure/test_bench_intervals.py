"""Intervals from runs that were not paired."""

from __future__ import annotations

import math
import random

import pytest
from scipy import stats

from autospec.measure.bench import SINGLE_RUN_SD, Noise, compare_runs, pooled_noise


def test_repeated_runs_give_welchs_interval():
    """The same interval as SciPy's Welch test on the log speeds."""
    off, drafted = [87.1, 87.3, 85.9], [87.5, 87.4, 86.2]
    c = compare_runs(off, drafted, pooled=None, level=0.01)
    welch = stats.ttest_ind([math.log(v) for v in drafted], [math.log(v) for v in off], equal_var=False)
    expected = welch.confidence_interval(0.98)
    assert (c.low, c.high) == pytest.approx((expected.low, expected.high))


def test_equal_runs_do_not_prove_that_nothing_scatters():
    """Rounded speeds that happen to be equal leave an interval that is not empty."""
    c = compare_runs([10.0, 10.0], [10.1, 10.1], pooled=None, level=0.01)
    assert c.low < c.center < c.high


def test_a_single_run_is_reckoned_with_the_floor():
    """The record's replicates are quieter than any launch to launch: the floor holds, with their degrees of freedom."""
    c = compare_runs([75.5], [63.2], pooled=Noise(0.0044, 8), level=0.01)
    half = stats.t.ppf(0.99, 8) * SINGLE_RUN_SD * math.sqrt(2)
    assert (c.high - c.center) == pytest.approx(half)


def test_a_noisy_record_is_believed():
    """Replicates that scatter more than the floor widen the interval of single runs."""
    quiet, noisy = (compare_runs([75.5], [63.2], pooled=Noise(sd, 8), level=0.01) for sd in (0.01, 0.1))
    assert noisy.high > quiet.high


def test_without_any_replicate_there_is_no_interval():
    """One run of each and nothing else known: anything is possible."""
    c = compare_runs([75.5], [20.0], pooled=None, level=0.01)
    assert c.interval is None
    assert c.noise is None


def test_pooling_weighs_groups_by_their_freedom():
    """The pooled variance is the sum of squares over the degrees of freedom; single runs add none."""
    groups = [[10.0, 11.0], [20.0, 20.0, 22.0], [5.0]]
    squares = sum(stats.tvar([math.log(v) for v in g]) * (len(g) - 1) for g in groups[:2])
    noise = pooled_noise(groups)
    assert noise is not None
    assert noise.df == 3
    assert noise.sd == pytest.approx(math.sqrt(squares / 3))
    assert pooled_noise([[1.0], [2.0]]) is None


def test_the_interval_holds_as_often_as_it_says():
    """With 10 % error each way and three noisy runs each, about 80 % of intervals hold the truth."""
    dice = random.Random(7)
    held = 0
    for _ in range(1500):
        off = [10 * math.exp(dice.gauss(0, 0.03)) for _ in range(3)]
        drafted = [11 * math.exp(dice.gauss(0, 0.01)) for _ in range(3)]
        c = compare_runs(off, drafted, pooled=None, level=0.1)
        held += c.low < math.log(1.1) < c.high
    assert 0.77 < held / 1500 < 0.88
