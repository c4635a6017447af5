"""The service of this machine: which supervisor, what it runs, and its install, start, stop and removal.

Every action can be repeated. The supervisor is asked for its state each time, because the user may have stopped, disabled
or removed the service by other means.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import autospec
from autospec.catalog.folders import places
from autospec.errors import ServiceError, SettingsError
from autospec.files import PRIVACY_HINT, launchd_dir, replace_file
from autospec.service.managers import (
    DAEMON_ARGUMENTS,
    KILL_AFTER_S,
    LABEL,
    UNIT,
    Definition,
    Launchd,
    ServiceOutcome,
    ServiceState,
    ServiceStatus,
    ServiceStep,
    Systemd,
)
from autospec.settings import KEYS, Settings, load_settings

__all__ = [
    "Service",
    "privacy_warnings",
    "private_paths",
    "refuse_root",
    "run_command",
    "service_here",
    "service_path",
    "unseen_variables",
]


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
    """The daemon as a service."""

    def __init__(
        self,
        supervisor: Launchd | Systemd,
        definition: Definition,
        run: Callable[[Sequence[str]], ServiceOutcome] = run_command,
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
        path = self.supervisor.environment(text).get("PATH") or self.definition.path
        return text == self.supervisor.render(replace(self.definition, path=path))

    def variables(self) -> dict[str, str]:
        """The environment variables of the installed service, without PATH."""
        told = self.supervisor.environment(self._installed_text() or "")
        return {name: value for name, value in told.items() if name != "PATH"}

    def state_dir(self) -> Path | None:
        """The state folder of the installed service; ``None`` if it is not installed, or its settings cannot be read."""
        if self._installed_text() is None:
            return None
        with _environment(self.variables()), suppress(SettingsError):
            return load_settings().state_dir
        return None

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
        plan, before = self.plan(), self._installed_text()
        try:
            if plan.changed:
                replace_file(self.supervisor.file, plan.text)
            self._load(plan.steps)
        except BaseException:  # Ctrl-C, too
            # The new text would tell the next installation that there is nothing to do, and the old daemon would go on.
            if plan.changed:
                self._put_back(before)
            raise
        if plan.steps:
            self._wait_until_up()
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
            self._load(steps)
            self._wait_until_up()
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

    def _put_back(self, text: str | None) -> None:
        """Write the file's old text again; ``None`` if there was no file."""
        with suppress(OSError):
            if text is None:
                self.supervisor.file.unlink(missing_ok=True)
            else:
                replace_file(self.supervisor.file, text)

    def _load(self, steps: tuple[ServiceStep, ...]) -> None:
        if steps:
            self.definition.log.parent.mkdir(parents=True, exist_ok=True)
        self._do(steps)

    def _wait_until_up(self) -> None:
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
            failures = failures + 1 if self.has_ended(status) else 0
            if failures >= _FAILED_POLLS or self._now() > deadline:
                raise self._not_up(status)
            self._sleep(_POLL_S)

    def has_ended(self, status: ServiceStatus) -> bool:
        """True if the daemon ended by itself; launchd keeps a job loaded that ended with a wrong setting."""
        ended_well = status.loaded and status.state is ServiceState.STOPPED and bool(status.last_exit)
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


# Where Homebrew on Apple silicon, Homebrew on Intel and MacPorts install a llama-server.
_PLACES: Final = {
    "darwin": ("/opt/homebrew/bin", "/usr/local/bin", "/opt/local/bin"),
    "linux": ("/usr/local/bin", "/home/linuxbrew/.linuxbrew/bin"),
}
_SYSTEM: Final = ("/usr/bin", "/bin", "/usr/sbin", "/sbin")
# These determine where everything else is, so the service gets them.
_CARRIED: Final = ("AUTOSPEC_HOME", "AUTOSPEC_CONFIG_FILE")
# Where settings, state and models are. The service does not read the shell's profile, so it gets these too.
_FOLDERS: Final = (
    *("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME"),
    *("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "LLAMA_CACHE", "OLLAMA_MODELS"),
)
# Which GPUs servers use, and with which libraries: without these the service's servers would not be those that were tuned.
_GPU_VARIABLES: Final = (
    *("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"),
    *("GGML_VK_VISIBLE_DEVICES", "HSA_OVERRIDE_GFX_VERSION", "LD_LIBRARY_PATH"),
)
# macOS asks the user before a program may read these, and a background service has no window to ask in.
_PRIVATE: Final = ("Documents", "Desktop", "Downloads", "Library/Mobile Documents", "Library/CloudStorage")


def service_here(settings: Settings) -> Service:
    """The service as this autospec would install it.

    Raises:
        ServiceError: This system has no known supervisor.
    """
    home = Path.home()
    supervisor = _supervisor(sys.platform, home, os.environ)
    found = shutil.which(Path(settings.llama_server or "llama-server").expanduser())
    chosen = settings.sources.get("config_file") in ("flag", "environment")
    # Only a config file that the user chose is passed on.
    config = ("--config", str(settings.config_file.absolute())) if chosen else ()
    home_variable = (("AUTOSPEC_HOME", str(settings.home.absolute())),) if settings.home else ()
    variables = (*home_variable, *folder_variables(os.environ), *gpu_variables(os.environ))
    definition = Definition(
        program=(*_program(Path(sys.executable)), *DAEMON_ARGUMENTS, *config),
        home=home,
        log=settings.log_dir / "daemon.log",
        path=service_path(sys.platform, home, found),
        variables=variables,
        version=autospec.__version__,
    )
    return Service(supervisor, definition)


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """The environment of a service instead of this shell's, as far as folders and settings go: platformdirs reads it itself."""
    before = dict(os.environ)
    try:
        for name in before:
            if name in _FOLDERS or name.startswith("AUTOSPEC_"):
                del os.environ[name]
        os.environ.update(variables)
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def refuse_root(uid: int, environ: Mapping[str, str]) -> None:
    """Refuse to install the service for root.

    Raises:
        ServiceError: The user is root.
    """
    if uid != 0:
        return
    user = environ.get("SUDO_USER", "")
    who = f"Run this as {user}, without sudo" if user else "Run this as the user whose models it should serve"
    raise ServiceError(
        "The service must not run as root: it would have root's rights, use root's models and settings, "
        "and create cache files that no user can change.",
        f"{who}; in a container, run `autospec daemon --proxy` under your own supervisor.",
    )


def unseen_variables(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Settings in this shell's environment that the service will not get."""
    return tuple(key.variable for key in KEYS if environ.get(key.variable) and key.variable not in _CARRIED)


def folder_variables(environ: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """The variables of this shell that name folders, with absolute paths: supervisors do not expand ``~``."""
    return tuple(
        (name, str(Path(environ[name]).expanduser().absolute())) for name in _FOLDERS if environ.get(name)
    )


def gpu_variables(environ: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """The variables of this shell that choose GPUs and libraries, as they are: an empty one may hide all GPUs."""
    return tuple((name, environ[name]) for name in _GPU_VARIABLES if name in environ)


def private_paths(paths: Iterable[Path], home: Path) -> tuple[Path, ...]:
    """Those of the paths, with links followed, that macOS keeps from a background service until the user allows it."""
    private = [home.resolve() / name for name in _PRIVATE] + [Path("/Volumes")]
    return tuple(path for path in paths if any(path.resolve().is_relative_to(folder) for folder in private))


def privacy_warnings(
    settings: Settings, definition: Definition, system: str = sys.platform
) -> tuple[str, ...]:
    """What the service could not read on a Mac, one sentence each: its program, its files, folders of models."""
    if system != "darwin":
        return ()
    program = Path(definition.program[0])
    needed = {
        "the program": (program, Path(sys.prefix), Path(autospec.__file__)),
        "autospec's files": (settings.config_file, settings.state_dir),
        "models": tuple(
            place.path
            for place in places(os.environ, definition.home, system, settings.model_dirs)
            if place.path.exists()
        ),
    }
    return tuple(
        f"the service may not be allowed to read {what} in {path}. {PRIVACY_HINT}"
        for what, paths in needed.items()
        for path in private_paths(paths, definition.home)[:1]
    )


def service_path(system: str, home: Path, llama_server: str | None) -> str:
    """``PATH`` for the daemon: the folder of the llama-server found in this shell, then the usual folders."""
    found = (str(Path(llama_server).absolute().parent),) if llama_server else ()
    folders = (*found, str(home / ".local" / "bin"), *_PLACES[system], *_SYSTEM)
    return os.pathsep.join(dict.fromkeys(folders))


def _supervisor(system: str, home: Path, environ: Mapping[str, str]) -> Launchd | Systemd:
    if system == "darwin":
        return Launchd(os.getuid(), home, (launchd_dir() / f"{LABEL}.plist").read_bytes())
    if system == "linux":
        # systemd.unit(5): an XDG_CONFIG_HOME that is not absolute does not count.
        configured = Path(environ.get("XDG_CONFIG_HOME", ""))
        config_home = configured if configured.is_absolute() else home / ".config"
        return Systemd(config_home, (launchd_dir() / UNIT).read_text(encoding="utf-8"))
    raise ServiceError(
        f"The service is not available on {system}, only on macOS (launchd) and Linux (systemd).",
        "Run `autospec daemon --proxy` under your own supervisor.",
    )


def _program(python: Path) -> tuple[str, ...]:
    """The installed program, whose name supervisors and activity monitors show, or else the module."""
    # Links are not followed: a virtual environment's link leads to a Python without autospec.
    script = python.absolute().with_name("autospec")
    if os.access(script, os.X_OK):
        return (str(script),)
    # -P: an autospec.py in the working folder (the home folder) must not be imported.
    return str(python.absolute()), "-P", "-m", "autospec"
