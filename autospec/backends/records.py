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
from pathlib import Path

import psutil

from autospec.files import replace_file
from autospec.hardware.processes import ProcessRef

__all__ = [
    "MARK",
    "LaunchRecord",
    "end_processes",
    "log_path",
    "new_launch_id",
    "prune_logs",
    "sweep_orphans",
]

MARK = "AUTOSPEC_LAUNCH_ID"
# For an owner the costly mistake would be to end the servers of a living autospec, so the limit is wide.
_OWNER_START_S = 60.0
_TERM_WAIT_S = 5.0
_KILL_WAIT_S = 5.0
_LOGS_KEPT = 50


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
        with suppress(OSError):  # a file system that became read-only; a later `sweep_orphans` removes it
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
    return told


def prune_logs(state_dir: Path) -> None:
    """Keep the newest logs; a launch that still runs keeps its own."""
    with suppress(OSError):  # no free file descriptor, a read-only file system: the next launch prunes
        logs = sorted((state_dir / "launches").glob("*.log"))
        for log in logs[:-_LOGS_KEPT]:
            if not log.with_suffix(".json").exists():
                log.unlink(missing_ok=True)


def end_processes(launch_id: str, known: Iterable[ProcessRef]) -> list[int]:
    """End every living process of one launch, by SIGTERM and then SIGKILL; returns their numbers, ascending.

    `known` are the processes that the record names; others of the launch are found by their environment.
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
