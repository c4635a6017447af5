"""What the service runs (`Definition`), and what autospec asks of a supervisor (`ServiceManager`). Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, Protocol

__all__ = [
    "DAEMON_ARGUMENTS",
    "KILL_AFTER_S",
    "STOP_WITHIN_S",
    "Definition",
    "Runner",
    "ServiceManager",
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


class Runner(Protocol):
    """Runs a command to its end."""

    def __call__(self, argv: Sequence[str], /) -> ServiceOutcome:
        """Run it; never raises."""


class ServiceManager(Protocol):
    """A kind of supervisor. It says what to run, and runs nothing."""

    @property
    def name(self) -> str:
        """``launchd`` or ``systemd``."""

    @property
    def file(self) -> Path:
        """Path of the service's file."""

    @property
    def settle_s(self) -> float:
        """Seconds that a daemon must have run to count as up; 0 if the daemon reports that itself."""

    @property
    def reachable(self) -> tuple[str, ...]:
        """The command that succeeds if this user has such a supervisor."""

    def unreachable(self, outcome: ServiceOutcome) -> tuple[str, str]:
        """Why it cannot be used, and a hint."""

    @property
    def when_refused(self) -> str:
        """The hint for a step that fails."""

    def render(self, definition: Definition) -> str:
        """The content of the service's file."""

    def variables(self, text: str) -> dict[str, str]:
        """The environment variables in such a file, without PATH; empty if it cannot be read."""

    def path(self, text: str) -> str:
        """PATH in such a file; empty if it cannot be read."""

    @property
    def questions(self) -> tuple[tuple[str, ...], ...]:
        """The commands whose answers `read` understands."""

    def read(self, answers: Sequence[ServiceOutcome]) -> ServiceStatus:
        """The status from the answers to `questions`."""

    def to_load(self, status: ServiceStatus, *, changed: bool) -> tuple[ServiceStep, ...]:
        """Load the file and start the service; nothing if it runs and did not change."""

    def to_stop(self, status: ServiceStatus) -> tuple[ServiceStep, ...]:
        """Stop it until the next login or start."""

    def to_unload(self, status: ServiceStatus) -> tuple[ServiceStep, ...]:
        """Stop it for good; the file is removed afterwards."""

    @property
    def after_removal(self) -> tuple[ServiceStep, ...]:
        """The commands to run when the file is gone."""

    def logs(self, definition: Definition, *, lines: int, follow: bool) -> tuple[str, ...]:
        """The command that prints the log's last lines."""
