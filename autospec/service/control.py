"""The control interface between daemon and proxy: a unix domain socket, one JSON object a line, both ways.

The daemon listens; a proxy connects and stays connected, a newcomer's `autospec daemon --status` asks and leaves.

=============================================  ==========================================================
from a client                                  meaning
=============================================  ==========================================================
``{"event": "hello", "role": "proxy", "pid"}``  this connection is a proxy's; no request is being served
``{"event": "busy"}``                           a request began and none was being served
``{"event": "idle"}``                           the last request ended
``{"ask": "status"}``                           answered with the status document
=============================================  ==========================================================

=============================================  ==========================================================
from the daemon                                meaning
=============================================  ==========================================================
``{"event": "tuning", "what", "why"}``          it measures; a request ends that within a second
``{"event": "yielded"}``                        the measurement was stopped and its memory given back
``{"event": "resting", "why"}``                 it does not measure
=============================================  ==========================================================

Unknown events and fields are ignored, so that a proxy and a daemon of different versions get along. A connection
that closes says that its proxy is gone: no state outlives it. The socket lies in the state folder and only its owner
may use it (mode 0600).

Tell systemd how the daemon is: sd_notify(3), one datagram.

Our own, because the protocol is one datagram: systemd-python is a C extension that needs systemd's headers, and sdnotify
is as long as this and knows nothing of the watchdog's interval.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autospec.errors import NothingKnownError

__all__ = ["LINE_LIMIT_BYTES", "Notifier", "ask_status", "control_path", "decode", "encode", "notifier_from"]


# sun_path holds 104 bytes on macOS and 108 on Linux, the final zero among them.
_PATH_LIMIT_BYTES = 103
# The longest line is the status document, some tens of kilobytes; whoever sends more is no friend.
LINE_LIMIT_BYTES = 1 << 20
# The daemon answers from memory; it may be in the middle of ending a measurement.
_ANSWER_TIMEOUT_S = 5.0


def control_path(state_dir: Path) -> Path:
    """Where the socket is: in the state folder, or, where that path is too long for a socket, under a short name.

    Args:
        state_dir: The state folder of the settings.
    """
    path = state_dir / "daemon.sock"
    if len(os.fsencode(path)) <= _PATH_LIMIT_BYTES:
        return path
    digest = hashlib.sha256(os.fsencode(state_dir)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"autospec-{os.getuid()}-{digest}" / "daemon.sock"


def encode(message: dict[str, Any]) -> bytes:
    """One message as its line."""
    return json.dumps(message, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def decode(line: bytes) -> dict[str, Any]:
    """The message in a line; empty where it is none, which every reader ignores like an unknown event."""
    try:
        message = json.loads(line)
    except ValueError:
        return {}
    return message if isinstance(message, dict) else {}


def ask_status(state_dir: Path) -> dict[str, Any]:
    """Ask the running daemon what it is doing and why.

    Raises:
        NothingKnownError: No daemon listens there, or it does not answer.
    """
    path = control_path(state_dir)
    answer = b""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(_ANSWER_TIMEOUT_S)
            client.connect(str(path))
            client.sendall(encode({"ask": "status"}))
            while not answer.endswith(b"\n") and (part := client.recv(65536)):
                answer += part
    except OSError as error:
        # Nobody made the socket, or whoever did has ended: the usual cases, which need no words of the system.
        ended = isinstance(error, FileNotFoundError | ConnectionRefusedError)
        why = "" if ended else f": {error.strerror or error}"
        raise NothingKnownError(
            f"No daemon is running for {state_dir}{why}.",
            "Start it with `autospec daemon`, or for good with `autospec service install`.",
        ) from None
    if not (document := decode(answer)):
        raise NothingKnownError("The daemon closed the connection without an answer.", "Ask again.")
    return document


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
