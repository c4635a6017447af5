"""What the service runs (`Definition`), what its manager is told to do, and what it answers. Pure."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

__all__ = [
    "DAEMON_ARGUMENTS",
    "KILL_AFTER_S",
    "STOP_WITHIN_S",
    "Definition",
    "ServiceOutcome",
    "ServiceState",
    "ServiceStatus",
    "ServiceStep",
    "pid_in",
]

# The arguments of autospec in the service.
DAEMON_ARGUMENTS: Final = ("daemon", "--proxy")
# Time for a graceful stop: the daemon finishes requests, discards the running measurement, ends servers (about 2 s each
# for 1 GB, measured) and writes its state.
STOP_WITHIN_S: Final = 45
# When the supervisor kills the daemon; both templates contain it.
KILL_AFTER_S: Final = 60


@dataclass(frozen=True, slots=True)
class Definition:
    """What the service runs, and how.

    Attributes:
        program: The whole command line; the program by its absolute path.
        home: The user's home folder.
        log: The file for the daemon's output if the supervisor keeps no journal.
        path: ``PATH`` for the daemon, because supervisors do not read the shell's.
        variables: More environment, name and value.
        version: Of autospec; part of the file, so an upgrade changes the file.
    """

    program: tuple[str, ...]
    home: Path
    log: Path
    path: str
    variables: tuple[tuple[str, str], ...] = ()
    version: str = ""


def pid_in(text: str) -> int | None:
    """The process id in a supervisor's output; ``None`` for 0, nothing, or another word."""
    return (int(text) or None) if re.fullmatch("[0-9]{1,10}", text) else None


@dataclass(frozen=True, slots=True)
class ServiceOutcome:
    """How a command ended: exit code (127: program missing, 124: timed out) and its output."""

    code: int
    out: str = ""
    err: str = ""


@dataclass(frozen=True, slots=True)
class ServiceStep:
    """A command that changes something or waits; `fine` exit codes are success, `again` ones are retried for `patience_s`."""

    argv: tuple[str, ...]
    fine: frozenset[int] = frozenset({0})
    again: frozenset[int] = frozenset()
    patience_s: float = 0.0


class ServiceState(StrEnum):
    """State of a service."""

    ABSENT = "absent"
    STOPPED = "stopped"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """What the supervisor reports.

    Attributes:
        state: The state.
        loaded: True if the supervisor knows the service.
        enabled: False if it would not start at the next login.
        pid: Of the running daemon.
        last_exit: How it last ended, in the supervisor's words; empty if it never did.
    """

    state: ServiceState
    loaded: bool = False
    enabled: bool = True
    pid: int | None = None
    last_exit: str = ""

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)
