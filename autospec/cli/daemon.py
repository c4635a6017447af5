"""`autospec daemon`: tunes the models that are used while the machine is idle."""

from __future__ import annotations

import click

from autospec.cli.shell import Shell, command_options

__all__ = ["command"]


@click.command()
@click.option("--proxy/--no-proxy", default=True, help="Also run the proxy. [default: yes]")
@click.option("--once", is_flag=True, help="Do the most valuable step if the machine is idle, then exit.")
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
      autospec daemon --once --no-proxy
    """  # noqa: D301 - click needs the backspace itself
    if status:
        from autospec.daemon.status import status_lines
        from autospec.service.control import ask_status

        document = ask_status(shell.settings.state_dir)
        if shell.json:
            shell.emit(document)
        else:
            shell.out("\n".join(status_lines(document)))
        return None
    import os
    import sys

    from autospec.daemon.loop import Daemon
    from autospec.daemon.proxy_child import ProxyChild, proxy_command
    from autospec.daemon.work import Clock
    from autospec.service.control import notifier_from

    settings = shell.settings
    if sys.platform == "darwin":
        from autospec.service.launchd import shorten_log

        shorten_log(settings.log_dir / "daemon.log")
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
    daemon = Daemon(
        settings, shell.config, once=once, proxy=child, notifier=notifier, clock=clock, tell=shell.say
    )
    if not once:
        shell.say(
            "The daemon is running. `autospec daemon --status` shows what it does and why. Ctrl-C ends it."
        )
    code = daemon.run()
    if shell.json:
        shell.emit(daemon.last_words())
    return code
