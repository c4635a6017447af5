"""What a service is, and what a supervisor has to say about it. Pure values and one protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
]

# What the service runs, after the program's own name.
DAEMON_ARGUMENTS: Final = ("daemon", "--proxy")
# What the daemon may take for a graceful stop: requests in flight are finished, a measurement is thrown away, servers
# are ended (about 2 s each for 1 GB, measured), and what is known is written.
STOP_WITHIN_S: Final = 45
# When the supervisor kills. Both templates carry it; the difference is the daemon's time to notice that it is late.
KILL_AFTER_S: Final = 60


@dataclass(frozen=True, slots=True)
class Definition:
    """What is to be run, and how.

    Attributes:
        program: The whole command line, the program by its absolute path.
        home: The user's home folder.
        log: The file that takes the daemon's output where the supervisor keeps no journal.
        path: ``PATH`` for the daemon: supervisors read no shell's.
        variables: Further environment, name and value.
        version: Of autospec; part of the file, so that an upgrade changes it.
    """

    program: tuple[str, ...]
    home: Path
    log: Path
    path: str
    variables: tuple[tuple[str, str], ...] = ()
    version: str = ""


@dataclass(frozen=True, slots=True)
class ServiceOutcome:
    """How a command ended.

    Attributes:
        code: Its exit code; 127 where the program is missing, 124 where it was given up.
        out: What it printed.
        err: What it complained.
    """

    code: int
    out: str = ""
    err: str = ""


@dataclass(frozen=True, slots=True)
class ServiceStep:
    """One command that changes something, or that waits for a change.

    Attributes:
        argv: The command.
        fine: Exit codes that count as done.
        again: Exit codes after which it is run again until `patience_s` is over.
        patience_s: How long.
    """

    argv: tuple[str, ...]
    fine: frozenset[int] = frozenset({0})
    again: frozenset[int] = frozenset()
    patience_s: float = 0.0


class ServiceState(StrEnum):
    """How a service is. `STOPPED` is at rest and fine; `FAILED` is not."""

    ABSENT = "absent"
    STOPPED = "stopped"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """What the supervisor says.

    Attributes:
        state: See `ServiceState`.
        loaded: True if the supervisor knows the service.
        enabled: False if it would not start at the next login.
        pid: Of the daemon, while it runs.
        last_exit: How it ended last, in the supervisor's words; empty if it never did.
    """

    state: ServiceState
    loaded: bool = False
    enabled: bool = True
    pid: int | None = None
    last_exit: str = ""

    def to_json(self) -> dict[str, Any]:
        """All fields, as JSON values."""
        return {
            "state": str(self.state),
            "loaded": self.loaded,
            "enabled": self.enabled,
            "pid": self.pid,
            "last_exit": self.last_exit,
        }


class Runner(Protocol):
    """Runs a command to its end."""

    def __call__(self, argv: Sequence[str], /) -> ServiceOutcome:
        """Run it; never raises, a missing program is code 127."""
        ...


class ServiceManager(Protocol):
    """A kind of supervisor. Nothing here runs anything."""

    @property
    def name(self) -> str:
        """``launchd`` or ``systemd``."""
        ...

    @property
    def file(self) -> Path:
        """The definition's place."""
        ...

    @property
    def settle_s(self) -> float:
        """How long a daemon must have run before it counts as up; 0 where it says so itself."""
        ...

    @property
    def reachable(self) -> tuple[str, ...]:
        """The command that succeeds where this user has such a supervisor."""
        ...

    def unreachable(self, outcome: ServiceOutcome) -> tuple[str, str]:
        """One sentence on why it cannot be used, and what to do."""
        ...

    @property
    def when_refused(self) -> str:
        """What to look at when a step fails."""
        ...

    def render(self, definition: Definition) -> str:
        """The definition as the supervisor reads it."""
        ...

    @property
    def questions(self) -> tuple[tuple[str, ...], ...]:
        """The commands whose answers `read` understands."""
        ...

    def read(self, answers: Sequence[ServiceOutcome]) -> ServiceStatus:
        """The status, out of the answers to `questions`."""
        ...

    def to_load(self, status: ServiceStatus, *, changed: bool) -> tuple[ServiceStep, ...]:
        """Make a service of the file and start it; nothing where it runs and did not change."""
        ...

    def to_stop(self, status: ServiceStatus) -> tuple[ServiceStep, ...]:
        """End it until the next login, or until it is started."""
        ...

    def to_unload(self, status: ServiceStatus) -> tuple[ServiceStep, ...]:
        """End it for good; the file is removed afterwards."""
        ...

    @property
    def after_removal(self) -> tuple[ServiceStep, ...]:
        """What the supervisor must be told once the file is gone."""
        ...

    def logs(self, definition: Definition, *, lines: int, follow: bool) -> tuple[str, ...]:
        """The command that prints the log's last lines."""
        ...
