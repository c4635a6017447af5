"""Stand-ins for launchctl and systemctl that record what is asked of them, and a clock that nobody waits for.

They keep the little state that the lifecycle depends on and answer in the programs' own words and exit codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from autospec.service.lifecycle import Service
from autospec.service.managers import Definition, ServiceOutcome

PRINTED = """\
gui/501/com.autospec.daemon = {{
	active count = 1
	path = /Users/me/Library/LaunchAgents/com.autospec.daemon.plist
	type = LaunchAgent
	state = {state}

	program = /opt/autospec/bin/autospec
	arguments = {{
		/opt/autospec/bin/autospec
		daemon
	}}

	inherited environment = {{
		state = of mind
	}}

	domain = gui/501 [100008]
	runs = 1
{lines}
	spawn type = interactive (4)
	jetsam coalition = {{
		ID = 842
		state = active
	}}
}}
"""


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> float:
        """Seconds since the test began."""
        return self.seconds

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.seconds += seconds


def definition(home: Path, **changes) -> Definition:
    """What is to be run; keywords replace fields."""
    fields = {
        "program": ("/opt/autospec/bin/autospec", "daemon", "--proxy"),
        "home": home,
        "log": home / "Library" / "Logs" / "autospec" / "daemon.log",
        "path": "/usr/bin:/bin",
        "version": "1.0",
    }
    return Definition(**{**fields, **changes})


def breaking(service: Service, verb: str, how: ServiceOutcome | BaseException) -> Service:
    """The service, whose supervisor answers this verb so, or which the user breaks off there."""
    run = service._run

    def broken(argv: Sequence[str]) -> ServiceOutcome:
        if verb not in argv:
            return run(argv)
        if isinstance(how, BaseException):
            raise how
        return how

    service._run = broken
    return service


@dataclass
class FakeLaunchctl:
    """launchctl, with one job.

    Attributes:
        logged_in: Whether the user has a graphical session.
        disabled: Whether the job was disabled.
        healthy: Whether the daemon lives.
        lingers: How often `print` still shows a job that was booted out.
        refusals: How often `bootstrap` fails with an input/output error first.
        calls: Every call, without the program's path.
    """

    logged_in: bool = True
    disabled: bool = False
    healthy: bool = True
    lingers: int = 0
    refusals: int = 0
    loaded: bool = False
    going: int = 0
    pid: int = 100
    log: str = ""
    calls: list[tuple[str, ...]] = field(default_factory=list)

    @property
    def changes(self) -> list[tuple[str, ...]]:
        """The calls that change something, up to the label or file."""
        return [call for call in self.calls if call[0] not in ("print", "print-disabled", "-n")]

    def __call__(self, argv: Sequence[str]) -> ServiceOutcome:
        """Record a call and answer it."""
        self.calls.append(tuple(argv[1:]))
        if argv[0] == "/usr/bin/tail":
            return ServiceOutcome(0, self.log)
        assert argv[0] == "/bin/launchctl"
        verb, target = argv[1], argv[2] if len(argv) > 2 else ""
        assert target.startswith("gui/501")
        if not self.logged_in:
            return ServiceOutcome(125, err="Domain does not support specified action\n")
        return getattr(self, f"_{verb.replace('-', '_')}")(target)

    def _print(self, target: str) -> ServiceOutcome:
        if target == "gui/501":
            return ServiceOutcome(0, "com.apple.xpc.launchd.domain.user.501 = {\n}\n")
        if self.going:
            self.going -= 1
            return ServiceOutcome(0, PRINTED.format(state="running", lines="\tpid = 100"))
        if not self.loaded:
            return ServiceOutcome(
                113, err='Could not find service "com.autospec.daemon" in domain for user gui: 501\n'
            )
        if self.healthy:
            lines = f"\tpid = {self.pid}\n\tlast exit code = (never exited)"
            return ServiceOutcome(0, PRINTED.format(state="running", lines=lines))
        return ServiceOutcome(0, PRINTED.format(state="spawn scheduled", lines="\tlast exit code = 1"))

    def _print_disabled(self, _target: str) -> ServiceOutcome:
        state = "disabled" if self.disabled else "enabled"
        return ServiceOutcome(0, f'disabled services = {{\n\t"com.autospec.daemon" => {state}\n}}\n')

    def _enable(self, _target: str) -> ServiceOutcome:
        self.disabled = False
        return ServiceOutcome(0)

    def _bootstrap(self, _target: str) -> ServiceOutcome:
        if self.refusals or self.loaded or self.disabled or self.going:
            self.refusals = max(0, self.refusals - 1)
            return ServiceOutcome(5, err="Bootstrap failed: 5: Input/output error\n")
        self.loaded = True
        self.pid += 1
        return ServiceOutcome(0)

    def _bootout(self, _target: str) -> ServiceOutcome:
        if not self.loaded:
            return ServiceOutcome(3, err="Boot-out failed: 3: No such process\n")
        self.loaded = False
        self.going = self.lingers
        return ServiceOutcome(0)

    def _kickstart(self, _target: str) -> ServiceOutcome:
        assert self.loaded
        self.pid += 1
        return ServiceOutcome(0)


@dataclass
class FakeSystemctl:
    """``systemctl --user`` and journalctl, with one unit.

    Attributes:
        present: Whether the user has an instance of systemd.
        file: Where the unit's file is.
        healthy: Whether the daemon comes up.
    """

    file: Path
    present: bool = True
    healthy: bool = True
    known: bool = False
    enabled: bool = False
    active: str = "inactive"
    pid: int = 100
    log: str = ""
    calls: list[tuple[str, ...]] = field(default_factory=list)

    @property
    def changes(self) -> list[tuple[str, ...]]:
        """The calls that change something, without ``systemctl --user``."""
        return [call for call in self.calls if "show" not in call and call[0] != "journalctl"]

    def __call__(self, argv: Sequence[str]) -> ServiceOutcome:
        """Record a call and answer it."""
        if argv[0] == "journalctl":
            self.calls.append(tuple(argv))
            return ServiceOutcome(0, self.log)
        assert tuple(argv[:2]) == ("systemctl", "--user")
        self.calls.append(tuple(argv[2:]))
        if not self.present:
            return ServiceOutcome(1, err="Failed to connect to bus: No medium found\n")
        words = [word for word in argv[2:] if not word.startswith("--")]
        return getattr(self, f"_{words[0].replace('-', '_')}")()

    def _show(self) -> ServiceOutcome:
        if not self.known:
            return ServiceOutcome(0, "LoadState=not-found\nActiveState=inactive\nMainPID=0\n")
        failed = self.active == "failed"
        lines = {
            "LoadState": "loaded",
            "ActiveState": self.active,
            "MainPID": self.pid if self.active == "active" else 0,
            "ExecMainCode": 1 if failed else 0,
            "ExecMainStatus": 2 if failed else 0,
            "Result": "exit-code" if failed else "success",
            "UnitFileState": "enabled" if self.enabled else "disabled",
        }
        return ServiceOutcome(0, "".join(f"{k}={v}\n" for k, v in lines.items()))

    def _daemon_reload(self) -> ServiceOutcome:
        self.known = self.file.exists()
        return ServiceOutcome(0)

    def _enable(self) -> ServiceOutcome:
        self.enabled = True
        return ServiceOutcome(0)

    def _disable(self) -> ServiceOutcome:
        self.enabled = False
        return self._stop()

    def _start(self) -> ServiceOutcome:
        self.active = "active" if self.healthy else "failed"
        self.pid += 1
        return ServiceOutcome(0)

    _restart = _start

    def _stop(self) -> ServiceOutcome:
        self.active = "inactive"
        return ServiceOutcome(0)

    def _reset_failed(self) -> ServiceOutcome:
        self.active = "inactive"
        return ServiceOutcome(0 if self.known else 1)
