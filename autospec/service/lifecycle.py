"""Install, start, stop and remove the service: runs what a `ServiceManager` says.

Every action can be repeated. The supervisor is asked for its state each time, because the user may have stopped, disabled
or removed the service by other means.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from autospec.errors import ServiceError
from autospec.files import PRIVACY_HINT, replace_file
from autospec.service.definition import (
    KILL_AFTER_S,
    Definition,
    Runner,
    ServiceManager,
    ServiceOutcome,
    ServiceState,
    ServiceStatus,
    ServiceStep,
)

__all__ = ["Service", "ServicePlan", "run_command"]


# `systemctl stop` waits for the daemon's end, which the unit limits to KILL_AFTER_S.
_TIMEOUT_S: Final = KILL_AFTER_S + 30.0
_MISSING: Final = 127
_GIVEN_UP: Final = 124


def run_command(argv: Sequence[str]) -> ServiceOutcome:
    """Run a program to its end and keep its output, in English. A missing program is exit code 127, a timeout 124."""
    try:
        done = subprocess.run(
            list(argv),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
            check=False,
            env={**os.environ, "LC_ALL": "C", "SYSTEMD_COLORS": "0"},
        )
    except subprocess.TimeoutExpired:
        return ServiceOutcome(_GIVEN_UP, err=f"{argv[0]} did not end within {_TIMEOUT_S:.0f} s")
    except OSError as error:
        return ServiceOutcome(_MISSING, err=f"{argv[0]}: {error.strerror}")
    return ServiceOutcome(done.returncode, done.stdout, done.stderr)


# A cold start takes seconds: settings, database, the proxy's port. A disk that must spin up adds ten.
_UP_WITHIN_S: Final = 60.0
_POLL_S: Final = 0.5
# For a moment launchd reports a starting service as not running, with its previous exit.
_FAILED_POLLS: Final = 3
_TAIL_LINES: Final = 20


@dataclass(frozen=True, slots=True)
class ServicePlan:
    """What an installation would do: the file's text, whether it changes, and the commands."""

    changed: bool
    text: str
    steps: tuple[ServiceStep, ...]


class Service:
    """The daemon as a service.

    Args:
        supervisor: The kind of supervisor.
        definition: What it runs.
        run: Runs commands.
        now: A clock in seconds.
        sleep: Waits for a number of seconds.
    """

    def __init__(
        self,
        supervisor: ServiceManager,
        definition: Definition,
        run: Runner = run_command,
        *,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.supervisor = supervisor
        self.definition = definition
        self._run = run
        self._now = now
        self._sleep = sleep

    def status(self) -> ServiceStatus:
        """The present status; a service with a file that is not loaded is stopped."""
        status = self.supervisor.read([self._run(question) for question in self.supervisor.questions])
        if status.state is ServiceState.ABSENT and self.supervisor.file.exists():
            return replace(status, state=ServiceState.STOPPED)
        return status

    def current(self) -> bool:
        """True if the installed file is what an installation would write now, but for PATH.

        That comes from the shell in which the service was installed, and another shell may find another llama-server.
        """
        text = self._installed_text()
        if text is None:
            return False
        path = self.supervisor.path(text) or self.definition.path
        return text == self.supervisor.render(replace(self.definition, path=path))

    def variables(self) -> dict[str, str]:
        """The environment variables of the installed service, without PATH."""
        return self.supervisor.variables(self._installed_text() or "")

    def plan(self) -> ServicePlan:
        """What `install` would do; raises ServiceError without a supervisor. Changes nothing."""
        self._check()
        text = self.supervisor.render(self.definition)
        changed = self._installed_text() != text
        return ServicePlan(changed, text, self.supervisor.to_load(self.status(), changed=changed))

    def install(self) -> bool:
        """Write the file, load it and wait until the daemon is up; an unchanged running service is left alone.

        Returns:
            True if anything was done.

        Raises:
            ServiceError: This user has no supervisor, it refuses, or the daemon does not come up.
            OSError: The file cannot be written.
        """
        plan = self.plan()
        if plan.changed:
            replace_file(self.supervisor.file, plan.text)
        if plan.steps:
            self._bring_up(plan.steps)
        return plan.changed or bool(plan.steps)

    def start(self) -> bool:
        """Start the installed service and wait until it is up; False if it was running.

        Raises:
            ServiceError: It is not installed, or does not come up.
        """
        self._check()
        if not self.supervisor.file.exists():
            raise ServiceError("The service is not installed.", "Run `autospec service install`.")
        steps = self.supervisor.to_load(self.status(), changed=False)
        if steps:
            self._bring_up(steps)
        return bool(steps)

    def stop(self) -> bool:
        """Stop it until the next login or start; False if it was not running. Raises ServiceError if refused."""
        self._check()
        status = self.status()
        if status.state in (ServiceState.ABSENT, ServiceState.STOPPED) and status.pid is None:
            return False
        self._do(self.supervisor.to_stop(status))
        return True

    def uninstall(self) -> bool:
        """Stop it and remove the file and the log; False if there was nothing.

        Raises:
            ServiceError: The supervisor refuses.
            OSError: A file cannot be removed.
        """
        file = self.supervisor.file
        answers = self._run(self.supervisor.reachable)
        # Without a supervisor nothing runs, and the file can be removed.
        status = self.status() if answers.code == 0 else ServiceStatus(ServiceState.ABSENT)
        there = status.loaded or file.exists() or self.definition.log.exists()
        self._do(self.supervisor.to_unload(status))
        file.unlink(missing_ok=True)
        self.definition.log.unlink(missing_ok=True)
        if there and answers.code == 0:
            self._do(self.supervisor.after_removal)
        return there

    def tail(self, lines: int = _TAIL_LINES) -> tuple[str, ...]:
        """The last lines of the daemon's log; empty if there is none."""
        said = self._run(self.supervisor.logs(self.definition, lines=lines, follow=False))
        return tuple(said.out.splitlines()) if said.code == 0 else ()

    def _check(self) -> None:
        outcome = self._run(self.supervisor.reachable)
        if outcome.code:
            raise ServiceError(*self.supervisor.unreachable(outcome))

    def _installed_text(self) -> str | None:
        try:
            return self.supervisor.file.read_text(encoding="utf-8")
        except (FileNotFoundError, UnicodeDecodeError):
            return None

    def _bring_up(self, steps: tuple[ServiceStep, ...]) -> None:
        self.definition.log.parent.mkdir(parents=True, exist_ok=True)
        self._do(steps)
        deadline = self._now() + _UP_WITHIN_S
        up_since: tuple[int | None, float] | None = None
        failures = 0
        while True:
            status = self.status()
            if status.state is ServiceState.RUNNING:
                if up_since is None or up_since[0] != status.pid:
                    up_since = status.pid, self._now()
                if self._now() - up_since[1] >= self.supervisor.settle_s:
                    return
            else:
                up_since = None
            failures = failures + 1 if self._has_ended(status) else 0
            if failures >= _FAILED_POLLS or self._now() > deadline:
                raise self._not_up(status)
            self._sleep(_POLL_S)

    def _has_ended(self, status: ServiceStatus) -> bool:
        """With launchd, a daemon with a wrong setting ends with 0 and stays stopped."""
        ended_well = status.state is ServiceState.STOPPED and bool(status.last_exit)
        return status.state is ServiceState.FAILED or (self.supervisor.name == "launchd" and ended_well)

    def _not_up(self, status: ServiceStatus) -> ServiceError:
        how = f"ended ({status.last_exit})" if status.last_exit else f"is {status.state}"
        tail = self.tail()
        hint = f"See `autospec service logs`, or run it by hand: {shlex.join(self.definition.program)}"
        if self.supervisor.name == "launchd" and any("Operation not permitted" in line for line in tail):
            hint = PRIVACY_HINT
        return ServiceError(
            f"The service is installed, but the daemon did not come up: it {how}.", hint, log_tail=tail
        )

    def _do(self, steps: tuple[ServiceStep, ...]) -> None:
        for step in steps:
            outcome = self._one(step)
            if outcome.code not in step.fine:
                said = (outcome.err.strip() or outcome.out.strip()).splitlines()
                raise ServiceError(
                    f"{self.supervisor.name} refused: `{shlex.join(step.argv)}` ended with exit code {outcome.code}"
                    f"{f' ({said[0].strip()})' if said else ''}.",
                    self.supervisor.when_refused,
                )

    def _one(self, step: ServiceStep) -> ServiceOutcome:
        deadline = self._now() + step.patience_s
        while True:
            outcome = self._run(step.argv)
            if outcome.code not in step.again or self._now() >= deadline:
                return outcome
            self._sleep(_POLL_S)
