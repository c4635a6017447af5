"""What a tune tells while it works: values for whoever shows them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from autospec.cells import PromptType
from autospec.drafting import Drafting

__all__ = ["Progress", "Standing", "Step", "Unwatched"]


@dataclass(frozen=True, slots=True)
class Standing:
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
class Step:
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

    def step(self, step: Step) -> None:
        """A step began or moved on."""

    def standing(self, standings: tuple[Standing, ...]) -> None:
        """Where every prompt type stands now."""

    def tell(self, text: str) -> None:
        """One sentence worth keeping: a trial's result, a refusal, a verdict."""


class Unwatched:
    """A progress that nobody watches."""

    def step(self, step: Step) -> None:
        """Nothing."""

    def standing(self, standings: tuple[Standing, ...]) -> None:
        """Nothing."""

    def tell(self, text: str) -> None:
        """Nothing."""
