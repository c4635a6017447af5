"""`autospec daemon`: tunes the models that are used while the machine is idle; its status in words."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from autospec.cli.shell import Shell, command_options

if TYPE_CHECKING:
    from collections.abc import Callable

    from autospec.daemon.policy import RunDecision
    from autospec.daemon.probes import ClientActivity
    from autospec.settings import Settings

__all__ = ["command", "glance", "status_lines"]


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
        from autospec.service.launchd import kept_short

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
    # Whoever has just logged in is at the machine. With --once there is no time to watch it.
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
        lines.append(f"  Its proxy does not run: {child['last_end'] or 'it is starting'}.")
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

    Args:
        settings: The user's.
        other_load: Cores that other programs use; measuring it takes time that the caller has spent.
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
