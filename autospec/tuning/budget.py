"""The time budget of a tune, the time that requests take, and which proof gets the time first."""

from __future__ import annotations

import math
import statistics
import time
from collections import defaultdict, deque
from collections.abc import Callable
from typing import NamedTuple

from autospec.drafting import OFF, Drafting
from autospec.measure.verdict import Rule

__all__ = ["Budget", "Pace", "rounds_to_decide", "worth"]

# Work that has begun may exceed the budget by this share of it, or by this time, whichever is more.
_GRACE_SHARE = 0.05
_GRACE_S = 60.0
# The next request is expected to take the mean of the last 16 of its kind.
_RECENT = 16
# A line through fewer requests says little about what a longer prompt costs.
_FEW_REQUESTS = 4
# A short prompt never takes less than this share of the usual time: its answer has to be generated, too.
_LEAST_SHARE = 0.25
# To know that there is no gain, or a loss, is worth little: without a verdict, drafting stays off anyway.
_LEAST_GAIN = 0.01
# Prompts of one type never differ by less than this (standard deviation of the log ratio).
_LEAST_SPREAD = 0.02


class Budget:
    """A time budget that starts when it is created; the clock's seconds are monotonic.

    A share of it may be kept for a last step, which uses `whole`; `total_s` is without it.
    """

    def __init__(
        self, total_s: float, clock: Callable[[], float] = time.monotonic, *, kept: float = 0.0
    ) -> None:
        self.total_s = total_s * (1.0 - kept)
        self._whole_s = total_s
        self._clock = clock
        self._begun = clock()

    @property
    def whole(self) -> Budget:
        """The budget with the kept share, since the same start."""
        whole = Budget(self._whole_s, self._clock)
        whole._begun = self._begun
        return whole

    @property
    def spent_s(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._begun

    @property
    def left_s(self) -> float:
        """Seconds left, never below 0."""
        return max(0.0, self.total_s - self.spent_s)

    @property
    def grace_s(self) -> float:
        """Seconds by which work may exceed the budget if it began within it."""
        return max(_GRACE_SHARE * self.total_s, _GRACE_S)

    @property
    def until_end_s(self) -> float:
        """Seconds left; negative by how far the budget is exceeded."""
        return self.total_s - self.spent_s

    def part_left_s(self, share: float) -> float:
        """Seconds left of the first `share` of the budget."""
        return max(0.0, self.total_s * share - self.spent_s)

    def allows(self, seconds: float, *, to_finish: bool = False) -> bool:
        """Whether work that is expected to take `seconds` may start; `to_finish` is for work that completes something begun."""
        return seconds <= self.until_end_s + (self.grace_s if to_finish else 0.0)


class _Took(NamedTuple):
    seconds: float
    size: int | None


class Pace:
    """The time that requests take, by cell and side, and with the size of the prompt.

    A prompt of 1,900 tokens may take five times as long as one of 300, so the mean alone misplans a round of long prompts.
    """

    def __init__(self) -> None:
        self._took: dict[tuple[str, Drafting], deque[_Took]] = defaultdict(lambda: deque(maxlen=_RECENT))

    def note(self, cell_key: str, side: Drafting, seconds: float, size: int | None = None) -> None:
        """Record the time of one request; `size` is that of its prompt in bytes, if known."""
        self._took[cell_key, side].append(_Took(seconds, size))

    def knows(self, cell_key: str, side: Drafting) -> bool:
        """Whether requests of this cell and side have been recorded."""
        return (cell_key, side) in self._took

    def request_s(self, cell_key: str, side: Drafting, size: int | None = None) -> float:
        """Expected seconds of the next request: from this cell and side, else from the most similar requests; 0 without any.

        With the size of its prompt in bytes, the seconds per byte of all requests with the same side count, too.
        """
        for alike in (
            lambda key, drafting: (key, drafting) == (cell_key, side),
            lambda key, _: key == cell_key,
            lambda _, drafting: drafting == side,
            lambda _key, _drafting: True,
        ):
            found = [t for (key, drafting), took in self._took.items() if alike(key, drafting) for t in took]
            if found:
                usual_s = statistics.fmean(t.seconds for t in found)
                sizes = [t.size for t in found if t.size is not None]
                if size is None or not sizes:
                    return usual_s
                more_s = self._seconds_per_byte(side) * (size - statistics.fmean(sizes))
                return max(usual_s + more_s, _LEAST_SHARE * usual_s)
        return 0.0

    def pair_s(self, cell_key: str, drafting: Drafting, size: int | None = None) -> float:
        """Expected seconds of both halves of a pair."""
        return self.request_s(cell_key, OFF, size) + self.request_s(cell_key, drafting, size)

    def _seconds_per_byte(self, side: Drafting) -> float:
        """The slope of a line through the requests of this side, or of all if they are too few; never below 0."""
        for alike in (lambda drafting: drafting == side, lambda _: True):
            sized = [
                (t.size, t.seconds)
                for (_, drafting), took in self._took.items()
                if alike(drafting)
                for t in took
                if t.size is not None
            ]
            if len(sized) >= _FEW_REQUESTS and len({size for size, _ in sized}) > 1:
                return max(0.0, statistics.linear_regression(*zip(*sized, strict=True)).slope)
        return 0.0


# See `rounds_to_decide`.
_MANY_ROUNDS = 8
_USUAL_LAUNCH_SD = 0.01


def rounds_to_decide(
    log_gain: float, spread: float, rule: Rule, *, done: int, per_round: int, above: float | None = None
) -> int:
    """How many more rounds a proof is expected to need if they show what is known so far.

    `log_gain` is ln(drafting ÷ off) as known so far, `spread` its standard deviation between pairs, `done` the complete rounds,
    `per_round` the pairs of one, and `above` the ln(drafting ÷ off) to exceed (the rule's threshold if left out).
    """
    distance = abs(log_gain - (math.log1p(rule.threshold) if above is None else above))
    spread = max(spread, _LEAST_SPREAD)
    for look, at in enumerate(rule.looks):
        if at <= done:
            continue
        z = statistics.NormalDist().inv_cdf(1.0 - rule.level(look))
        # After many rounds the scatter of launches is measured, and usually smaller than the rule's assumption.
        launch_sd = rule.launch_sd if at < _MANY_ROUNDS else min(rule.launch_sd, _USUAL_LAUNCH_SD)
        launches = math.sqrt(2.0 / at) * launch_sd
        if z * math.hypot(spread / math.sqrt(max(1, at * per_round)), launches) < distance:
            return at - done
    return max(1, rule.looks[-1] - done)


def worth(log_gain: float, seconds: float) -> float:
    """The value of a proof per second: a large gain that is decided soon comes first."""
    gain = max(math.expm1(log_gain), _LEAST_GAIN)
    return math.inf if seconds <= 0.0 else gain / seconds
