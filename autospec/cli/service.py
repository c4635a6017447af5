"""`autospec service`: the daemon under launchd or systemd."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from autospec.cli.shell import Shell, command_options

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from autospec.service.lifecycle import Service

__all__ = ["command"]

_LAST_LINES = 5
_UP = ("The service is running.", "The service is already running.")


@click.group()
def command() -> None:
    """Run the daemon as a service of this user: a launchd agent on macOS, a systemd user unit on Linux.

    \b
      autospec service install --dry-run     show the file and the commands
      autospec service install               install or upgrade, start, and wait until it is up
      autospec service status
      autospec service logs -f
      autospec service uninstall             remove everything except the data
    """  # noqa: D301 - click needs the backspace itself


@command.command()
@click.option("--dry-run", is_flag=True, help="Show the file and the commands; change nothing.")
@command_options
def install(shell: Shell, *, dry_run: bool) -> None:
    """Install or upgrade the service, start it and wait until it is up.

    If nothing has changed, the running service is left alone.
    """
    import os

    from autospec.service.lifecycle import privacy_warnings, refuse_root, unseen_variables

    if not dry_run:
        refuse_root(os.geteuid(), os.environ)
    service = _service(shell)
    if unseen := unseen_variables(os.environ):
        shell.warn(
            f"the service does not get {', '.join(unseen)} from this shell; put them into {shell.settings.config_file}."
        )
    for sentence in privacy_warnings(shell.settings, service.definition):
        shell.warn(sentence)
    if dry_run:
        _show_plan(shell, service)
        return
    with _log_shown(shell):
        changed = service.install()
    _tell(shell, service, "install", changed, _UP)
    _say_linger(shell, service)
    if changed and service.supervisor.name == "launchd":
        shell.say(
            "macOS shows it under Background Items; it must stay allowed in System Settings, General, Login Items."
        )


@command.command()
@command_options
def uninstall(shell: Shell) -> None:
    """Stop the service and remove its file and its log. Recommendations, studies and settings stay."""
    service = _service(shell)
    words = "The service is removed.", "The service was not installed."
    folders = _state_dirs(shell, service)
    _tell_ended(shell, service, "uninstall", service.uninstall(), words, state_dirs=folders)


@command.command()
@command_options
def start(shell: Shell) -> None:
    """Start the installed service and wait until it is up."""
    service = _service(shell)
    with _log_shown(shell):
        changed = service.start()
    _tell(shell, service, "start", changed, _UP)


@command.command()
@command_options
def stop(shell: Shell) -> None:
    """Stop the service until the next start or login."""
    service = _service(shell)
    words = "The service is stopped.", "The service was not running."
    folders = _state_dirs(shell, service)
    _tell_ended(shell, service, "stop", service.stop(), words, state_dirs=folders)


@command.command()
@command_options
def status(shell: Shell) -> None:
    """Show whether the service is installed and running."""
    service = _service(shell)
    now = service.status()
    file = service.supervisor.file
    installed = file.exists()
    current = installed and service.current()
    if shell.json:
        shell.emit(
            {
                "schema": 1,
                "supervisor": service.supervisor.name,
                "file": str(file),
                "installed": installed,
                "current": current,
                **now.to_json(),
            }
        )
        return
    if not installed and not now.loaded:
        shell.out(f"not installed ({service.supervisor.name}); install it with `autospec service install`")
        return
    words = [str(now.state)]
    if now.pid is not None:
        words.append(f"process {now.pid}")
    if now.last_exit:
        words.append(f"last exit: {now.last_exit}")
    if installed and not now.enabled:
        words.append("not started at login")
    shell.out(
        f"{', '.join(words)} ({service.supervisor.name}: {file if installed else 'its file is missing'})"
    )
    if installed:
        _show_differences(shell, service)
    if service.has_ended(now):
        shell.out("The last lines of its log:")
        for line in service.tail(_LAST_LINES):
            shell.out(f"  {line}")


@command.command()
@click.option("-f", "--follow", is_flag=True, help="Keep printing new lines.")
@click.option(
    "-n", "--lines", type=click.IntRange(min=0), default=50, show_default=True, help="Number of lines."
)
@command_options
def logs(shell: Shell, *, follow: bool, lines: int) -> int | None:
    """Print the last lines of the daemon's log."""
    import subprocess

    from autospec.errors import ServiceError, UsageError

    service = _service(shell)
    if shell.json:
        if follow:
            raise UsageError("--json and --follow cannot be used together.", "Leave one out.")
        shell.emit({"schema": 1, "lines": list(service.tail(lines))})
        return None
    if service.supervisor.name == "launchd" and not service.definition.log.exists():
        raise ServiceError(
            f"The log {service.definition.log} does not exist yet.", "Run `autospec service install`."
        )
    argv = service.supervisor.logs(service.definition, lines=lines, follow=follow)
    try:
        return subprocess.run(argv, check=False).returncode
    except FileNotFoundError:
        raise ServiceError(
            f"{argv[0]} is not installed.", "Look where your supervisor keeps its logs."
        ) from None


def _show_differences(shell: Shell, service: Service) -> None:
    """Show the environment of the installed service, and whether an installation would change something."""
    carried = service.variables()
    for name, value in carried.items():
        shell.out(f"  {name}={value}")
    if carried != dict(service.definition.variables):
        shell.out(
            "This shell names other folders or GPUs than the service has; `autospec service install` updates it."
        )
    elif not service.current():
        shell.out("Another version of autospec installed it; `autospec service install` upgrades it.")


def _service(shell: Shell) -> Service:
    from autospec.service.lifecycle import service_here

    return service_here(shell.settings)


def _show_plan(shell: Shell, service: Service) -> None:
    import shlex

    plan = service.plan()
    file = service.supervisor.file
    commands = [list(step.argv) for step in plan.steps]
    if shell.json:
        shell.emit(
            {"schema": 1, "file": str(file), "changed": plan.changed, "text": plan.text, "commands": commands}
        )
        return
    shell.out(f"{'Would write' if plan.changed else 'Would leave unchanged'}: {file}")
    shell.out(plan.text if plan.changed else "")
    shell.out("Would run:" if commands else "Would run no command: the service is running.")
    for argv in commands:
        shell.out(f"  {shlex.join(argv)}")


def _tell(
    shell: Shell, service: Service, action: str, changed: bool, words: tuple[str, str], **more: object
) -> None:
    if shell.json:
        document = {"schema": 1, "action": action, "changed": changed, "file": str(service.supervisor.file)}
        shell.emit({**document, **more})
    done, nothing = words
    shell.out(done if changed else nothing)


def _state_dirs(shell: Shell, service: Service) -> tuple[Path, ...]:
    """The state folders of this shell and of the installed service, which another shell may have installed."""
    installed = service.state_dir()
    return tuple(dict.fromkeys([shell.settings.state_dir, *([installed] if installed else [])]))


def _tell_ended(
    shell: Shell,
    service: Service,
    action: str,
    changed: bool,
    words: tuple[str, str],
    *,
    state_dirs: tuple[Path, ...],
) -> None:
    """Tell that it has ended, and end the proxy of a daemon that had crashed: no supervisor knows of it."""
    from autospec.daemon.children import end_left_proxy

    left = [pid for folder in state_dirs if (pid := end_left_proxy(folder)) is not None]
    _tell(shell, service, action, changed, words, ended_proxy=left[0] if left else None)
    for pid in left:
        shell.out(f"The proxy that a crashed daemon had left (process {pid}) is ended, too.")


@contextmanager
def _log_shown(shell: Shell) -> Iterator[None]:
    """Show the end of the daemon's log before the error that it did not come up."""
    from autospec.errors import ServiceError

    try:
        yield
    except ServiceError as error:
        for line in error.log_tail:
            shell.warn(line)
        raise


def _say_linger(shell: Shell, service: Service) -> None:
    """Say that the user's systemd ends at logout, if it does."""
    import getpass

    from autospec.service.lifecycle import run_command

    if service.supervisor.name != "systemd":
        return
    said = run_command(["loginctl", "show-user", "--property=Linger", "--value", getpass.getuser()])
    if said.code == 0 and said.out.strip() == "no":
        shell.say(
            "It runs only while you are logged in. `loginctl enable-linger` keeps it running after logout."
        )
