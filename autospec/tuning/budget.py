"""How long a tune may take, and what is left."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["Budget"]


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

    def part_left_s(self, share: float) -> float:
        """Seconds left of the first `share` of the whole."""
        return max(0.0, self.total_s * share - self.spent_s)
