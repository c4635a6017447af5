"""The service as a unit of the user's own systemd instance.

Sources: systemd.service(5), systemd.unit(5), systemd.syntax(7), systemctl(1), journalctl(1); checked on systemd 252.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

from autospec.service.definition import (
    Definition,
    ServiceOutcome,
    ServiceState,
    ServiceStatus,
    ServiceStep,
    pid_in,
)

__all__ = ["UNIT", "Systemd"]

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

    def variables(self, text: str) -> dict[str, str]:
        """The environment in the file's text, without PATH."""
        return {name: value for name, value in _environment(text).items() if name != "PATH"}

    def path(self, text: str) -> str:
        """PATH in the file's text; empty without one."""
        return _environment(text).get("PATH", "")

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
            pid=pid_in(fields.get("MainPID", "")),
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


def _environment(text: str) -> dict[str, str]:
    found = {}
    for line in re.findall(r"^Environment=(.*)$", text, re.MULTILINE):
        name, _, value = _unquoted(line).partition("=")
        found[name] = value
    return found


def _unquoted(text: str) -> str:
    """What `_quoted` was given."""
    if text.startswith('"') and text.endswith('"'):
        text = text[1:-1]
    characters = {"n": "\n"}
    text = re.sub(r"\\(.)", lambda found: characters.get(found[1], found[1]), text)
    return text.replace("%%", "%")
