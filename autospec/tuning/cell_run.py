"""One cell while it is being tuned: its prompts, its study, what is known of it so far."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from autospec.cells import Cell, PromptType
from autospec.drafting import OFF, Drafting
from autospec.measure.measurements import Pair
from autospec.measure.verdict import Decision
from autospec.prompts.suite import Prompt
from autospec.tuning.optuna_study import CellStudy
from autospec.tuning.progress import Standing

__all__ = ["CellRun", "acceptance", "geometric_mean", "mean_log_ratio"]


@dataclass(slots=True)
class CellRun:
    """The state of one cell in one tune. The only mutable object that search and proof share.

    Attributes:
        cell: The cell.
        study: Its Optuna study.
        tune_prompts: For the search.
        prove_prompts: For the proof; none of them is a tune prompt.
        winner: The drafting to prove, once the search has chosen; `OFF` where there was nothing to try.
        searched: True once the search is over.
        decision: The last look of the proof.
        rounds: Rounds of proof that are complete.
        trial_values: Speed ratio of every drafting tried with a value.
        off_recorded: True once the study holds its trial of off.
    """

    cell: Cell
    study: CellStudy
    tune_prompts: tuple[Prompt, ...]
    prove_prompts: tuple[Prompt, ...]
    winner: Drafting = OFF
    searched: bool = False
    decision: Decision | None = None
    rounds: int = 0
    trial_values: dict[Drafting, float] = field(default_factory=dict)
    off_recorded: bool = False

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
        return self.decision is not None and self.decision.final

    def standing(self) -> Standing:
        """For whoever watches."""
        if self.decision is not None and self.decision.estimate is not None:
            word = str(self.decision.verdict) if self.decision.final else "proving"
            estimate = self.decision.estimate
            return Standing(self.prompt_type, self.winner, estimate.ratio, estimate.n, word)
        best = self.best
        word = "proving" if self.searched else "searching"
        if best is None:
            return Standing(self.prompt_type, OFF, None, 0, word)
        return Standing(self.prompt_type, best[0], best[1], 0, word)


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
