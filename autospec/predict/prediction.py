"""What every drafting is expected to do to whole requests, with an interval, from recordings, profiles and costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from autospec.backends.cycle import Cycle
from autospec.drafting import Drafting
from autospec.measure.shape import RequestShape
from autospec.predict.costs import CostCurve
from autospec.predict.profile import AnswerProfile
from autospec.predict.recording import Recording
from autospec.predict.replay import Counts, replay

__all__ = ["PredictedAnswer", "Prediction", "expected", "predict", "replay_drafts"]

Floats = npt.NDArray[np.float64]

# Both ends of an interval leave out so much together. Nothing is decided on it but what to launch first.
_LEVEL = 0.10
# Prompts of one type differ by some ten per cent in what drafting does for them. Two recorded ones alone would say
# next to nothing of that, so that this counts as if it had been seen with so many degrees of freedom (a scaled
# inverse-χ² prior: Gelman et al., *Bayesian Data Analysis*, §3.3).
_PROMPT_SPREAD = 0.1
_PRIOR_FREEDOM = 4


@dataclass(frozen=True, slots=True)
class PredictedAnswer:
    """One answer's share in predictions.

    Attributes:
        recording: The answer.
        counts: Its cycles under each of the D draftings.
        draft_prompt_ms: What the draft adds to the processing of the whole prompt.
        shape: The request that it stands for.
    """

    recording: Recording
    counts: Counts
    draft_prompt_ms: float
    shape: RequestShape


@dataclass(frozen=True, slots=True)
class Prediction:
    """What one drafting is expected to do for one prompt type.

    Attributes:
        drafting: The drafting.
        ratio: Expected speed of whole requests ÷ off, geometric mean over the prompts.
        low: Lower end of its 90 % interval.
        high: Upper end.
        acceptance: Accepted ÷ drafted; not a number where nothing is drafted.
        drafted: Tokens drafted in all the recorded answers.
        tokens_per_cycle: Tokens that a cycle yields on average.
        answers: Recorded answers that it rests on.
        prompts_error: Standard error of ln(ratio) by the choice of these prompts.
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
    """What D draftings are expected to do for the request that one answer stands for.

    Returns:
        ln(drafting ÷ off) of the whole request, shape (D,), and its slopes by the costs' relative errors, shape (D, J + 1).
    """
    recording, counts, shape = answer.recording, answer.counts, answer.shape
    token_ms, tokens = recording.token_ms, len(recording.answer_ids)
    features = costs.features(counts.verified.astype(np.float64), counts.steps.astype(np.float64))
    # Cycles as many times as the request's answer is longer than the recorded one. Where the first token comes from a cycle,
    # it is one of theirs, and drafting spares the step of its own that it takes with drafting off.
    opening = counts.opening is not None
    answers = shape.answer_tokens / tokens if opening else (shape.answer_tokens - 1.0) / (tokens - 1.0)
    features = features * (answers * token_ms / costs.plain_ms)
    overhead_ms = max(0.0, recording.wall_ms - recording.prompt_ms - recording.predicted_ms)
    prompt_ms = shape.prompt_ms(recording.prompt_ms, len(recording.prompt_ids), token_ms)
    computed = shape.prompt_tokens / len(recording.prompt_ids)
    off_ms = prompt_ms + token_ms * (shape.answer_tokens - 1.0) + overhead_ms
    before_ms = max(0.0, prompt_ms - token_ms) if opening else prompt_ms
    with_ms = before_ms + overhead_ms + answer.draft_prompt_ms * computed + features.sum(axis=1)
    return np.log(off_ms / with_ms), -features / with_ms[:, None]


def predict(
    draftings: Sequence[Drafting], answers: Sequence[PredictedAnswer], costs: CostCurve
) -> list[Prediction]:
    """Predict draftings that share their costs: one draft model, or the draft-free modes.

    The interval adds two sources: prompts differ, and few were recorded (Student's t over the prompts' log-ratios, with
    what is known of prompts in general); costs are known so well and no better (the curve's covariance, to first order).

    Args:
        draftings: D of them.
        answers: At least one; each with counts of the same D draftings.
        costs: Of this draft.
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
    of_prompts = (_PRIOR_FREEDOM * _PROMPT_SPREAD**2 + (n - 1) * known) / freedom / n
    quantile = float(stats.t.ppf(1 - _LEVEL / 2, freedom))
    normal = float(stats.norm.ppf(1 - _LEVEL / 2))
    reach = np.sqrt(quantile**2 * of_prompts + normal**2 * of_costs)
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
        )
        for d, drafting in enumerate(draftings)
    ]
