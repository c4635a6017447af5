"""A process that is still the same one later, and the lock of the one that measures: two would disturb each other."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, Self

import psutil

from autospec.errors import BusyError
from autospec.files import user_temp_dir

__all__ = ["ProcessRef", "holder", "lock_path", "machine_lock"]

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


def lock_path() -> Path:
    """Return the lock file: one per user of this machine, independent of AUTOSPEC_HOME.

    Two installations share the same processor. Tests move the file with ``AUTOSPEC_TEST_LOCK_DIR``.
    """
    folder = os.environ.get("AUTOSPEC_TEST_LOCK_DIR") or user_temp_dir()
    return Path(folder) / f"autospec-{os.getuid()}.lock"


@contextmanager
def machine_lock(what: str) -> Iterator[None]:
    """Hold the machine while measuring; `what` tells other processes what the holder does.

    The operating system frees the lock when the process ends.

    Raises:
        BusyError: Another process holds it; says which, since when and what it does.
    """
    from filelock import FileLock, Timeout  # noqa: PLC0415 - it loads asyncio, and the daemon at rest only asks `holder`

    path = lock_path()
    note = path.with_suffix(".json")
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise BusyError(
            f"Another autospec is measuring on this machine: {_holder(note)}.",
            "Wait until it ends, or stop it. Two at once would disturb each other's measurements.",
        ) from None
    try:
        # `since` is for people. The process is found again by its start, which no change of the clock moves.
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        me = asdict(ProcessRef.of(os.getpid()))
        note.write_text(json.dumps({**me, "what": what, "since": since}), encoding="utf-8")
        yield
    finally:
        note.unlink(missing_ok=True)
        lock.release()


def holder() -> str:
    """Return who measures on this machine now, in words; empty if nobody does. Does not touch the lock."""
    note = lock_path().with_suffix(".json")
    try:
        alive = ProcessRef.from_json(json.loads(note.read_text(encoding="utf-8"))).find() is not None
    except (OSError, ValueError, KeyError, TypeError, psutil.Error):
        return ""
    return _holder(note) if alive else ""


def _holder(note: Path) -> str:
    try:
        held = json.loads(note.read_text(encoding="utf-8"))
        return f"process {held['pid']} ({held['what']}), since {held['since']}"
    except (OSError, ValueError, KeyError):
        # It has the lock and no note: it is starting or ending.
        return "a process that is starting or ending"
