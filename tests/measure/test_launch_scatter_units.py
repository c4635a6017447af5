"""The variance between launches: its fit, its interval, and the error rate of that interval."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from autospec.measure.launch_scatter import (
    LaunchScatter,
    fit_units,
    launch_half_width,
    launch_variance,
    unit_estimate,
)
from autospec.measure.log_ratios import LogRatio
from tests.measure.rows import of_rows


def test_variance_of_equal_units_falls_with_their_number():
    """Four rounds of eight pairs: two launches each, so 2 · sd² ÷ 4."""
    values = of_rows(np.zeros((8, 4)).tolist())
    assert launch_variance(values, off_sd=0.03, drafted_sd=0.03, turn_sd=0.0) == pytest.approx(
        2 * 0.03**2 / 4
    )


def test_a_launch_that_serves_two_stretches_counts_with_both():
    """Off is launched once for four rounds: its luck does not average. Stretches that share launches are one unit."""
    values = [LogRatio(str(p), "off", f"d{r}", 0.0, off_first=p % 2 == 0) for r in range(4) for p in range(8)]
    assert launch_variance(values, off_sd=0.03, drafted_sd=0.03, turn_sd=0.0) == pytest.approx(
        0.03**2 * (1 + 1 / 4)
    )
    assert fit_units(values).units == 1
    chain = [LogRatio(str(k), f"o{k // 2}", f"d{(k + 1) // 2}", 0.0, off_first=True) for k in range(4)]
    assert fit_units(chain).units == 1


def test_a_unit_of_a_single_pair_has_no_stretch():
    """One pair cannot alternate, and is no stretch of time; eight pairs in one order are one."""
    single = [LogRatio("p", "o", "d", 0.0, off_first=True)]
    assert launch_variance(single, off_sd=0.0, drafted_sd=0.0, turn_sd=0.05) == 0.0
    stretch = [LogRatio(str(p), "o", "d", 0.0, off_first=True) for p in range(8)]
    assert launch_variance(stretch, off_sd=0.0, drafted_sd=0.0, turn_sd=0.05) == pytest.approx(2 * 0.05**2)


def test_measured_scatter_counts_with_students_quantile_for_off_alone():
    """Twelve comparisons of off know 1 %: launches with drafting still count with 3 % and the normal quantile."""
    values = of_rows(np.zeros((8, 2)).tolist())
    off, drafted = stats.t.isf(0.004, 12) * 0.01, stats.norm.isf(0.004) * 0.03
    known = launch_half_width(values, 0.004, LaunchScatter(0.01, 12), assumed_sd=0.03, turn_sd=0.0)
    assert known == pytest.approx(math.hypot(off, drafted) / math.sqrt(2.0))
    unknown = launch_half_width(values, 0.004, LaunchScatter(), assumed_sd=0.03, turn_sd=0.0)
    assert unknown == pytest.approx(drafted)


def test_a_larger_measured_scatter_counts_for_both_sides():
    """Launches of off that differ by 5 % say that those with drafting differ by as much."""
    values = of_rows(np.zeros((8, 2)).tolist())
    known = launch_half_width(values, 0.004, LaunchScatter(0.05, 12), assumed_sd=0.03, turn_sd=0.0)
    assert known == pytest.approx(stats.t.isf(0.004, 12) * 0.05)


def test_fit_tells_prompts_and_units_apart():
    """Two prompts and three launches whose parts add up exactly are found again."""
    prompts, units = np.array([0.1, 0.5, 0.3]), np.array([0.02, -0.05, 0.03])
    fit = fit_units(of_rows((prompts[:, None] + units[None, :]).tolist()))
    assert fit.center == pytest.approx(prompts.mean(), abs=1e-6)
    assert fit.squares == pytest.approx(float(units @ units), abs=1e-6)
    assert (fit.units, fit.groups, fit.freedom) == (3, 1, 2)
    assert fit.standard_error == pytest.approx(math.sqrt(units @ units / 2 / 3))


def test_rounds_that_share_no_prompt_cost_a_degree_of_freedom():
    """Odd rounds ask eight prompts, even rounds eight others: four rounds have two degrees of freedom, not three."""
    values = [
        LogRatio(str(p + 8 * (r % 2)), f"o{r}", f"d{r}", 0.1 * r + 0.01 * p, off_first=True)
        for r in range(4)
        for p in range(8)
    ]
    assert (fit_units(values).groups, fit_units(values).freedom) == (2, 2)


def test_one_unit_gives_no_interval():
    """Nothing is known of the scatter of launches from one pair of them."""
    assert unit_estimate(fit_units(of_rows([[0.1], [0.2]])), 0.05) is None


def test_repeated_units_know_more():
    """The same scatter over four times the units: half the standard error, and more freedom."""
    luck = np.array([0.05, -0.02, 0.03, -0.06])
    fit = fit_units(of_rows((luck + np.random.default_rng(1).normal(0.0, 0.005, (8, 4))).tolist()))
    more = fit.repeated(4)
    assert more.freedom == 15
    assert more.standard_error == pytest.approx(math.sqrt(fit.squares * 4 / 15 / 16))
    # One unit four times is still a unit that nothing can be compared with.
    assert fit_units(of_rows([[0.1], [0.2]])).repeated(4).freedom == 0


def test_a_stall_in_every_unit_moves_the_centre_little():
    """One of eight requests of each round takes twice as long."""
    rows = np.random.default_rng(2).normal(0.05, 0.01, (8, 8))
    rows[np.arange(8), np.arange(8)] -= math.log(2.0)
    assert fit_units(of_rows(rows.tolist())).center == pytest.approx(0.05, abs=0.01)


def test_a_prompt_whose_values_are_of_two_kinds_widens_the_interval():
    """Two of four measurements of one prompt stalled: its part may be either, and the units do not tell which."""
    rows = np.random.default_rng(3).normal(0.0, 0.01, (16, 4))
    calm = fit_units(of_rows(rows.tolist()))
    rows[5, :2] += 1.0
    torn = fit_units(of_rows(rows.tolist()))
    assert torn.center - calm.center == pytest.approx(0.5 / 16, abs=0.003)
    assert torn.standard_error > 0.025
    assert calm.standard_error < 0.005


@pytest.mark.parametrize("launch_sd", [0.0, 0.01, 0.03])
def test_error_rate_holds_for_any_scatter(launch_sd):
    """Over 1500 proofs of eight rounds the lower end exceeds the truth no more often than its level."""
    rng = np.random.default_rng(4)
    misses = 0
    for _ in range(1500):
        luck = rng.normal(0.0, math.sqrt(2.0) * launch_sd, 8)
        rows = luck[None, :] + rng.normal(0.0, 0.04, (8, 8)) + rng.normal(0.0, 0.2, 8)[:, None] * 0.0
        estimate = unit_estimate(fit_units(of_rows(rows.tolist())), 0.05)
        misses += estimate.low > 0.0
    # 1500 draws know a rate of 5 % to ±1.1 points (two standard errors).
    assert misses / 1500 <= 0.061
