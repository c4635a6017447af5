"""What a verdict looks at: one log-ratio for each pair, with the prompt, the two launches and the order of its halves."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from autospec.measure.measurements import Pair

__all__ = ["LogRatio", "by_prompt", "of_pairs", "prompt_medians"]


@dataclass(frozen=True, slots=True)
class LogRatio:
    """One pair as the statistics see it.

    Attributes:
        prompt: The prompt's id.
        off_launch: The launch that answered without drafting.
        drafted_launch: The launch that answered with drafting.
        value: ln(drafting ÷ off); above 0 the drafting is faster.
        off_first: True if off answered before the drafting.
    """

    prompt: str
    off_launch: str
    drafted_launch: str
    value: float
    off_first: bool = True

    @property
    def stretch(self) -> tuple[str, str]:
        """The two launches; where off and drafting run by turns, what the two ran in a row."""
        return self.off_launch, self.drafted_launch


def of_pairs(pairs: Iterable[Pair], ratio: Callable[[Pair], float]) -> list[LogRatio]:
    """The log-ratios of measured pairs, in their order.

    Args:
        pairs: Of one drafting in one cell.
        ratio: ln(drafting ÷ off) of a pair.
    """
    return [
        LogRatio(
            prompt=pair.off.prompt_id,
            off_launch=pair.off.launch_id,
            drafted_launch=pair.drafted.launch_id,
            value=ratio(pair),
            off_first=pair.off.position == 0,
        )
        for pair in pairs
    ]


def by_prompt(values: Sequence[LogRatio]) -> Mapping[str, list[float]]:
    """Prompt id → its values, in their order."""
    found: dict[str, list[float]] = defaultdict(list)
    for v in values:
        found[v.prompt].append(v.value)
    return found


def prompt_medians(values: Sequence[LogRatio]) -> list[float]:
    """The median of every prompt, in the order in which they come."""
    return [statistics.median(own) for own in by_prompt(values).values()]
