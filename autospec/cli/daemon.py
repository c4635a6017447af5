"""`autospec daemon` and `autospec service`: tunes the models that are used while the machine is idle; alone, or under launchd or systemd."""

from __future__ import annotations

from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from autospec.cli.shell import Shell, command_options

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from autospec.daemon.policy import RunDecision
    from autospec.daemon.probes import ClientActivity
    from autospec.service.lifecycle import Service
    from autospec.settings import Settings

__all__ = ["command", "glance", "service_command", "status_lines"]


@click.command()
@click.option("--proxy/--no-proxy", default=True, help="Also run the proxy. [default: yes]")
@click.option(
    "--once",
    is_flag=True,
    help="Do the most valuable step if the machine is idle, then exit; without the proxy.",
)
@click.option("--status", is_flag=True, help="Show what the running daemon is doing and why.")
@command_options
def command(shell: Shell, *, proxy: bool, once: bool, status: bool) -> int | None:
    """Tune the models that you use while the machine is idle.

    Measures in small steps while no request is served and the machine is on mains power, cool and otherwise idle, within the
    hours and the daily budget of the settings. A request to the proxy stops a step within a second.

    \b
      autospec daemon
      autospec daemon --no-proxy
      autospec daemon --status
      autospec daemon --once
    """  # noqa: D301 - click needs the backspace itself
    if status:
        from autospec.service.control import ask_status

        document = ask_status(shell.settings.state_dir)
        if shell.json:
            shell.emit(document)
        else:
            shell.out("\n".join(status_lines(document)))
        return None
    import os
    import sys

    from autospec.daemon.children import ProxyChild, proxy_command
    from autospec.daemon.loop import Daemon
    from autospec.daemon.probes import Probes
    from autospec.daemon.work import Clock
    from autospec.hardware.user_input import UserInput
    from autospec.service.control import notifier_from

    settings = shell.settings
    tell: Callable[[str], None] = shell.say
    if sys.platform == "darwin":
        from autospec.service.managers import kept_short

        tell = kept_short(settings.log_dir / "daemon.log", shell.say)
    notifier = notifier_from()
    # Processes that the daemon starts must not report to its supervisor.
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
        os.environ.pop(name, None)
    clock = Clock()
    child = None
    if proxy and not once:
        child = ProxyChild(
            proxy_command(shell.config), settings.state_dir, settings.log_dir / "proxy.log", clock
        )
    # A person who has just logged in is at the machine. With --once there is no time to watch it.
    probes = Probes(clock, UserInput(clock.monotonic, None if once else clock.monotonic()))
    daemon = Daemon(
        settings,
        shell.config,
        once=once,
        proxy=child,
        notifier=notifier,
        clock=clock,
        tell=tell,
        probes=probes,
    )
    if not once:
        tell("The daemon is running. `autospec daemon --status` shows what it does and why. Ctrl-C ends it.")
    code = daemon.run()
    if shell.json:
        shell.emit(daemon.last_words())
    return code


_QUEUE_SHOWN = 5


def status_lines(document: dict[str, Any]) -> list[str]:
    """A status document in words. It may be of another version: what is missing is left out."""
    from autospec.daemon.work import ALL_TYPES, LaterReason, effort_words
    from autospec.formats import counted, duration

    state = document.get("state", "unknown")
    lines = [f"The daemon (process {document.get('pid')}) is {state}."]
    if tuning := document.get("tuning"):
        lines += [
            f"  It measures {tuning['model']} on {_prompts(tuning)}.",
            f"  It has taken {tuning['for_s']:.0f} of at most {tuning['cost_s']:.0f} s.",
            f"  Reason: {tuning['why']}.",
            "  A request to the proxy stops it within a second.",
        ]
    else:
        lines.append(f"  Reason: {document.get('why')}.")
    lines += [f"  Problem: {text}" for text in document.get("trouble", [])]
    lines += [f"  Note: {text}" for text in document.get("notes", [])]
    if checks := document.get("checks"):
        lines.append("May it measure?")
        lines += [f"  {'yes' if c['allows'] else 'no ':3}  {c['name']:8} {c['words']}" for c in checks]
    queue = document.get("queue", [])
    lines.append(
        f"Next: {counted(len(queue), 'prompt type')} to measure."
        if queue
        else "Next: nothing is worth measuring."
    )
    lines += [
        f"  {item['model']}, {item['prompt_type'] or ALL_TYPES}: {item['why']}"
        for item in queue[:_QUEUE_SHOWN]
    ]
    later = document.get("later", {})
    reasons = document.get("later_reasons", {})
    open_cells = {key: why for key, why in later.items() if reasons.get(key) != LaterReason.PROVEN}
    if later:
        proven = len(later) - len(open_cells)
        lines.append(f"  {f'{proven} proven, ' if reasons else ''}{len(open_cells)} not measured for now.")
    lines += [f"    {effort_words(key)}: {why}" for key, why in sorted(open_cells.items())[:_QUEUE_SHOWN]]
    if len(open_cells) > _QUEUE_SHOWN:
        lines.append(f"    … and {len(open_cells) - _QUEUE_SHOWN} more (--json has them all)")
    if gaps := document.get("gaps"):
        lines.append("Slower than proven:")
        lines += [f"  {text}" for text in gaps[:_QUEUE_SHOWN]]
    lines.append(
        f"Today it has measured for {duration(document.get('spent_today_s', 0))} of {document.get('budget')}."
    )
    proxies = document.get("proxies", [])
    lines.append(
        f"{len(proxies)} {'proxy is' if len(proxies) == 1 else 'proxies are'} connected,"
        f" {'serving' if any(p['busy'] for p in proxies) else 'idle'}."
        if proxies
        else "No proxy is connected."
    )
    if (child := document.get("proxy_child")) and child.get("pid") is None:
        lines.append(f"  Its proxy is not running: {child['last_end'] or 'it is starting'}.")
    if events := document.get("events"):
        lines.append("Recent events:")
        lines += [
            f"  {datetime.fromtimestamp(e['at']).astimezone():%H:%M:%S} {e['what']}"
            for e in events[-_QUEUE_SHOWN:]
        ]
    return lines


def _prompts(item: dict[str, Any]) -> str:
    from autospec.daemon.work import ALL_TYPES

    return f"{item['prompt_type']} prompts" if item["prompt_type"] else f"prompts of {ALL_TYPES} together"


def glance(settings: Settings, other_load: float | None) -> RunDecision:
    """For `autospec doctor`: read every signal once, and judge whether a daemon would measure now.

    `other_load`: cores that other programs use; the caller has spent the time to measure it.
    """
    from contextlib import closing
    from dataclasses import replace

    from autospec.daemon.policy import decide, policy_of
    from autospec.daemon.probes import Probes
    from autospec.daemon.work import Clock, Memory
    from autospec.hardware.user_input import UserInput

    clock = Clock()
    spent_s = Memory.load(settings.state_dir / "daemon.json").spent_today_s(clock.today())
    with closing(UserInput(clock.monotonic)) as last_input:
        signals = Probes(clock, last_input).read(_traffic(settings), spent_s)
    return decide(replace(signals, other_load=other_load), policy_of(settings))


def _traffic(settings: Settings) -> ClientActivity:
    """What the running daemon hears from proxies."""
    from autospec.daemon.probes import ClientActivity
    from autospec.errors import NothingKnownError
    from autospec.service.control import ask_status

    try:
        proxies = ask_status(settings.state_dir).get("proxies", [])
    except NothingKnownError:
        return ClientActivity()
    return ClientActivity(sum(bool(p["busy"]) for p in proxies)) if proxies else ClientActivity()


_LAST_LINES = 5
_UP = ("The service is running.", "The service is already running.")


@click.group()
def service_command() -> None:
    """Run the daemon as a service of this user: a launchd agent on macOS, a systemd user unit on Linux.

    \b
      autospec service install --dry-run     show the file and the commands
      autospec service install               install or upgrade, start, and wait until it is up
      autospec service status
      autospec service logs -f
      autospec service uninstall             remove everything except the data
    """  # noqa: D301 - click needs the backspace itself


@service_command.command()
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


@service_command.command()
@command_options
def uninstall(shell: Shell) -> None:
    """Stop the service and remove its file and its log. Recommendations, studies and settings stay."""
    words = "The service is removed.", "The service was not installed."
    _end(shell, "uninstall", lambda service: service.uninstall(), words)


@service_command.command()
@command_options
def start(shell: Shell) -> None:
    """Start the installed service and wait until it is up."""
    service = _service(shell)
    with _log_shown(shell):
        changed = service.start()
    _tell(shell, service, "start", changed, _UP)


@service_command.command()
@command_options
def stop(shell: Shell) -> None:
    """Stop the service until the next start or login."""
    words = "The service is stopped.", "The service was not running."
    _end(shell, "stop", lambda service: service.stop(), words)


@service_command.command()
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


@service_command.command()
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


def _end(shell: Shell, action: str, end: Callable[[Service], bool], words: tuple[str, str]) -> None:
    """End the service, and the proxy of a daemon that had crashed: no supervisor knows of it."""
    from autospec.daemon.children import end_left_proxy

    service = _service(shell)
    # Another shell, with another state folder, may have installed it.
    folders = dict.fromkeys([shell.settings.state_dir, service.state_dir()])
    changed = end(service)
    left = [pid for folder in folders if folder and (pid := end_left_proxy(folder)) is not None]
    _tell(shell, service, action, changed, words, ended_proxy=left[0] if left else None)
    for pid in left:
        shell.out(f"The proxy that a crashed daemon left behind (process {pid}) is ended, too.")


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
