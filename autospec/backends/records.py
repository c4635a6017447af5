"""The record of every launch on disk. With it the next start finds and ends servers that a killed autospec left.

``<state_dir>/launches/<launch_id>.json`` exists from just before a server is started until it has been stopped;
``<launch_id>.log`` beside it holds what the server printed. Every process of a launch also has the launch id in its
environment (`MARK`), so another program's process that reuses the process number is never taken for ours. Command lines and
logs may hold a key or a prompt, so only their owner can read them.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Self

import psutil

from autospec.files import replace_file

__all__ = [
    "MARK",
    "LaunchRecord",
    "ProcessRef",
    "end_processes",
    "log_path",
    "new_launch_id",
    "sweep_orphans",
]

MARK = "AUTOSPEC_LAUNCH_ID"
# Only where the kernel does not count the start from the boot: macOS stores the time of day at which a process started.
_SAME_START_S = 1.0
# For an owner the costly mistake would be to end the servers of a living autospec, so the limit is wide.
_OWNER_START_S = 60.0
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_TERM_WAIT_S = 5.0
_KILL_WAIT_S = 5.0
_LOGS_KEPT = 50


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


@dataclass(frozen=True, slots=True)
class LaunchRecord:
    """One launch.

    Attributes:
        launch_id: Unique over all launches ever made; sorts by time.
        started_at: ISO 8601, UTC.
        command: The server's command line.
        owner: The autospec process that started it.
        processes: Guard and server, once they are known.
    """

    launch_id: str
    started_at: str
    command: tuple[str, ...]
    owner: ProcessRef
    processes: tuple[ProcessRef, ...] = ()

    def write(self, state_dir: Path) -> None:
        """Write the record atomically. After a reboot it means nothing, so it need not survive one."""
        folder = state_dir / "launches"
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)  # also one that an earlier autospec made
        text = json.dumps(asdict(self), indent=1)
        replace_file(_record_path(state_dir, self.launch_id), text, mode=0o600, durable=False)

    def remove(self, state_dir: Path) -> None:
        """Delete it when all processes of the launch have ended; the log stays."""
        _record_path(state_dir, self.launch_id).unlink(missing_ok=True)


def new_launch_id() -> str:
    """The time to the second and eight random hex digits: sorts by time, never repeats."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"


def log_path(state_dir: Path, launch_id: str) -> Path:
    """The file for a launch's output."""
    return state_dir / "launches" / f"{launch_id}.log"


def sweep_orphans(state_dir: Path) -> list[str]:
    """End servers that a killed autospec left. Launches of a living autospec are not touched.

    Returns:
        One sentence for each launch with a process that still ran.
    """
    told = []
    for path in sorted((state_dir / "launches").glob("*.json")):
        record = _read(path)
        if record is None:
            path.unlink(missing_ok=True)
        elif record.owner.find(_OWNER_START_S) is None:
            ended = end_processes(record.launch_id, record.processes)
            record.remove(state_dir)
            if ended:
                told.append(
                    f"Ended {Path(record.command[0]).name} (process {', '.join(map(str, ended))}), running since "
                    f"{record.started_at}: the autospec that started it was killed."
                )
    _prune_logs(state_dir)
    return told


def end_processes(launch_id: str, known: Iterable[ProcessRef]) -> list[int]:
    """End every living process of one launch: SIGTERM, then SIGKILL.

    Args:
        launch_id: Finds processes by their environment that the record does not name.
        known: Processes that the record names.

    Returns:
        Numbers of the processes that were ended, ascending.
    """
    found = {process.pid: process for ref in known if (process := ref.find()) is not None}
    found |= {process.pid: process for process in psutil.process_iter() if _marked(process, launch_id)}
    found.pop(os.getpid(), None)
    for process in found.values():
        with suppress(psutil.Error):
            process.terminate()
    _, alive = psutil.wait_procs(list(found.values()), timeout=_TERM_WAIT_S)
    for process in alive:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(alive, timeout=_KILL_WAIT_S)
    return sorted(found)


def _marked(process: psutil.Process, launch_id: str) -> bool:
    try:
        return process.environ().get(MARK) == launch_id
    except (psutil.Error, OSError):  # another user's process, or one that just ended
        return False


def _record_path(state_dir: Path, launch_id: str) -> Path:
    return state_dir / "launches" / f"{launch_id}.json"


def _read(path: Path) -> LaunchRecord | None:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return LaunchRecord(
            launch_id=data["launch_id"],
            started_at=data["started_at"],
            command=tuple(data["command"]),
            owner=ProcessRef.from_json(data["owner"]),
            processes=tuple(ProcessRef.from_json(p) for p in data["processes"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _prune_logs(state_dir: Path) -> None:
    """Keep the newest logs; a launch that still runs keeps its own."""
    logs = sorted((state_dir / "launches").glob("*.log"))
    for log in logs[:-_LOGS_KEPT]:
        if not log.with_suffix(".json").exists():
            log.unlink(missing_ok=True)
