"""The service as a launch agent of the user's graphical session.

Sources: launchd.plist(5) and launchctl(1) of macOS 14. Exit codes of launchctl as people report them: 113 no such service;
112 and 125 no such domain (over SSH, while nobody is logged in at the screen); 5 also while a service that was just booted
out is still being removed; 3 boot-out of an unknown service; 36 boot-out in progress.
"""

from __future__ import annotations

import os
import plistlib
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final
from xml.parsers.expat import ExpatError

from autospec.errors import UsageError
from autospec.service.definition import (
    KILL_AFTER_S,
    Definition,
    ServiceOutcome,
    ServiceState,
    ServiceStatus,
    ServiceStep,
    pid_in,
)

__all__ = ["LABEL", "Launchd", "exit_code_for", "fields_of", "kept_short"]

LABEL: Final = "com.autospec.daemon"
_WRONG_SETTING: Final = UsageError.exit_code
# launchd only appends to the log; nothing on a Mac rotates it.
_LOG_LIMIT_BYTES: Final = 1 << 20
_LAUNCHCTL: Final = "/bin/launchctl"
_TAIL: Final = "/usr/bin/tail"

_NO_SERVICE: Final = 113
_BOOTED_OUT: Final = frozenset({0, 3, 36, _NO_SERVICE})
_INPUT_OUTPUT_ERROR: Final = 5
# launchd kills after ExitTimeOut; a process that is still there some seconds later will stay.
_GONE_WITHIN_S: Final = KILL_AFTER_S + 10.0
# launchd may refuse a service for some seconds after `print` stops showing it; people report 2 to 5 s.
_BOOTSTRAP_PATIENCE_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Launchd:
    """Launchd for one user; `template` is the shipped plist with placeholders."""

    uid: int
    home: Path
    template: bytes
    name: ClassVar = "launchd"
    # launchd has no signal for ready. A daemon with wrong settings or a taken port has ended by then.
    settle_s: ClassVar = 5.0
    after_removal: ClassVar[tuple[ServiceStep, ...]] = ()
    # launchd refuses a disabled agent with the same error as a damaged file.
    when_refused: ClassVar = (
        "Check System Settings, General, Login Items: autospec must be allowed in the background."
    )

    @property
    def file(self) -> Path:
        """Launchd reads a user's agents from this folder; launchd.plist(5) wants the file named after its label."""
        return self.home / "Library" / "LaunchAgents" / f"{LABEL}.plist"

    @property
    def domain(self) -> str:
        """The user's graphical session, which loads agents at login."""
        return f"gui/{self.uid}"

    @property
    def target(self) -> str:
        """The service in the domain."""
        return f"{self.domain}/{LABEL}"

    @property
    def reachable(self) -> tuple[str, ...]:
        """Fails if the user has no graphical session."""
        return _LAUNCHCTL, "print", self.domain

    def unreachable(self, outcome: ServiceOutcome) -> tuple[str, str]:
        """Why it cannot be used, and a hint."""
        if outcome.code == 127:
            return f"{_LAUNCHCTL} is missing.", "The service needs macOS, or Linux with systemd."
        why = (
            f"User {self.uid} is not logged in at this Mac's screen, and a launch agent lives in that session "
            f"({self.domain}; over SSH alone there is only user/{self.uid}, where it would not start again)."
        )
        hint = (
            "Log in at the screen, by Screen Sharing or by automatic login, then run the command again (SSH works then). "
            "Or run `autospec daemon --proxy` under your own supervisor."
        )
        return why, hint

    def render(self, definition: Definition) -> str:
        """The plist."""
        values = {"HOME": str(definition.home), "PATH": definition.path, "LOG": str(definition.log)}
        job = _filled(plistlib.loads(self.template), values)
        job["ProgramArguments"] = list(definition.program)
        job["EnvironmentVariables"] |= dict(definition.variables)
        head, rest = plistlib.dumps(job, sort_keys=False).decode().split("<plist", 1)
        return f"{head}<!-- Written by autospec {definition.version}: `autospec service` -->\n<plist{rest}"

    def variables(self, text: str) -> dict[str, str]:
        """The environment in the file's text, without PATH."""
        try:
            job = plistlib.loads(text.encode())
        except (plistlib.InvalidFileException, ExpatError, ValueError):
            return {}
        found = job.get("EnvironmentVariables", {})
        return {name: str(value) for name, value in found.items() if name != "PATH"}

    def path(self, text: str) -> str:
        """PATH in the file's text; empty if it cannot be read."""
        try:
            job = plistlib.loads(text.encode())
        except (plistlib.InvalidFileException, ExpatError, ValueError):
            return ""
        return str(job.get("EnvironmentVariables", {}).get("PATH", ""))

    @property
    def questions(self) -> tuple[tuple[str, ...], ...]:
        """The job, and whether it was disabled."""
        return (_LAUNCHCTL, "print", self.target), (_LAUNCHCTL, "print-disabled", self.domain)

    def read(self, answers: Sequence[ServiceOutcome]) -> ServiceStatus:
        """The status from the answers."""
        job, disabled = answers
        # "com.autospec.daemon" => disabled; older systems say true.
        enabled = not re.search(rf'"{re.escape(LABEL)}" => (disabled|true)', disabled.out)
        if job.code:
            return ServiceStatus(ServiceState.ABSENT, enabled=enabled)
        fields = fields_of(job.out)
        code = fields.get("last exit code", "").removeprefix("(never exited)")
        # With a signal, the exit code may be an older one.
        last = (
            fields.get("last terminating signal", "")
            or fields.get("last exit reason", "")
            or _explained(code)
        )
        state = _state(fields.get("state", ""), last)
        return ServiceStatus(
            state, loaded=True, enabled=enabled, pid=pid_in(fields.get("pid", "")), last_exit=last
        )

    def to_load(self, status: ServiceStatus, *, changed: bool) -> tuple[ServiceStep, ...]:
        """Bootstrap a new or stopped service; boot out a changed one first, because launchd reads a file once."""
        if not changed and status.state in (ServiceState.RUNNING, ServiceState.STARTING):
            return ()
        if not changed and status.loaded:
            return (ServiceStep((_LAUNCHCTL, "kickstart", self.target)),)
        # A disabled service is refused with "5: Input/output error". Enable only then: it leaves a permanent entry.
        enable = () if status.enabled else (ServiceStep((_LAUNCHCTL, "enable", self.target)),)
        bootstrap = ServiceStep(
            (_LAUNCHCTL, "bootstrap", self.domain, str(self.file)),
            again=frozenset({_INPUT_OUTPUT_ERROR}) if status.loaded else frozenset(),
            patience_s=_BOOTSTRAP_PATIENCE_S,
        )
        return (*self.to_stop(status), *enable, bootstrap)

    def to_stop(self, status: ServiceStatus) -> tuple[ServiceStep, ...]:
        """Boot it out; it is loaded again at the next login."""
        # Not `kill SIGTERM`: KeepAlive restarts a daemon that did not exit with 0.
        if not status.loaded:
            return ()
        return (
            ServiceStep((_LAUNCHCTL, "bootout", self.target), fine=_BOOTED_OUT),
            ServiceStep(
                (_LAUNCHCTL, "print", self.target),
                fine=frozenset({_NO_SERVICE}),
                again=frozenset({0}),
                patience_s=_GONE_WITHIN_S,
            ),
        )

    def to_unload(self, status: ServiceStatus) -> tuple[ServiceStep, ...]:
        """The same as `to_stop`: without its file it is not loaded again."""
        return self.to_stop(status)

    def logs(self, definition: Definition, *, lines: int, follow: bool) -> tuple[str, ...]:
        """The end of the log file."""
        # -F follows the name, also if the log is rotated.
        return (_TAIL, "-n", str(lines), *(("-F",) if follow else ()), str(definition.log))


def exit_code_for(code: int, environ: Mapping[str, str], parent_pid: int) -> int:
    """The exit code for launchd: 0 after a wrong setting, because launchd restarts whatever ends with another code.

    launchd has nothing like systemd's RestartPreventExitStatus. Only the agent itself is meant, not the processes that it
    starts and that inherit its environment.
    """
    is_agent = environ.get("XPC_SERVICE_NAME") == LABEL and parent_pid == 1
    return 0 if is_agent and code == _WRONG_SETTING else code


def kept_short(log: Path, tell: Callable[[str], None]) -> Callable[[str], None]:
    """`tell`, which empties the log that it ends in if that has grown too long. This call does so, too.

    launchd appends, so it goes on in the emptied file.
    """

    def shorten() -> None:
        with suppress(OSError):
            if log.stat().st_size > _LOG_LIMIT_BYTES:
                os.truncate(log, 0)

    def told(sentence: str) -> None:
        shorten()
        tell(sentence)

    shorten()  # also for a daemon that fails before it tells anything, and is started again every 30 seconds
    return told


def fields_of(text: str) -> dict[str, str]:
    """The job's own fields in the output of ``launchctl print``, without those of nested blocks.

    The output is not a stable interface (launchctl says so); a missing field counts as unknown.
    """
    fields: dict[str, str] = {}
    depth = 0
    for line in map(str.strip, text.splitlines()):
        if line.endswith("{"):
            depth += 1
        elif line == "}":
            depth -= 1
        elif depth == 1 and " = " in line:
            name, _, value = line.partition(" = ")
            fields.setdefault(name, value)
    return fields


def _explained(code: str) -> str:
    """The exit code with what it means: launchd ends with 78 what it cannot start."""
    return (
        f"{code}, its program cannot be started; was its Python removed?" if re.match(r"78\b", code) else code
    )


def _state(state: str, last: str) -> ServiceState:
    # "running"; "not running"; "spawn scheduled" while launchd waits for ThrottleInterval.
    if state == "running":
        return ServiceState.RUNNING
    if (
        state == "xpcproxy"
    ):  # launchd's helper is turning into the program: how the last one ended says nothing of this one
        return ServiceState.STARTING
    if last and not re.match(r"0\b", last):
        return ServiceState.FAILED
    # "(never exited)" and "not running": loaded and never started, which launchd may leave so. Kickstart starts it.
    return ServiceState.STOPPED if state == "not running" else ServiceState.STARTING


def _filled(value: Any, values: dict[str, str]) -> Any:
    match value:
        case dict():
            return {key: _filled(inner, values) for key, inner in value.items()}
        case list():
            return [_filled(inner, values) for inner in value]
        case str():
            return re.sub(r"@([A-Z]+)@", lambda found: values.get(found[1], found[0]), value)
        case _:
            return value
