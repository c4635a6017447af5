"""A process that is still the same one later, whatever happens to the clock and to process numbers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self

import psutil

__all__ = ["ProcessRef"]

# Only where the kernel does not count the start from the boot: macOS stores the time of day at which a process started.
_SAME_START_S = 1.0
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class ProcessRef:
    """A process: its number and its start, which together are unique.

    Attributes:
        pid: The process number.
        create_time: Its start in seconds since 1970. On Linux it moves when the clock is set, because it is derived from the
            boot time.
        since_boot: Its start as the kernel counts it, with the id of the boot; empty where the kernel does not tell. No
            change of the clock moves it.
    """

    pid: int
    create_time: float
    since_boot: str = ""

    @classmethod
    def of(cls, pid: int) -> Self:
        """The process with this number now; its start is 0 if it has already ended."""
        try:
            return cls(pid, psutil.Process(pid).create_time(), _since_boot(pid))
        except psutil.Error:
            return cls(pid, 0.0)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Read what `dataclasses.asdict` made; raises KeyError, TypeError or ValueError if it is damaged."""
        return cls(int(data["pid"]), float(data["create_time"]), str(data.get("since_boot", "")))

    def find(self, tolerance_s: float = _SAME_START_S) -> psutil.Process | None:
        """The living process; ``None`` if it ended or another process has its number.

        Args:
            tolerance_s: How far `create_time` may differ where `since_boot` is not known.
        """
        try:
            process = psutil.Process(self.pid)
            alive = process.status() != psutil.STATUS_ZOMBIE
            now = _since_boot(self.pid) if self.since_boot else ""
            if now:
                same = now == self.since_boot
            else:
                same = abs(process.create_time() - self.create_time) <= tolerance_s
        except psutil.Error:
            return None
        return process if alive and same else None


def _since_boot(pid: int) -> str:
    """Boot id and start in clock ticks since the boot; empty where there is no ``/proc``."""
    try:
        # The name of the program, in parentheses, may hold spaces and parentheses itself.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return f"{_boot_id()} {int(fields[19])}"
    except (OSError, IndexError, ValueError):
        return ""


@cache
def _boot_id() -> str:
    return _BOOT_ID.read_text(encoding="ascii").strip()
