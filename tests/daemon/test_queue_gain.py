"""The expected gain of a measurement, and its uncertainty."""

from __future__ import annotations

import math
import random
import statistics

import pytest

from autospec.daemon.queue import PRIOR_SD, expected_gain, spread, uncertainty
from autospec.recommendations import Status, Verdict
from tests.report.samples import recommendation


@pytest.mark.parametrize(("mean", "sd"), [(0.0, PRIOR_SD), (0.5, 0.1), (-0.4, 0.2)])
def test_the_closed_form_is_the_mean_over_draws(mean: float, sd: float):
    """Against a hundred thousand draws of what drafting would save."""
    rng = random.Random(1)
    drawn = statistics.fmean(max(0.0, 1.0 - math.exp(-rng.gauss(mean, sd))) for _ in range(100_000))
    assert expected_gain(mean, sd) == pytest.approx(drawn, abs=0.003)


def test_a_proof_leaves_no_uncertainty_and_ignorance_leaves_all():
    """The two ends of the scale."""
    assert uncertainty(recommendation()) == 0.0
    assert uncertainty(None) == 1.0


def test_a_stale_one_is_as_uncertain_as_what_changed_is_grave():
    """Another model file is another question; a new kernel hardly one."""
    doubts = [
        uncertainty(recommendation(status=Status.STALE, evidence={"stale_cause": cause}))
        for cause in ("model", "build", "os")
    ]
    assert doubts == sorted(doubts, reverse=True)


def test_a_search_far_from_the_threshold_is_less_uncertain_than_one_at_it():
    """A loss of half the speed needs a proof less than a gain of 2 %."""
    clear, close = (
        uncertainty(
            recommendation(
                Verdict.UNDECIDED, status=Status.PROVISIONAL, speedup=s, speedup_ci=(s * 0.9, s * 1.1)
            )
        )
        for s in (0.5, 1.02)
    )
    assert clear < close


def test_the_spread_is_the_interval_read_back():
    """A 99 % interval is 2.58 standard deviations to each side."""
    known = recommendation(speedup=1.5, speedup_ci=(1.5 / 1.2, 1.5 * 1.2), evidence={"error_rate": 0.01})
    mean, sd = spread(known)
    assert mean == pytest.approx(math.log(1.5))
    assert sd == pytest.approx(math.log(1.2) / 2.576, rel=0.01)
