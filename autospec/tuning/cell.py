"""What a tune tells while it works: values for whoever shows them.

One cell while it is being tuned: its prompts, its study, what is known of it so far.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from autospec.cells import Cell, PromptType
from autospec.drafting import OFF, Drafting
from autospec.measure.measurements import AS_MEASURED, Pair, Shapes
from autospec.measure.verdict import Decision
from autospec.prompts.suite import Prompt
from autospec.recommendations import Recommendation, Verdict
from autospec.tuning.study import CellStudy

__all__ = [
    "CellProgress",
    "CellRun",
    "Progress",
    "TuneStep",
    "Unwatched",
    "acceptance",
    "geometric_mean",
    "mean_log_ratio",
]


@dataclass(frozen=True, slots=True)
class CellProgress:
    """How one prompt type stands.

    Attributes:
        prompt_type: Which.
        best: Best drafting found so far, or off.
        ratio: Its speed ratio to off; ``None`` before any pair.
        pairs: Pairs behind it.
        word: ``searching``, ``proving``, ``enable``, ``disable`` or ``undecided``.
    """

    prompt_type: PromptType
    best: Drafting
    ratio: float | None
    pairs: int
    word: str


@dataclass(frozen=True, slots=True)
class TuneStep:
    """What is being done now.

    Attributes:
        phase: ``record`` (answers without drafting), ``read`` (those answers, with a draft alone), ``launch``, ``search`` or
            ``prove``.
        drafting: Which drafting; off in the first two phases.
        number: Which trial, round or draft.
        of: Of how many at most.
        done: Pairs or answers done of this step.
        todo: Pairs or answers of this step in all.
        left_s: Budget that is left, in seconds; below 0 it is exceeded by so much.
        ends_in_s: When the tune is expected to end, in seconds from now; ``None`` where only the budget is known.
    """

    phase: str
    drafting: Drafting
    number: int
    of: int
    done: int
    todo: int
    left_s: float
    ends_in_s: float | None = None


class Progress(Protocol):
    """Somebody who watches a tune."""

    def step(self, step: TuneStep) -> None:
        """A step began or moved on."""

    def standing(self, standings: tuple[CellProgress, ...]) -> None:
        """Where every prompt type stands now."""

    def tell(self, text: str) -> None:
        """One sentence worth keeping: a trial's result, a refusal, a verdict."""


class Unwatched:
    """A progress that nobody watches."""

    def step(self, step: TuneStep) -> None:
        """Nothing."""

    def standing(self, standings: tuple[CellProgress, ...]) -> None:
        """Nothing."""

    def tell(self, text: str) -> None:
        """Nothing."""


@dataclass(frozen=True, slots=True)
class Proved:
    """How far the proof of one drafting has come.

    Attributes:
        drafting: It.
        decision: Its last look.
        rounds: Complete ones.
    """

    drafting: Drafting
    decision: Decision
    rounds: int

    def to_json(self) -> dict[str, Any]:
        """For the evidence."""
        estimate = self.decision.estimate
        return {
            "drafting": self.drafting.to_json(),
            "speedup": None if estimate is None else round(estimate.ratio, 4),
            "speedup_ci": None if estimate is None else [_finite(end) for end in estimate.interval],
            "verdict": str(self.decision.verdict),
            "rounds": self.rounds,
        }


@dataclass(slots=True)
class CellRun:
    """The state of one cell in one tune. The only mutable object that search and proof share.

    Attributes:
        cell: The cell.
        study: Its Optuna study.
        tune_prompts: For the search.
        prove_prompts: For the proof; none of them is a tune prompt.
        shapes: The requests that its measured answers stand for.
        winner: The drafting to prove, once the search has chosen; `OFF` where there was nothing to try.
        runner_up: The best of another arm, to be proved where the winner gives way; `OFF` where there is none.
        shares_rate: True if the error rate is for two draftings, also where only one of them can be proved now.
        searched: True once the search is over.
        decision: The last look of the proof.
        rounds: Rounds of proof that are complete.
        pending: True if the last look is not the last word, because the other drafting is to be proved.
        other: The drafting that was proved before this one.
        trial_values: Speed ratio of every drafting tried with a value.
        off_recorded: True once the study holds its trial of off.
        news: Paths of drafts that no search of this cell could try yet.
        opened_for: Names of the drafts for which the cell is measured again although it was proven; usually none.
        stands: That proof, where it still holds: it is served until a better one is there.
    """

    cell: Cell
    study: CellStudy
    tune_prompts: tuple[Prompt, ...]
    prove_prompts: tuple[Prompt, ...]
    winner: Drafting = OFF
    runner_up: Drafting = OFF
    shares_rate: bool = False
    searched: bool = False
    decision: Decision | None = None
    rounds: int = 0
    pending: bool = False
    other: Proved | None = None
    trial_values: dict[Drafting, float] = field(default_factory=dict)
    off_recorded: bool = False
    shapes: Shapes = AS_MEASURED
    news: frozenset[str] = frozenset()
    opened_for: tuple[str, ...] = ()
    stands: Recommendation | None = None

    @property
    def prompt_type(self) -> PromptType:
        """The cell's prompt type."""
        return self.cell.prompt_type

    @property
    def best(self) -> tuple[Drafting, float] | None:
        """The best drafting of the search with its ratio."""
        if not self.trial_values:
            return None
        drafting = max(self.trial_values, key=lambda d: self.trial_values[d])
        return drafting, self.trial_values[drafting]

    @property
    def decided(self) -> bool:
        """True if the proof is over."""
        return self.decision is not None and self.decision.final and not self.pending

    @property
    def enabled(self) -> bool:
        """True if the last look enables the winner."""
        return self.decision is not None and self.decision.verdict is Verdict.ENABLE

    def turn_to(self, drafting: Drafting, *, decision: Decision | None = None, rounds: int = 0) -> None:
        """Have another drafting's proof go on; how far this one's has come is remembered."""
        self.other = None if self.decision is None else Proved(self.winner, self.decision, self.rounds)
        self.winner, self.decision, self.rounds, self.pending = drafting, decision, rounds, False

    def standing(self) -> CellProgress:
        """For whoever watches."""
        if self.decision is not None and self.decision.estimate is not None:
            word = str(self.decision.verdict) if self.decided else "proving"
            estimate = self.decision.estimate
            return CellProgress(self.prompt_type, self.winner, estimate.ratio, estimate.n, word)
        if self.searched:
            return CellProgress(
                self.prompt_type, self.winner, self.trial_values.get(self.winner), 0, "proving"
            )
        drafting, ratio = self.best or (OFF, None)
        return CellProgress(self.prompt_type, drafting, ratio, 0, "searching")


def _finite(number: float) -> float | None:
    return round(number, 4) if math.isfinite(number) else None


def mean_log_ratio(pairs: Sequence[Pair]) -> float:
    """Mean of ln(drafting ÷ off); not a number for no pairs."""
    return statistics.fmean(p.log_ratio for p in pairs) if pairs else math.nan


def geometric_mean(values: Sequence[float]) -> float:
    """Geometric mean of positive numbers; not a number for none."""
    return statistics.geometric_mean(values) if values else math.nan


def acceptance(pairs: Sequence[Pair]) -> float | None:
    """Accepted ÷ drafted over all pairs; ``None`` where nothing was drafted or the backend does not tell."""
    drafted = sum(p.drafted.drafted or 0 for p in pairs)
    accepted = sum(p.drafted.accepted or 0 for p in pairs)
    return accepted / drafted if drafted else None
