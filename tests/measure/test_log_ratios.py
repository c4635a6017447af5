"""Predictions as a control variate: no bias if they are wrong, less variance if they are right."""

from __future__ import annotations

import numpy as np
import pytest

from autospec.measure.log_ratios import LogRatio, control


def asked(values: np.ndarray) -> list[LogRatio]:
    """One pair for each prompt."""
    return [LogRatio(str(p), "o", "d", float(v)) for p, v in enumerate(values)]


def test_exact_prediction_leaves_no_difference_between_prompts():
    """Eight of sixteen prompts are measured exactly as predicted: every corrected value is the mean of all sixteen."""
    truth = np.random.default_rng(1).normal(0.3, 0.4, 16)
    found = control(asked(truth[:8]), {str(p): float(v) for p, v in enumerate(truth)})
    assert [v.value for v in found.values] == pytest.approx([truth.mean()] * 8)
    assert found.recorded == 16
    assert found.weight == pytest.approx(1.0)
    assert found.spread_variance == pytest.approx(truth.var(ddof=1) / 16)


def test_without_predictions_of_all_measured_prompts_nothing_changes():
    """A prompt that was measured and not predicted cannot be corrected."""
    values = asked(np.linspace(0.0, 0.7, 8))
    found = control(values, {str(p): 0.1 * p for p in range(7)})
    assert (found.values, found.recorded, found.weight) == (tuple(values), 0, 0.0)


def test_opposite_prediction_is_not_used():
    """A prediction that says the contrary of what is measured gets the weight 0."""
    values = asked(np.linspace(0.0, 0.7, 8))
    assert control(values, {str(p): -0.1 * p for p in range(16)}).recorded == 0


def test_few_prompts_are_not_corrected():
    """Five prompts say too little of the weight."""
    values = asked(np.linspace(0.0, 0.4, 5))
    assert control(values, {str(p): 0.1 * p for p in range(16)}).recorded == 0


@pytest.mark.parametrize("quality", ["right", "a fifth too large", "useless", "biased"])
def test_mean_stays_unbiased_however_wrong_the_prediction_is(quality):
    """Over 3000 samples of eight prompts of sixteen, the mean of the corrected values is the mean of all."""
    rng = np.random.default_rng(3)
    errors, plain = [], []
    for _ in range(3000):
        truth = rng.normal(0.2, 0.3, 16)
        noise = rng.normal(0.0, 0.03, 16)
        foreseen = {
            "right": truth + noise,
            "a fifth too large": 1.2 * truth + noise,
            "useless": rng.normal(0.2, 0.3, 16),
            "biased": truth + 0.5 + noise,
        }[quality]
        order = rng.permutation(16)
        measured = [LogRatio(str(p), "o", "d", float(truth[p])) for p in order[:8]]
        found = control(measured, {str(p): float(foreseen[p]) for p in range(16)})
        errors.append(np.mean([v.value for v in found.values]) - truth.mean())
        plain.append(truth[order[:8]].mean() - truth.mean())
    assert np.mean(errors) == pytest.approx(0.0, abs=4 * np.std(plain) / np.sqrt(3000))
    if quality == "useless":
        # It costs next to nothing, 8 % of the spread at most,
        assert np.std(errors) <= 1.08 * np.std(plain)
    else:
        # and a useful one takes most of it.
        assert np.std(errors) <= 0.4 * np.std(plain)
