"""The cost curve: from timed batches, corrected by launches."""

from __future__ import annotations

import numpy as np
import pytest

from autospec.predict.costs import Observation, first_guess, refit

BATCHES = {1: 22.0, 2: 23.0, 5: 26.0, 9: 30.0, 17: 38.0}
DRAFT = {1: 3.0, 17: 6.0}


def guess():
    """A main model of 20 ms a token, a draft of 2 ms."""
    return first_guess(20.0, BATCHES, DRAFT, 2.0, 16)


def test_guess_agrees_with_generation_at_one_token():
    """Batches are timed with another overhead than tokens; what is known of both sets the level."""
    assert guess().verify_ms[0] == pytest.approx(20.0 + 2.0)
    assert guess().verify_ms[16] == pytest.approx((38.0 - 22.0 + 20.0) + (6.0 - 3.0 + 2.0))


def test_curve_never_falls():
    """A batch that was disturbed makes no later one look cheaper than an earlier."""
    curve = first_guess(20.0, {1: 22.0, 2: 40.0, 5: 26.0, 9: 30.0}, {}, 0.0, 8)
    assert (np.diff(curve.verify_ms) >= 0).all()


def test_curve_goes_on_straight_beyond_the_largest_batch():
    """Twice the batch, twice the slope's share."""
    curve = first_guess(10.0, {1: 10.0, 3: 12.0, 5: 14.0}, {}, 0.0, 12)
    assert curve.verify_ms[12] == pytest.approx(22.0)


def test_features_add_up_to_the_time():
    """Whatever the knots, a request's features sum to Σ verified · V + steps · S."""
    verified = np.zeros((1, 17))
    verified[0, [0, 3, 7, 16]] = [5, 2, 1, 3]
    curve = guess()
    expected = verified[0] @ curve.verify_ms + 30 * curve.step_ms
    assert curve.features(verified, np.array([30.0])).sum() == pytest.approx(expected)


def test_refit_finds_costs_that_the_guess_had_wrong():
    """Verifying is 30 % dearer and a step half as dear as guessed: twenty answers of two n_max show it."""
    random = np.random.default_rng(3)
    curve = guess()
    true_verify, true_step = curve.verify_ms * 1.3, curve.step_ms * 0.5
    seen = []
    for _ in range(20):
        verified = np.zeros(17)
        for k in random.choice([0, 2, 4, 8, 16], 12):
            verified[k] += 1
        steps = float(verified @ np.arange(17)) + random.integers(0, 40)
        ms = float(verified @ true_verify + steps * true_step) * np.exp(random.normal(0, 0.01))
        seen.append(Observation(verified, steps, 1.0, ms))
    found = refit(curve, seen)
    # Steps come with drafted tokens, so that their prices are told apart only roughly; what a draft of any length
    # costs in all is what counts. Both truths are more than two standard deviations away from what the guess allows.
    for k in (2, 4, 8, 16):
        true_ms = true_verify[k] + k * true_step
        assert found.verify_ms[k] + k * found.step_ms == pytest.approx(true_ms, rel=0.06)
    assert np.diag(found.covariance).max() < np.diag(curve.covariance).max()
    assert found.observations == 20


def test_refit_knows_what_it_has_not_seen():
    """Answers with short drafts say little of long ones: the spread there stays wide."""
    curve = guess()
    verified = np.zeros(17)
    verified[2] = 20
    ms = float(verified @ curve.verify_ms) * 1.1
    found = refit(curve, [Observation(verified, 0.0, 1.0, ms)] * 10)
    spread = np.sqrt(np.diag(found.covariance))
    at = list(found.knots)
    assert spread[at.index(2)] < 0.3 * spread[at.index(16)]


def test_refit_without_observations_is_the_guess():
    """Nothing seen, nothing changed."""
    curve = guess()
    assert refit(curve, []) is curve


def test_noisy_observations_widen_the_spread():
    """What does not fit is noise, and noise is uncertainty."""
    curve = guess()
    verified = np.zeros(17)
    verified[4] = 10
    exact = float(verified @ curve.verify_ms)
    calm = refit(curve, [Observation(verified, 0.0, 1.0, exact * f) for f in (0.99, 1.01)] * 5)
    rough = refit(curve, [Observation(verified, 0.0, 1.0, exact * f) for f in (0.7, 1.3)] * 5)
    assert rough.covariance[0, 0] > calm.covariance[0, 0]


def test_break_even_of_free_verifying_is_the_drafts_price():
    """One proposal at a tenth of a token's price breaks even at a tenth."""
    curve = first_guess(20.0, {1: 20.0, 2: 20.0}, {}, 2.0, 1)
    assert curve.break_even(1) == pytest.approx(0.1, abs=0.002)


def test_break_even_above_one_means_it_never_pays():
    """A cycle of two tokens that costs three."""
    curve = first_guess(10.0, {1: 10.0, 2: 30.0}, {}, 0.0, 1)
    assert curve.break_even(1) == pytest.approx(1.5)
