"""Tell systemd how the daemon is: sd_notify(3), one datagram.

Our own, because the protocol is one datagram: systemd-python is a C extension that needs systemd's headers, and sdnotify
is as long as this and knows nothing of the watchdog's interval.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Notifier", "notifier_from"]


@dataclass(frozen=True, slots=True)
class Notifier:
    """The way to the supervisor; says nothing where there is none (launchd, a terminal).

    Attributes:
        address: The socket's, a path or an abstract name that begins with a zero byte; empty for none.
        watchdog_s: The supervisor kills a daemon that was silent for so long; ``None`` if it does not watch.
    """

    address: str = ""
    watchdog_s: float | None = None

    @property
    def alive_every_s(self) -> float | None:
        """How often to call `alive`: half of the limit, as sd_watchdog_enabled(3) advises."""
        return None if self.watchdog_s is None else self.watchdog_s / 2

    def ready(self) -> None:
        """The daemon answers now."""
        self._send("READY=1")

    def alive(self) -> None:
        """The daemon's loop turns."""
        self._send("WATCHDOG=1")

    def stopping(self) -> None:
        """The daemon is ending by itself."""
        self._send("STOPPING=1")

    def doing(self, what: str) -> None:
        """One line for `systemctl status`."""
        self._send(f"STATUS={' '.join(what.split())}")

    def _send(self, state: str) -> None:
        if not self.address:
            return
        # A supervisor that went away, or does not read, must not end or hold up the daemon: hence not blocking.
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out,
        ):
            out.setblocking(False)
            out.sendto(state.encode(), self.address)


def notifier_from(environ: Mapping[str, str] | None = None, pid: int | None = None) -> Notifier:
    """The notifier that the environment asks for.

    The servers that the daemon starts must not have ``NOTIFY_SOCKET``: start them with a cleaned environment.

    Args:
        environ: The environment; the process's own by default.
        pid: Of this process; ``WATCHDOG_PID`` says for whom the watchdog is meant.
    """
    environ = os.environ if environ is None else environ
    address = environ.get("NOTIFY_SOCKET", "")
    # "@" stands for the zero byte of an abstract name. vsock:… is for virtual machines.
    if address.startswith("@"):
        address = f"\0{address[1:]}"
    elif not address.startswith("/"):
        return Notifier()
    microseconds = environ.get("WATCHDOG_USEC", "")
    meant_for = environ.get("WATCHDOG_PID", "")
    mine = not meant_for or meant_for == str(os.getpid() if pid is None else pid)
    watched = mine and microseconds.isdecimal() and int(microseconds) > 0
    return Notifier(address, int(microseconds) / 1e6 if watched else None)
