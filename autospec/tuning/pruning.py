"""Early stopping: of a draft on the first answers that it reads or on its first launch, and of a trial on its first prompts.

The judgement favours the draft: it is dropped only if it would not pay even at costs well below the measured ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from autospec.drafting import Drafting
from autospec.measure.measurements import Pair
from autospec.predict.costs import CostCurve
from autospec.predict.profile import Counts, Recording
from autospec.tuning.cell import CellRun, mean_log_ratio
from autospec.tuning.space import Arm

__all__ = ["Reach", "beaten", "best_elsewhere", "gives_up", "nothing_pays", "shortest_ms"]

_Floats = npt.NDArray[np.float64]

# A cell gives up a drafting that is this much slower than its best one (off included), after one prompt and after more.
# Prompts of one type differ by some ten per cent, so one prompt must be far off.
_GIVE_UP_AFTER_ONE = math.log(1.30)
_GIVE_UP_AFTER_MORE = math.log(1.12)
# Other sizes of an n-gram mode may be faster than the launched one by this factor.
_OTHER_SIZES = 1.25

# Share of a cycle's costs beyond a plain token that is left out: timed costs are at times wrong by 20 to 60 per cent.
_COSTS_MAY_BE_LESS = 0.4
# A single answer may gain this much by luck.
_ONE_ANSWER = 0.10
# A launch is a few noisy pairs: bounds that rest on one are raised by this factor.
_MARGIN = 1.10
# Other settings' tokens per cycle.
_OTHER_N_MAX = (1, 2, 3, 4, 6, 8, 12, 16, 24)
# Chances that are considered where the server does not tell what it accepted.
_CHANCES = np.linspace(0.0, 0.85, 18)
_MOST_LIKELY_RUN = 16.0


def nothing_pays(answers: Sequence[tuple[Recording, Counts]], costs: CostCurve, threshold: float) -> bool:
    """Whether no drafting would have made these answers faster, even if drafting were 40 % cheaper than it was timed.

    And none of the answers by more than a tenth: they are of several prompt types, and a draft may pay for one type only.
    Only token generation is considered: the draft's prompt processing comes on top. Each answer comes with the replayed cycles
    of the same draftings; `threshold` is the least gain that may be enabled, as a fraction.
    """
    all_alone, all_taken = 0.0, np.zeros(1)
    for recording, counts in answers:
        taken = _cycles_ms(counts, costs, _COSTS_MAY_BE_LESS)
        alone = costs.plain_ms * max(0, len(recording.answer_ids) - 1)
        if bool((alone > (1.0 + max(threshold, _ONE_ANSWER)) * taken).any()):
            return False
        scale = recording.token_ms / costs.plain_ms
        all_alone, all_taken = all_alone + scale * alone, all_taken + scale * taken
    return not bool((all_alone > (1.0 + threshold) * all_taken).any())


def shortest_ms(recording: Recording, counts: Counts, costs: CostCurve, left_out: float = 0.0) -> float:
    """The time in which the best of some draftings (one row of `counts` each) generates a recorded answer.

    `left_out` is the share of a cycle's costs beyond a plain token that is left out.
    """
    taken = _cycles_ms(counts, costs, left_out)
    return float(taken.min()) * recording.token_ms / costs.plain_ms


def beaten(
    answers: Sequence[tuple[Recording, Counts]], costs: CostCurve, rival_ms: Mapping[str, float]
) -> bool:
    """Whether another draft generates each of these answers faster, even if this one's drafting were 40 % cheaper than timed.

    `rival_ms` has, by prompt id, the shortest time with another draft.
    """
    return all(
        rival_ms.get(r.prompt_id, math.inf) < shortest_ms(r, counts, costs, _COSTS_MAY_BE_LESS)
        for r, counts in answers
    )


def best_elsewhere(drafting: Drafting, pairs: Sequence[Pair]) -> float:
    """The best speed of generation ÷ off that another setting of the same draft may reach, judged by one launch's pairs.

    The launch gives the cost of a drafted token and the chance that one is accepted. The model: with fewer tokens in a cycle
    the cost falls in proportion, with more tokens it stays the same; and a p-min realizes a third (as logarithms) of the gain
    of one that knew every miss. Infinity if the pairs tell nothing.
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
    # The chance per token at which drafts of this length have the measured acceptance.
    runs = np.array([_run(float(a), length) for a in np.linspace(0.0, 0.99, 100)])
    chance = float(np.interp(sum(accepted) / cycles, runs, np.linspace(0.0, 0.99, 100)))
    return _MARGIN * _best(length, chance, speed)


def _cycles_ms(counts: Counts, costs: CostCurve, left_out: float) -> _Floats:
    """Shape (D,): the time of each drafting's cycles, less a share of their costs beyond a plain token."""
    verify = costs.verify_ms[: counts.verified.shape[1]]
    beyond = counts.verified @ (verify - costs.plain_ms) + counts.steps * costs.step_ms
    return np.asarray(counts.cycles * costs.plain_ms + (1.0 - left_out) * beyond)


def _best(length: int, chance: float, speed: float) -> float:
    """Speed of the best setting, if drafts of this length with this chance for each token gave this speed."""
    cycle = (1.0 + _run(chance, length)) / speed  # in plain tokens
    each = max(0.0, (cycle - 1.0) / length)
    fixed = max(
        (1.0 + _run(chance, k)) / (1.0 + each * k if k < length else max(cycle, 1.0)) for k in _OTHER_N_MAX
    )
    run = min(_MOST_LIKELY_RUN, chance / (1.0 - chance))
    knowing = (1.0 + run) / (1.0 + each * run)
    return float(max(fixed, fixed ** (2 / 3) * knowing ** (1 / 3)))


def _run(chance: float, length: int) -> float:
    """Accepted tokens of a draft, on average."""
    return sum(chance**k for k in range(1, length + 1))


class Reach:
    """The best that the arms may still reach in each cell, judged by their launches."""

    def __init__(self, threshold: float) -> None:
        self._least = 1.0 + threshold
        # Label of an arm → cell key → what another setting of it may reach there at best.
        self._best: dict[str, dict[str, float]] = {}

    def weigh(
        self,
        arm: Arm | None,
        drafting: Drafting,
        cells: Sequence[CellRun],
        pairs: Mapping[str, Sequence[Pair]],
    ) -> bool:
        """Take in one launch; True if it has ruled out a draft that might have won before.

        A launch with several modes bounds nothing: few of them are ever launched.
        """
        if arm is None or arm.beside:
            return False
        before = self.may_win(arm, cells)
        best = self._best.setdefault(arm.label, {})
        for cell in cells:
            key = cell.cell.key
            if arm.mode.draft_free:
                best[key] = max(best.get(key, 0.0), _OTHER_SIZES * cell.trial_values.get(drafting, math.inf))
            else:
                # Each launch bounds it: the least of the bounds holds.
                best[key] = min(best.get(key, math.inf), best_elsewhere(drafting, pairs.get(key, ())))
        return before and not arm.mode.draft_free and not self.may_win(arm, cells)

    def may_win(self, arm: Arm, cells: Sequence[CellRun]) -> bool:
        """Whether some setting of an arm may win somewhere."""
        best = self._best.get(arm.label, {})
        return any(
            best.get(c.cell.key, math.inf) > max(self._least, c.best[1] if c.best else 0.0) for c in cells
        )


def gives_up(cell: CellRun, pairs: Sequence[Pair]) -> str:
    """Why a cell should not finish a trial, or an empty string."""
    if not pairs:
        return ""
    best = max(1.0, cell.best[1]) if cell.best else 1.0
    behind = math.log(best) - mean_log_ratio(pairs)
    limit = _GIVE_UP_AFTER_ONE if len(pairs) == 1 else _GIVE_UP_AFTER_MORE
    if behind <= limit:
        return ""
    return f"{100 * -math.expm1(-behind):.0f} % behind the best after {len(pairs)} prompts"
