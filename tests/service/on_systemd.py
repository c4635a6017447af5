"""Runs within `user_systemd` and puts the service through its life; prints what was seen as JSON."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from autospec.errors import ServiceError
from autospec.files import launchd_dir
from autospec.service.lifecycle import Service
from autospec.service.managers import UNIT, Definition, ServiceState, ServiceStatus, Systemd

HOME = Path(os.environ["HOME"])
# As a user would shorten it: with a drop-in, which no upgrade takes away.
SHORT = "[Service]\nRestartSec=100ms\nWatchdogSec=2\nTimeoutStopSec=1\n"


def service(version: str) -> Service:
    """The service of a version, with the stand-in for a daemon."""
    script = str(Path(__file__).with_name("standin_daemon.py"))
    # A word with all that systemd would read in its own way, which the daemon must get as it is.
    definition = Definition(
        program=(sys.executable, script, str(HOME)),
        home=HOME,
        log=HOME / "daemon.log",
        path="/usr/bin:/bin",
        variables=(("PYTHONPATH", os.environ["PYTHONPATH"]), ("ODD", 'a b%n "c" $HOME \\')),
        version=version,
    )
    template = (launchd_dir() / UNIT).read_text(encoding="utf-8")
    return Service(Systemd(HOME / ".config", template), definition)


def until(condition: Callable[[], Any], what: str) -> None:
    """Wait for something."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.05)


def proxy_pid() -> int:
    """The stand-in's proxy."""
    return int((HOME / "proxy.pid").read_text())


def ended(pid: int) -> bool:
    """True if the process is gone or a zombie."""
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def another(status: Callable[[], ServiceStatus], pid: int) -> bool:
    """True if a daemon runs that is not process `pid`."""
    now = status()
    return now.state is ServiceState.RUNNING and now.pid not in (None, pid)


def main() -> None:
    """Install, install again, upgrade, kill, freeze, stop, start, break, uninstall twice."""
    seen: dict[str, Any] = {}
    first = service("1.0")
    drop_in = first.supervisor.file.with_name(f"{UNIT}.d") / "short.conf"
    drop_in.parent.mkdir(parents=True)
    drop_in.write_text(SHORT)

    seen["fresh"] = first.install()
    status = first.status()
    seen["state"], seen["enabled"], pid = status.state, status.enabled, status.pid or 0
    seen["odd"] = psutil.Process(pid).environ()["ODD"]
    seen["niceness"] = psutil.Process(proxy_pid()).nice()

    seen["again"] = first.install()
    seen["same process"] = first.status().pid == pid

    seen["upgrade"] = service("2.0").install()
    second = service("2.0")
    upgraded = second.status().pid or 0
    seen["restarted"] = upgraded != pid

    proxy = proxy_pid()
    os.kill(upgraded, signal.SIGKILL)
    until(lambda: another(second.status, upgraded), "it came back after SIGKILL")
    seen["proxy of the killed one lives"] = not ended(proxy)
    frozen = second.status().pid or 0
    os.kill(frozen, signal.SIGSTOP)
    until(lambda: another(second.status, frozen), "the watchdog had replaced the frozen one")
    seen["proxy of the frozen one lives"] = not ended(proxy)

    proxy = proxy_pid()
    seen["stop"] = second.stop()
    seen["stopped"] = second.status().state
    until(lambda: ended(proxy), "the proxy of the stopped one ended")
    seen["start"] = second.start()
    proxy = proxy_pid()
    os.kill(second.status().pid or 0, signal.SIGSTOP)
    second.stop()
    until(lambda: ended(proxy), "the proxy of one that had to be killed ended")

    (HOME / "broken").touch()
    try:
        second.start()
    except ServiceError as error:
        seen["broken"] = error.message

    seen["uninstall"] = second.uninstall()
    seen["left"] = [str(p.relative_to(HOME)) for p in (HOME / ".config").rglob("*") if not p.is_dir()]
    seen["after"] = second.status().state
    seen["uninstall again"] = second.uninstall()
    print(json.dumps(seen))  # noqa: T201 - read by the test


if __name__ == "__main__":
    main()
