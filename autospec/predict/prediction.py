"""Predict each drafting's speed of whole requests, with an interval, from recordings, profiles and costs.

A few answers of a prompt type show well how much the type gains, but not which of seventy n-gram sizes gains most: the largest
of seventy noisy values is mostly luck. Which sizes are good depends more on the machine's costs than on the type, so the other
types help. `shrink` pulls each type's deviations from its own mean towards those of the other types, more for fewer prompts:
partial pooling (Gelman et al., *Bayesian Data Analysis*, ch. 5; Efron and Morris, *Data analysis using Stein's estimator*,
1975). This changes only the order of the draftings. A type's gain with its best drafting stays its own, so a type that gains
nothing does not seem to gain because another type does.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import stats

from autospec.backends.protocol import Cycle
from autospec.drafting import Drafting
from autospec.measure.measurements import RequestShape
from autospec.predict.costs import CostCurve
from autospec.predict.profile import AnswerProfile, Counts, Recording, replay

__all__ = [
    "PredictedAnswer",
    "Prediction",
    "expected",
    "less_luck",
    "predict",
    "replay_drafts",
    "shrink",
    "shrunk",
]

Floats = npt.NDArray[np.float64]

# The probability outside of an interval, both ends together. It only decides what to launch first.
_LEVEL = 0.10
_COSTS_QUANTILE = statistics.NormalDist().inv_cdf(1 - _LEVEL / 2)
# Prompts of one type differ by about ten per cent in what a draft model gains. N-gram modes gain what an answer copies, and
# prompts differ much more in that. Two recorded prompts would show almost nothing of it, so this prior counts as if measured
# with so many degrees of freedom (a scaled inverse-χ² prior: Gelman et al., *Bayesian Data Analysis*, §3.3).
_PROMPT_SPREAD = 0.1
_COPIES_SPREAD = 0.3
_PRIOR_FREEDOM = 4


@dataclass(frozen=True, slots=True)
class PredictedAnswer:
    """One answer's part in predictions.

    Attributes:
        recording: The answer.
        counts: Its cycles under each of the D draftings.
        draft_prompt_ms: Time that the draft adds to the processing of the whole prompt.
        shape: The request that the answer stands for.
        draft: Path of the draft model; empty for draft-free modes.
    """

    recording: Recording
    counts: Counts
    draft_prompt_ms: float
    shape: RequestShape
    draft: str = ""


@dataclass(frozen=True, slots=True)
class Prediction:
    """The predicted effect of one drafting on one prompt type.

    Attributes:
        drafting: The drafting.
        ratio: Expected speed of whole requests ÷ speed without drafting, geometric mean over the prompts.
        low: Lower end of its 90 % interval.
        high: Upper end.
        acceptance: Accepted ÷ drafted; NaN if nothing is drafted.
        drafted: Tokens drafted in all the recorded answers.
        tokens_per_cycle: Tokens that a cycle yields on average.
        answers: Number of recorded answers behind it.
        prompts_error: Standard error of ln(ratio) by the choice of these prompts.
        costs_error: Standard error of ln(ratio) by the costs.
    """

    drafting: Drafting
    ratio: float
    low: float
    high: float
    acceptance: float
    drafted: int
    tokens_per_cycle: float
    answers: int
    prompts_error: float = 0.0
    costs_error: float = 0.0

    @property
    def high_by_costs(self) -> float:
        """The upper end of the interval if only the costs were uncertain: what a launch can show."""
        return self.ratio * math.exp(_COSTS_QUANTILE * self.costs_error)


def replay_drafts(
    profile: AnswerProfile,
    draftings: Sequence[Drafting],
    max_tokens: int,
    cycle: Cycle = Cycle.LLAMA_CPP,
    *,
    uncut: bool = False,
) -> Counts:
    """Replay draftings of one draft model: `replay` with the draftings' own numbers."""
    return replay(
        profile,
        [d.n_max or 1 for d in draftings],
        [d.p_min or 0.0 for d in draftings],
        [d.n_min or 0 for d in draftings],
        max_tokens=max_tokens,
        cycle=cycle,
        uncut=uncut,
    )


def expected(answer: PredictedAnswer, costs: CostCurve) -> tuple[Floats, Floats]:
    """The predicted effect of D draftings on the request that one answer stands for.

    Returns:
        ln(speed ÷ baseline) of the whole request, shape (D,), and its slopes by the costs' relative errors, shape (D, J + 1).
    """
    recording, counts, shape = answer.recording, answer.counts, answer.shape
    token_ms, tokens = recording.token_ms, len(recording.answer_ids)
    features = costs.features(counts.verified.astype(np.float64), counts.steps.astype(np.float64))
    # The cycles scale with the length of the request's answer ÷ the recorded one. If a cycle gives the first token, drafting
    # saves the step that this token takes without drafting.
    opening = counts.opening is not None
    answers = shape.answer_tokens / tokens if opening else (shape.answer_tokens - 1.0) / (tokens - 1.0)
    off_rise, rise = (
        shape.deeper(draft, len(recording.prompt_ids), tokens, token_ms) for draft in ("", answer.draft)
    )
    proposals = counts.verified @ np.arange(counts.verified.shape[1])
    deeper_ms = answers * (rise.pass_ms * counts.cycles + rise.token_ms * proposals)
    features = features * (answers * token_ms / costs.plain_ms)
    overhead_ms = max(0.0, recording.wall_ms - recording.prompt_ms - recording.predicted_ms)
    off_prompt_ms, prompt_ms = (
        shape.prompt_ms(recording.prompt_ms, len(recording.prompt_ids), token_ms, drafts=drafts)
        for drafts in (False, True)
    )
    computed = shape.computed_tokens(drafts=True) / len(recording.prompt_ids)
    off_ms = off_prompt_ms + (token_ms + off_rise.pass_ms) * (shape.answer_tokens - 1.0) + overhead_ms
    before_ms = max(0.0, prompt_ms - token_ms) if opening else prompt_ms
    with_ms = before_ms + overhead_ms + answer.draft_prompt_ms * computed + features.sum(axis=1) + deeper_ms
    return np.log(off_ms / with_ms), -features / with_ms[:, None]


def predict(
    draftings: Sequence[Drafting], answers: Sequence[PredictedAnswer], costs: CostCurve
) -> list[Prediction]:
    """Predict draftings that share their costs: those of one draft model, or the draft-free modes.

    The interval has two sources: prompts differ and few were recorded (Student's t over the prompts' log-ratios, with a prior
    for prompts in general), and the costs are uncertain (the curve's covariance, to first order).

    Args:
        draftings: D of them.
        answers: At least one; each with counts of the same D draftings.
        costs: The costs of this draft.
    """
    log_ratios = np.empty((len(answers), len(draftings)))
    slopes = np.zeros((len(answers), len(draftings), costs.covariance.shape[0]))
    for row, answer in enumerate(answers):
        log_ratios[row], slopes[row] = expected(answer, costs)
    mean = log_ratios.mean(axis=0)
    slope = slopes.mean(axis=0)
    of_costs = np.einsum("dj,jk,dk->d", slope, costs.covariance, slope)
    n = len(answers)
    known = log_ratios.var(axis=0, ddof=1) if n > 1 else np.zeros(mean.shape)
    freedom = _PRIOR_FREEDOM + n - 1
    copies = [any(part.mode.draft_free for part in d.parts) for d in draftings]
    usual = np.where(copies, _COPIES_SPREAD, _PROMPT_SPREAD)
    of_prompts = (_PRIOR_FREEDOM * usual**2 + (n - 1) * known) / freedom / n
    quantile = float(stats.t.ppf(1 - _LEVEL / 2, freedom))
    reach = np.sqrt(quantile**2 * of_prompts + _COSTS_QUANTILE**2 * of_costs)
    drafted = np.sum([a.counts.drafted for a in answers], axis=0)
    accepted = np.sum([a.counts.accepted for a in answers], axis=0)
    cycles = np.sum([a.counts.cycles for a in answers], axis=0)
    return [
        Prediction(
            drafting=drafting,
            ratio=math.exp(mean[d]),
            low=math.exp(mean[d] - reach[d]),
            high=math.exp(mean[d] + reach[d]),
            acceptance=float(accepted[d] / drafted[d]) if drafted[d] else math.nan,
            drafted=int(drafted[d]),
            tokens_per_cycle=float((cycles[d] + accepted[d]) / cycles[d]) if cycles[d] else math.nan,
            answers=n,
            prompts_error=math.sqrt(of_prompts[d]),
            costs_error=math.sqrt(of_costs[d]),
        )
        for d, drafting in enumerate(draftings)
    ]


# Variance between prompts of one type ÷ variance between types: the other types' pattern is worth at most this many prompts.
# Measured over twelve types of the suite; 4 and 16 work nearly as well (studies/bench/prompts_needed.py).
_TYPES_ALIKE = 8.0
# Standard deviation of ln(speed ÷ baseline) over the draftings that are worth a launch.
_GAIN_SD = 0.3


def shrunk(log_ratios: Floats, prompts: Floats, *, types_alike: float = _TYPES_ALIKE) -> Floats:
    """Each type's estimates, pulled towards the pattern of the others.

    Args:
        log_ratios: ln(speed ÷ baseline), shape (T, D): the mean over each type's prompts.
        prompts: Number of prompts behind each mean, shape (T,), at least 1.
        types_alike: Variance between prompts of one type ÷ variance between types; 0 changes nothing.

    Returns:
        Shape (T, D). The largest value of each type is unchanged, though another drafting may have it.
    """
    if prompts.size < 2 or not types_alike:
        return log_ratios
    level = log_ratios.mean(axis=1, keepdims=True)
    deviations = log_ratios - level
    drawn = np.empty_like(deviations)
    for i, own in enumerate(prompts):
        others = np.delete(prompts, i)
        pattern = np.average(np.delete(deviations, i, axis=0), axis=0, weights=others)
        # The number of types of equal weight that would be as informative (Kish's effective sample size).
        effective = others.sum() ** 2 / (others**2).sum()
        # The weight of the pattern as a prior, in prompts: types differ, and the others' mean is not known exactly.
        worth = 1.0 / ((1.0 + 1.0 / effective) / types_alike + 1.0 / others.sum())
        drawn[i] = (own * deviations[i] + worth * pattern) / (own + worth)
    best = log_ratios.max(axis=1, keepdims=True) - drawn.max(axis=1, keepdims=True)
    return np.asarray(drawn + best)


def less_luck(ratio: float, prompts_error: float) -> float:
    """A speed ratio pulled towards 1, more if its prompts disagree.

    Used to choose between draftings of different arms: otherwise an n-gram mode that copies much of one prompt in four would
    beat a draft model that makes all four faster. It is the posterior mean under a normal prior around no gain (Gelman et al.,
    *Bayesian Data Analysis*, §2.5).

    Args:
        ratio: Speed ÷ baseline.
        prompts_error: Standard error of its logarithm by the choice of prompts.
    """
    kept = _GAIN_SD**2 / (_GAIN_SD**2 + prompts_error**2)
    return math.exp(kept * math.log(ratio))


def shrink(
    predictions: Mapping[str, Mapping[Drafting, Prediction]], draftings: Sequence[Drafting]
) -> dict[str, dict[Drafting, Prediction]]:
    """Apply `shrunk` to predictions of several types, and move their intervals to the new centres.

    Args:
        predictions: Cell key → its predictions. A cell that lacks one of the draftings is unchanged.
        draftings: Those of one draft model, or the draft-free ones.
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
