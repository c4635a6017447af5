"""Drafts that are dropped early: on the first answers that they read, or on the first launch that they slowed down.

Both decisions are optimistic: a draft is dropped only where costs well below those that were seen would not make it pay.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from autospec.drafting import Drafting
from autospec.measure.measurements import Pair
from autospec.predict.costs import CostCurve
from autospec.predict.recording import Recording
from autospec.predict.replay import Counts

__all__ = ["best_elsewhere", "nothing_pays"]

# Of what a cycle costs beyond a plain token, so much is left out: timed costs are off by 20 to 60 per cent at times.
_COSTS_MAY_BE_LESS = 0.4
# A single answer may gain so much by luck.
_ONE_ANSWER = 0.10
# One launch is a few noisy pairs.
_MARGIN = 1.10
# Tokens to propose in a cycle that another setting might have.
_OTHER_N_MAX = (1, 2, 3, 4, 6, 8, 12, 16, 24)
# Chances that are considered where the server does not tell what it accepted.
_CHANCES = np.linspace(0.0, 0.85, 18)
_MOST_LIKELY_RUN = 16.0


def nothing_pays(answers: Sequence[tuple[Recording, Counts]], costs: CostCurve, threshold: float) -> bool:
    """Whether no drafting would have made these answers faster, were drafting 40 % cheaper than it was timed.

    Nor any of them by more than a tenth: they are of several prompt types, and one may serve where the others do not.
    Generation alone is looked at: what the draft takes for the prompt comes on top.

    Args:
        answers: Recorded answers, each with the replayed cycles of the same draftings.
        costs: Of this draft, as timed.
        threshold: Least gain that may be enabled, as a fraction.
    """
    all_alone, all_taken = 0.0, np.zeros(1)
    for recording, counts in answers:
        verify = costs.verify_ms[: counts.verified.shape[1]]
        beyond = counts.verified @ (verify - costs.plain_ms) + counts.steps * costs.step_ms
        taken = counts.cycles * costs.plain_ms + (1.0 - _COSTS_MAY_BE_LESS) * beyond
        alone = costs.plain_ms * max(0, len(recording.answer_ids) - 1)
        if bool((alone > (1.0 + max(threshold, _ONE_ANSWER)) * taken).any()):
            return False
        scale = recording.token_ms / costs.plain_ms
        all_alone, all_taken = all_alone + scale * alone, all_taken + scale * taken
    return not bool((all_alone > (1.0 + threshold) * all_taken).any())


def best_elsewhere(drafting: Drafting, pairs: Sequence[Pair]) -> float:
    """What another setting of the same draft may reach at best, judged by one launch: speed of generation ÷ off.

    The launch gives the cost of a drafted token and the chance that one is accepted. With fewer tokens in a cycle the cost
    is taken to fall in proportion, with more of them it is taken to stay; of what a p-min that knew every miss would
    gain, a third (as logarithms).

    Args:
        drafting: What was launched.
        pairs: Its pairs in one cell.

    Returns:
        Infinity where the pairs tell nothing.
    """
    timed = [p for p in pairs if min(p.off.predicted_tokens, p.drafted.predicted_tokens) > 1]
    plain = sum(p.off.predicted_ms / (p.off.predicted_tokens - 1) for p in timed)
    per_token = sum(p.drafted.predicted_ms / (p.drafted.predicted_tokens - 1) for p in timed)
    n_max = drafting.n_max
    if not timed or plain <= 0 or per_token <= 0 or n_max is None:
        return math.inf
    speed = plain / per_token
    drafted = [p.drafted.drafted for p in timed if p.drafted.drafted is not None]
    accepted = [p.drafted.accepted for p in timed if p.drafted.accepted is not None]
    if len(drafted) < len(timed) or len(accepted) < len(timed):
        return _MARGIN * max(_best(n_max, float(a), speed) for a in _CHANCES)
    cycles = max(1, sum(p.drafted.predicted_tokens - 1 for p in timed) - sum(accepted))
    if not sum(drafted):
        return math.inf
    length = max(1, round(sum(drafted) / cycles))
    # The chance with which drafts of this length are accepted as far as these were.
    runs = np.array([_run(float(a), length) for a in np.linspace(0.0, 0.99, 100)])
    chance = float(np.interp(sum(accepted) / cycles, runs, np.linspace(0.0, 0.99, 100)))
    return _MARGIN * _best(length, chance, speed)


def _best(length: int, chance: float, speed: float) -> float:
    """Speed of the best setting, where drafts of this length with this chance for each token gave this speed."""
    cycle = (1.0 + _run(chance, length)) / speed  # in plain tokens
    each = max(0.0, (cycle - 1.0) / length)
    fixed = max(
        (1.0 + _run(chance, k)) / (1.0 + each * k if k < length else max(cycle, 1.0)) for k in _OTHER_N_MAX
    )
    run = min(_MOST_LIKELY_RUN, chance / (1.0 - chance))
    knowing = (1.0 + run) / (1.0 + each * run)
    return float(max(fixed, fixed ** (2 / 3) * knowing ** (1 / 3)))


def _run(chance: float, length: int) -> float:
    """Tokens that are accepted of a draft, on average."""
    return sum(chance**k for k in range(1, length + 1))
