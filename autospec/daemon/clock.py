"""Time, in one place: tests inject their own."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import date, datetime

__all__ = ["Clock", "JumpWatch"]


class Clock:
    """The system's clocks."""

    def monotonic(self) -> float:
        """Seconds that only go forward; on Linux they stand still while the machine sleeps."""
        return time.monotonic()

    def wall(self) -> float:
        """Seconds since the epoch, as somebody may set them."""
        return time.time()

    def today(self) -> date:
        """The local day."""
        return datetime.fromtimestamp(self.wall()).astimezone().date()

    def minute_of_day(self) -> int:
        """The local time, 0…1439."""
        local = datetime.fromtimestamp(self.wall()).astimezone()
        return 60 * local.hour + local.minute


@dataclass(slots=True)
class JumpWatch:
    """Notices when the two clocks part: the machine slept, or somebody set the time.

    Attributes:
        tolerance_s: What time synchronisation may correct at once.
    """

    clock: Clock
    tolerance_s: float = 5.0
    _apart_s: float | None = None

    def jumped_s(self) -> float:
        """How far the wall clock jumped since the last call; 0 for no jump worth the name."""
        apart_s = self.clock.wall() - self.clock.monotonic()
        before, self._apart_s = self._apart_s, apart_s
        jump_s = 0.0 if before is None else apart_s - before
        return jump_s if abs(jump_s) > self.tolerance_s else 0.0
