"""What the service runs, and how its two managers run it: launchd (an agent of the graphical session), the user's systemd (a unit).

A manager says what to run, and runs nothing.

Sources for launchd: launchd.plist(5) and launchctl(1) of macOS 14. Exit codes of launchctl as people report them: 113 no such service;
112 and 125 no such domain (over SSH, while nobody is logged in at the screen); 5 also while a service that was just booted
out is still being removed; 3 boot-out of an unknown service; 36 boot-out in progress.

Sources for systemd: systemd.service(5), systemd.unit(5), systemd.syntax(7), systemctl(1), journalctl(1); checked on systemd 252.
"""

from __future__ import annotations

import os
import plistlib
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, Final
from xml.parsers.expat import ExpatError

from autospec.errors import UsageError

__all__ = [
    "DAEMON_ARGUMENTS",
    "KILL_AFTER_S",
    "LABEL",
    "STOP_WITHIN_S",
    "UNIT",
    "Definition",
    "Launchd",
    "ServiceOutcome",
    "ServiceState",
    "ServiceStatus",
    "ServiceStep",
    "Systemd",
    "exit_code_for",
    "fields_of",
    "kept_short",
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


def _pid_in(text: str) -> int | None:
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

    def environment(self, text: str) -> dict[str, str]:
        """The environment variables in the file's text; empty if it cannot be read."""
        try:
            job = plistlib.loads(text.encode())
        except (plistlib.InvalidFileException, ExpatError, ValueError):
            return {}
        return {name: str(value) for name, value in job.get("EnvironmentVariables", {}).items()}

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
            state, loaded=True, enabled=enabled, pid=_pid_in(fields.get("pid", "")), last_exit=last
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
    # launchd's helper is turning into the program: how the last one ended says nothing of this one.
    if state == "xpcproxy":
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


UNIT: Final = "autospec.service"
_SYSTEMCTL: Final = ("systemctl", "--user")
_PROPERTIES: Final = (
    "LoadState",
    "ActiveState",
    "MainPID",
    "ExecMainCode",
    "ExecMainStatus",
    "Result",
    "UnitFileState",
)

_STATES: Final = {
    "active": ServiceState.RUNNING,
    "reloading": ServiceState.RUNNING,
    "activating": ServiceState.STARTING,
    "deactivating": ServiceState.STOPPING,
    "failed": ServiceState.FAILED,
}
# ExecMainCode is waitid(2)'s si_code.
_ENDED: Final = {"1": "exit code", "2": "signal", "3": "signal, core dumped"}


@dataclass(frozen=True, slots=True)
class Systemd:
    """The user's systemd; `config_home` is ``$XDG_CONFIG_HOME`` or ``~/.config``, `template` the shipped unit."""

    config_home: Path
    template: str
    name: ClassVar = "systemd"
    # Type=notify: the unit becomes active when the daemon says READY=1.
    settle_s: ClassVar = 0.0
    reachable: ClassVar[tuple[str, ...]] = (*_SYSTEMCTL, "show", "--property=Version")
    when_refused: ClassVar = f"See `systemctl --user status {UNIT}`."
    questions: ClassVar[tuple[tuple[str, ...], ...]] = (
        (*_SYSTEMCTL, "show", UNIT, f"--property={','.join(_PROPERTIES)}"),
    )

    @property
    def file(self) -> Path:
        """Systemd reads a user's units from this folder."""
        return self.config_home / "systemd" / "user" / UNIT

    def unreachable(self, outcome: ServiceOutcome) -> tuple[str, str]:
        """Why it cannot be used, and a hint."""
        why = outcome.err.strip().splitlines() or ["systemctl is not installed"]
        hint = (
            "In a container, or without systemd: run `autospec daemon --proxy` under your own supervisor. After `su` or "
            "`sudo -u`: log in as the user (ssh, `machinectl shell`), or set XDG_RUNTIME_DIR=/run/user/UID."
        )
        return f"The systemd instance of this user does not answer ({why[0].rstrip('.')}).", hint

    def render(self, definition: Definition) -> str:
        """The unit."""
        variables = (("PATH", definition.path), *definition.variables)
        # systemd refuses a program path with quotes or backslashes, even if they are escaped.
        safe = not re.search(r"[\"'\\]", definition.program[0])
        program, *words = definition.program if safe else ("/usr/bin/env", *definition.program)
        values = {
            "VERSION": definition.version,
            # systemd replaces variables in the arguments, but not in the program's path.
            "PROGRAM": " ".join([_quoted(program), *(_quoted(word, argument=True) for word in words)]),
            "ENVIRONMENT": "\n".join(f"Environment={_quoted(f'{k}={v}')}" for k, v in variables),
        }
        return re.sub(r"@([A-Z]+)@", lambda found: values.get(found[1], found[0]), self.template)

    def environment(self, text: str) -> dict[str, str]:
        """The environment variables in the file's text."""
        found = {}
        for line in re.findall(r"^Environment=(.*)$", text, re.MULTILINE):
            name, _, value = _unquoted(line).partition("=")
            found[name] = value
        return found

    def read(self, answers: Sequence[ServiceOutcome]) -> ServiceStatus:
        """The status from the answers."""
        (shown,) = answers
        fields = dict(line.split("=", 1) for line in shown.out.splitlines() if "=" in line)
        if shown.code or fields.get("LoadState") != "loaded":
            return ServiceStatus(ServiceState.ABSENT)
        ended = _ENDED.get(fields.get("ExecMainCode", ""), "")
        last = f"{ended} {fields.get('ExecMainStatus', '')}".strip() if ended else ""
        if (result := fields.get("Result", "success")) not in ("success", "exit-code", "signal", "core-dump"):
            last = f"{last} ({result})".strip()  # timeout, watchdog, oom-kill, start-limit-hit
        return ServiceStatus(
            _STATES.get(fields.get("ActiveState", ""), ServiceState.STOPPED),
            loaded=True,
            enabled=fields.get("UnitFileState") == "enabled",
            pid=_pid_in(fields.get("MainPID", "")),
            last_exit=last,
        )

    def to_load(self, status: ServiceStatus, *, changed: bool) -> tuple[ServiceStep, ...]:
        """Reload a changed file, enable the unit, start or restart it."""
        # --no-block: autospec polls for readiness, so it can show the log if the daemon does not come up.
        running = status.state in (ServiceState.RUNNING, ServiceState.STARTING)
        verb = ("restart",) if changed else () if running else ("start",)
        return (
            *((_step("daemon-reload"),) if changed else ()),
            *((_step("enable", UNIT),) if changed or not status.enabled else ()),
            # A unit that failed too often starts only after a reset of its count.
            *((_step("reset-failed", UNIT),) if status.state is ServiceState.FAILED else ()),
            *(_step("--no-block", word, UNIT) for word in verb),
        )

    def to_stop(self, status: ServiceStatus) -> tuple[ServiceStep, ...]:
        """Stop it; it starts again at the next login."""
        return (_step("stop", UNIT),) if status.loaded else ()

    def to_unload(self, status: ServiceStatus) -> tuple[ServiceStep, ...]:
        """Stop and disable it."""
        return (_step("disable", "--now", UNIT),) if status.loaded else ()

    @property
    def after_removal(self) -> tuple[ServiceStep, ...]:
        """Forget the unit."""
        # Without reset-failed, systemd keeps listing a failed unit. It fails if there is nothing to reset.
        return _step("daemon-reload"), ServiceStep(
            (*_SYSTEMCTL, "reset-failed", UNIT), fine=frozenset({0, 1, 5})
        )

    def logs(self, definition: Definition, *, lines: int, follow: bool) -> tuple[str, ...]:  # noqa: ARG002 - systemd has a journal
        """The end of the journal."""
        follow_ = ("--follow",) if follow else ()
        return "journalctl", "--user", "--quiet", "--no-pager", f"--unit={UNIT}", f"--lines={lines}", *follow_


def _step(*words: str) -> ServiceStep:
    return ServiceStep((*_SYSTEMCTL, *words))


def _quoted(word: str, *, argument: bool = False) -> str:
    """A word quoted for systemd.syntax(7) and systemd.service(5); specifiers and, in arguments, variables are escaped."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("\n", "\\n")
    if argument:
        escaped = escaped.replace("$", "$$")
    return escaped if re.fullmatch(r"[A-Za-z0-9_./+:@%=,-]+", escaped) else f'"{escaped}"'


def _unquoted(text: str) -> str:
    """What `_quoted` was given."""
    if text.startswith('"') and text.endswith('"'):
        text = text[1:-1]
    characters = {"n": "\n"}
    text = re.sub(r"\\(.)", lambda found: characters.get(found[1], found[1]), text)
    return text.replace("%%", "%")
