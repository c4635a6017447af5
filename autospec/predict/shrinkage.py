"""What a few prompts of one type say about draftings, completed by what the other types' prompts say.

A handful of answers tells well how much a type gains, and badly which of seventy n-gram sizes gains most: the largest of
seventy noisy figures is the luckiest. Which sizes are good depends more on the machine's costs than on the type, so that the
other types know something of it. Each type's deviations from its own mean are drawn towards the other types', the more so the
fewer prompts speak: partial pooling (Gelman et al., *Bayesian Data Analysis*, ch. 5; Efron and Morris, *Data analysis using
Stein's estimator*, 1975). Drawn is only which drafting is better than which: how much its best one gains over off, a type says
for itself, so that one that gains nothing does not look as if it did because another gains greatly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from autospec.drafting import Drafting
from autospec.predict.prediction import Prediction

__all__ = ["less_luck", "shrink", "shrunk"]

Floats = npt.NDArray[np.float64]

# How much types differ, as the variance of prompts of one type ÷ that of types: a type's own deviation from the others is
# worth so many prompts. Seen over twelve types of the suite; 4 and 16 do nearly as well (studies/bench/prompts_needed.py).
_TYPES_ALIKE = 8.0
# How much the draftings differ that are worth a launch, as a standard deviation of ln(drafting ÷ off).
_GAIN_SD = 0.3


def shrunk(log_ratios: Floats, prompts: Floats, *, types_alike: float = _TYPES_ALIKE) -> Floats:
    """Each type's estimates, drawn towards the pattern of the others.

    Args:
        log_ratios: ln(drafting ÷ off), shape (T, D): the mean over each type's prompts.
        prompts: How many prompts each mean is of, shape (T,), at least 1.
        types_alike: Variance of prompts of one type ÷ variance of types; 0 leaves everything as it is.

    Returns:
        Shape (T, D). The largest of a type's figures is what it was, of whichever drafting.
    """
    if prompts.size < 2 or not types_alike:
        return log_ratios
    level = log_ratios.mean(axis=1, keepdims=True)
    deviations = log_ratios - level
    drawn = np.empty_like(deviations)
    for i, own in enumerate(prompts):
        others = np.delete(prompts, i)
        pattern = np.average(np.delete(deviations, i, axis=0), axis=0, weights=others)
        # So many types of equal weight would know as much (Kish's effective sample size).
        effective = others.sum() ** 2 / (others**2).sum()
        # The pattern as a prior for this type, in prompts: types differ, and the others' mean is not known exactly.
        worth = 1.0 / ((1.0 + 1.0 / effective) / types_alike + 1.0 / others.sum())
        drawn[i] = (own * deviations[i] + worth * pattern) / (own + worth)
    best = log_ratios.max(axis=1, keepdims=True) - drawn.max(axis=1, keepdims=True)
    return np.asarray(drawn + best)


def less_luck(ratio: float, prompts_error: float) -> float:
    """A speed ratio drawn towards 1, the more so the less its prompts agree.

    To choose between draftings of different arms: an n-gram mode that copies much of one prompt in four would else beat a draft
    model that makes all of them faster. The mean of the posterior distribution under a normal prior around no gain (Gelman et
    al., *Bayesian Data Analysis*, §2.5).

    Args:
        ratio: Drafting ÷ off.
        prompts_error: Standard error of its logarithm by the choice of prompts.
    """
    kept = _GAIN_SD**2 / (_GAIN_SD**2 + prompts_error**2)
    return math.exp(kept * math.log(ratio))


def shrink(
    predictions: Mapping[str, Mapping[Drafting, Prediction]], draftings: Sequence[Drafting]
) -> dict[str, dict[Drafting, Prediction]]:
    """Predictions of several types for draftings that share their costs, each with its interval moved to the new centre.

    Args:
        predictions: Cell key → its predictions. A cell that lacks one of the draftings stays as it is.
        draftings: One draft model's, or those that need none.
    """
    whole = [key for key, own in predictions.items() if all(d in own for d in draftings)]
    found = {key: dict(own) for key, own in predictions.items()}
    if len(whole) < 2 or not draftings:
        return found
    ratios = np.log([[predictions[key][d].ratio for d in draftings] for key in whole])
    prompts = np.array([predictions[key][draftings[0]].answers for key in whole], dtype=np.float64)
    for key, moves in zip(whole, shrunk(ratios, prompts) - ratios, strict=True):
        for drafting, move in zip(draftings, moves, strict=True):
            found[key][drafting] = _moved(predictions[key][drafting], math.exp(move))
    return found


def _moved(p: Prediction, factor: float) -> Prediction:
    return replace(p, ratio=p.ratio * factor, low=p.low * factor, high=p.high * factor)
