"""How long a tune may take, what is left, what things take, and what the time goes to first."""

from __future__ import annotations

import math
import statistics
import time
from collections import defaultdict, deque
from collections.abc import Callable

from autospec.drafting import OFF, Drafting
from autospec.measure.verdict import Rule

__all__ = ["Budget", "Pace", "rounds_to_decide", "worth"]

# What was begun may be finished beyond the budget within this share of it, or within this time, whichever is more.
_GRACE_SHARE = 0.05
_GRACE_S = 60.0
# Requests of one kind whose mean is what the next one is expected to take.
_RECENT = 16
# A gain that is not there, or is a loss, is worth knowing too, but little: off is what is used without a verdict.
_LEAST_GAIN = 0.01
# No measurement is so exact that prompts of a type differ by less, as a standard deviation of the log ratio.
_LEAST_SPREAD = 0.02


class Budget:
    """A stretch of time that began when it was made.

    Args:
        total_s: The whole of it.
        clock: Monotonic seconds; tests inject their own.
    """

    def __init__(self, total_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.total_s = total_s
        self._clock = clock
        self._begun = clock()

    @property
    def spent_s(self) -> float:
        """Seconds since it began."""
        return self._clock() - self._begun

    @property
    def left_s(self) -> float:
        """Seconds left, never below 0."""
        return max(0.0, self.total_s - self.spent_s)

    @property
    def grace_s(self) -> float:
        """How far beyond the budget something may end that was begun within it."""
        return max(_GRACE_SHARE * self.total_s, _GRACE_S)

    @property
    def until_end_s(self) -> float:
        """Seconds left; below 0 what the budget is exceeded by."""
        return self.total_s - self.spent_s

    def part_left_s(self, share: float) -> float:
        """Seconds left of the first `share` of the whole."""
        return max(0.0, self.total_s * share - self.spent_s)

    def allows(self, seconds: float, *, to_finish: bool = False) -> bool:
        """Whether something that takes so long may be started.

        Args:
            seconds: What it is expected to take.
            to_finish: True if it completes something that would count for nothing without it.
        """
        return seconds <= self.until_end_s + (self.grace_s if to_finish else 0.0)


class Pace:
    """What a request takes, by cell and side, as it is measured."""

    def __init__(self) -> None:
        self._took: dict[tuple[str, Drafting], deque[float]] = defaultdict(lambda: deque(maxlen=_RECENT))

    def note(self, cell_key: str, side: Drafting, seconds: float) -> None:
        """One request took so long."""
        self._took[cell_key, side].append(seconds)

    def knows(self, cell_key: str) -> bool:
        """Whether requests of this cell have been noted."""
        return any(key == cell_key for key, _ in self._took)

    def request_s(self, cell_key: str, side: Drafting) -> float:
        """What the next one is expected to take: as this cell's on this side, or as what is most like it; 0 for nothing."""
        for alike in (
            lambda key, drafting: (key, drafting) == (cell_key, side),
            lambda key, _: key == cell_key,
            lambda _, drafting: drafting == side,
            lambda _key, _drafting: True,
        ):
            found = [s for (key, drafting), took in self._took.items() if alike(key, drafting) for s in took]
            if found:
                return statistics.fmean(found)
        return 0.0

    def pair_s(self, cell_key: str, drafting: Drafting) -> float:
        """What both halves of a pair are expected to take."""
        return self.request_s(cell_key, OFF) + self.request_s(cell_key, drafting)


# See `rounds_to_decide`.
_MANY_ROUNDS = 8
_USUAL_LAUNCH_SD = 0.01


def rounds_to_decide(
    log_gain: float, spread: float, rule: Rule, *, done: int, per_round: int, above: float | None = None
) -> int:
    """After how many more rounds a proof is expected to be decided, if they show what is known so far.

    Args:
        log_gain: ln(drafting ÷ off) as known so far.
        spread: Standard deviation of it from pair to pair.
        rule: The rule of the proof.
        done: Rounds that are complete.
        per_round: Pairs of one round.
        above: What ln(drafting ÷ off) is to be told from; the rule's threshold where left out.
    """
    distance = abs(log_gain - (math.log1p(rule.threshold) if above is None else above))
    spread = max(spread, _LEAST_SPREAD)
    for look, at in enumerate(rule.looks):
        if at <= done:
            continue
        z = statistics.NormalDist().inv_cdf(1.0 - rule.level(look))
        # After many rounds their own scatter counts, which is taken for a small one here.
        launch_sd = rule.launch_sd if at < _MANY_ROUNDS else min(rule.launch_sd, _USUAL_LAUNCH_SD)
        launches = math.sqrt(2.0 / at) * launch_sd
        if z * math.hypot(spread / math.sqrt(max(1, at * per_round)), launches) < distance:
            return at - done
    return max(1, rule.looks[-1] - done)


def worth(log_gain: float, seconds: float) -> float:
    """What a proof is worth per second: a large gain that is soon decided comes first.

    Args:
        log_gain: ln(drafting ÷ off) as known so far.
        seconds: Until the decision, as expected.
    """
    gain = max(math.expm1(log_gain), _LEAST_GAIN)
    return math.inf if seconds <= 0.0 else gain / seconds
