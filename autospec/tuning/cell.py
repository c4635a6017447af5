"""One cell while it is being tuned, and what a tune reports of its progress."""

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
    """The state of one prompt type.

    Attributes:
        prompt_type: The prompt type.
        best: Best drafting found so far, or off.
        ratio: Its speed ratio to off; ``None`` before any pair.
        pairs: Number of pairs that the ratio rests on.
        word: ``searching``, ``proving``, ``enable``, ``disable`` or ``undecided``.
    """

    prompt_type: PromptType
    best: Drafting
    ratio: float | None
    pairs: int
    word: str


@dataclass(frozen=True, slots=True)
class TuneStep:
    """The step that a tune is at.

    Attributes:
        phase: ``record`` (answers without drafting), ``read`` (those answers, with a draft alone), ``launch``, ``search`` or
            ``prove``.
        drafting: The drafting that is measured; off in the first two phases.
        number: Number of the trial, round or draft.
        of: The highest number that is possible.
        done: Pairs or answers of this step that are done.
        todo: Pairs or answers of this step in all.
        left_s: Budget that is left, in seconds; negative where it is exceeded.
        ends_in_s: Seconds until the tune is expected to end; ``None`` where only the budget is known.
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
    """Receives what a tune reports."""

    def step(self, step: TuneStep) -> None:
        """A step began or moved on."""

    def standing(self, standings: tuple[CellProgress, ...]) -> None:
        """The state of every prompt type."""

    def tell(self, text: str) -> None:
        """One sentence worth keeping: a trial's result, a refusal, a verdict."""


class Unwatched:
    """A progress that drops everything."""

    def step(self, step: TuneStep) -> None:
        """Nothing."""

    def standing(self, standings: tuple[CellProgress, ...]) -> None:
        """Nothing."""

    def tell(self, text: str) -> None:
        """Nothing."""


@dataclass(frozen=True, slots=True)
class Proved:
    """The state of one drafting's proof: its last look, and the number of complete rounds."""

    drafting: Drafting
    decision: Decision
    rounds: int

    def to_json(self) -> dict[str, Any]:
        """As evidence."""
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
    """The state of one cell in one tune. The only mutable object that search and proof share."""

    cell: Cell
    study: CellStudy
    tune_prompts: tuple[Prompt, ...]
    prove_prompts: tuple[Prompt, ...]  # none of them is a tune prompt
    winner: Drafting = (
        OFF  # the drafting to prove; off before the search has chosen, and where nothing could be tried
    )
    runner_up: Drafting = OFF  # the best of another arm, proved if the winner fails; off if there is none
    shares_rate: bool = (
        False  # True if the error rate is for two draftings, even where one of them can no longer be proved
    )
    searched: bool = False
    decision: Decision | None = None  # the last look of the proof
    rounds: int = 0  # complete rounds of proof
    pending: bool = False  # True if the last look does not decide, because the other drafting is proved next
    other: Proved | None = None  # the drafting that was proved before the winner
    trial_values: dict[Drafting, float] = field(default_factory=dict)  # speed ratios to off
    off_recorded: bool = False  # True once the study has its trial of off
    shapes: Shapes = AS_MEASURED  # the requests that the measured answers stand for
    news: frozenset[str] = frozenset()  # paths of drafts that no search of this cell could try yet
    opened_for: tuple[str, ...] = ()  # names of the drafts for which a proven cell is measured again
    stands: Recommendation | None = (
        None  # that proof, while it holds: it is served until there is a better one
    )

    @property
    def prompt_type(self) -> PromptType:
        """The cell's prompt type."""
        return self.cell.prompt_type

    @property
    def best(self) -> tuple[Drafting, float] | None:
        """The best drafting of the search and its speed ratio."""
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
        """Continue with the proof of another drafting; the state of this one's is kept in `other`."""
        self.other = None if self.decision is None else Proved(self.winner, self.decision, self.rounds)
        self.winner, self.decision, self.rounds, self.pending = drafting, decision, rounds, False

    def standing(self) -> CellProgress:
        """The cell's state, to be reported."""
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
    """Mean of ln(drafting ÷ off); NaN without pairs."""
    return statistics.fmean(p.log_ratio for p in pairs) if pairs else math.nan


def geometric_mean(values: Sequence[float]) -> float:
    """Geometric mean of positive numbers; NaN without numbers."""
    return statistics.geometric_mean(values) if values else math.nan


def acceptance(pairs: Sequence[Pair]) -> float | None:
    """Accepted ÷ drafted tokens of all pairs; ``None`` if nothing was drafted or the backend does not report it."""
    drafted = sum(p.drafted.drafted or 0 for p in pairs)
    accepted = sum(p.drafted.accepted or 0 for p in pairs)
    return accepted / drafted if drafted else None
