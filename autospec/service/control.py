"""The control interface between daemon and proxy: a unix domain socket, one JSON object a line, both ways.

The daemon listens. A proxy connects and stays connected; `autospec daemon --status` asks and leaves.

=============================================  ==========================================================
from a client                                  meaning
=============================================  ==========================================================
``{"event": "hello", "role": "proxy", "pid"}``  this connection is a proxy's; no request is being served
``{"event": "busy"}``                           a request or a launch began, the first one at this time
``{"event": "idle"}``                           the last one ended
``{"ask": "status"}``                           answered with the status document
``{"ask": "tune", "model"}``                    a person wants this model measured next; answered with
                                               ``{"event": "asked", "model", "why"}``
=============================================  ==========================================================

=============================================  ==========================================================
from the daemon                                meaning
=============================================  ==========================================================
``{"event": "tuning", "what", "why"}``          it measures; a request ends that within a second
``{"event": "yielded"}``                        the measurement was stopped and its memory freed
``{"event": "resting", "why"}``                 it does not measure
=============================================  ==========================================================

Unknown events and fields are ignored, so a proxy and a daemon of different versions work together. A closed connection
means that its proxy is gone: no state survives it. The socket is in the state folder, for its owner alone (mode 0600).

`Listening` is the daemon's end. It has no thread: the selector of the daemon's loop reports messages.

`Notifier` reports to systemd with sd_notify(3), one datagram. systemd-python is a C extension that needs systemd's headers,
and sdnotify is as long as this and does not know the watchdog's interval.

`run_hook` runs the user's hook (setting ``on_change``).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import selectors
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from autospec.errors import BusyError, NothingKnownError, SettingsError
from autospec.files import user_temp_dir

__all__ = [
    "LINE_LIMIT_BYTES",
    "Listening",
    "Notifier",
    "Peer",
    "ask_daemon",
    "ask_status",
    "control_path",
    "daemon_listens",
    "decode",
    "encode",
    "notifier_from",
    "run_hook",
]


# sun_path holds 104 bytes on macOS and 108 on Linux, the final zero among them.
_PATH_LIMIT_BYTES = 103
# The longest line is the status document, some tens of kilobytes. A peer that sends more is dropped, and so is one that has
# not read this much of what it was told.
LINE_LIMIT_BYTES = 1 << 20
# The daemon answers from memory, but may be stopping a measurement.
_ANSWER_TIMEOUT_S = 5.0
_PROBE_TIMEOUT_S = 1.0


def control_path(state_dir: Path) -> Path:
    """The socket: in the state folder, or under a short name where that path is too long for a socket."""
    path = state_dir / "daemon.sock"
    if len(os.fsencode(path)) <= _PATH_LIMIT_BYTES:
        return path
    digest = hashlib.sha256(os.fsencode(state_dir)).hexdigest()[:16]
    return user_temp_dir() / f"autospec-{os.getuid()}-{digest}" / "daemon.sock"


def encode(message: dict[str, Any]) -> bytes:
    """A message as its line."""
    return json.dumps(message, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def decode(line: bytes) -> dict[str, Any]:
    """The message in a line; empty if it is none, which readers ignore like an unknown event."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return message if isinstance(message, dict) else {}


def daemon_listens(state_dir: Path) -> bool:
    """True if a daemon has the socket, also one that hangs."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_TIMEOUT_S)
        try:
            probe.connect(str(control_path(state_dir)))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:  # its queue is full, because it hangs
            return True
    return True


def ask_status(state_dir: Path) -> dict[str, Any]:
    """Ask the running daemon for its status document; raises like `ask_daemon`."""
    return ask_daemon(state_dir, {"ask": "status"})


def ask_daemon(state_dir: Path, question: dict[str, Any]) -> dict[str, Any]:
    """Ask the running daemon something, and return its answer; blocks for some seconds at most.

    Raises:
        NothingKnownError: No daemon listens there, or it does not answer.
    """
    path = control_path(state_dir)
    answer = b""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(_ANSWER_TIMEOUT_S)
            client.connect(str(path))
            client.sendall(encode(question))
            while not answer.endswith(b"\n") and (part := client.recv(65536)):
                answer += part
    except TimeoutError:
        raise NothingKnownError(
            f"The daemon for {state_dir} runs, but it did not answer within {_ANSWER_TIMEOUT_S:.0f} s.",
            "Try again.",
        ) from None
    except OSError as error:
        # No daemon has run, or it has ended: in these usual cases the system's error adds nothing.
        ended = isinstance(error, FileNotFoundError | ConnectionRefusedError)
        why = "" if ended else f": {error.strerror or error}"
        raise NothingKnownError(
            f"No daemon is running for {state_dir}{why}.",
            "Start it with `autospec daemon`, or install it with `autospec service install`.",
        ) from None
    if not (document := decode(answer)):
        raise NothingKnownError("The daemon closed the connection without an answer.", "Try again.")
    return document


@dataclass(frozen=True, slots=True)
class Notifier:
    """Reports to the supervisor; does nothing where there is none (launchd, a terminal).

    Attributes:
        address: The socket's path, or an abstract name that begins with a zero byte; empty for none.
        watchdog_s: The supervisor kills a daemon that is silent for this long; ``None`` if it does not watch.
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
        """The daemon's loop still runs."""
        self._send("WATCHDOG=1")

    def stopping(self) -> None:
        """The daemon is stopping."""
        self._send("STOPPING=1")

    def doing(self, what: str) -> None:
        """One line for `systemctl status`."""
        self._send(f"STATUS={' '.join(what.split())}")

    def _send(self, state: str) -> None:
        if not self.address:
            return
        # Not blocking: a supervisor that is gone or does not read must not stop or delay the daemon.
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out,
        ):
            out.setblocking(False)
            out.sendto(state.encode(errors="replace"), self.address)


def notifier_from(environ: Mapping[str, str] | None = None, pid: int | None = None) -> Notifier:
    """The notifier that the environment asks for. Processes that the daemon starts must not inherit ``NOTIFY_SOCKET``."""
    environ = os.environ if environ is None else environ
    address = environ.get("NOTIFY_SOCKET", "")
    # "@" is the zero byte of an abstract name. vsock:… is for virtual machines.
    if address.startswith("@"):
        address = f"\0{address[1:]}"
    elif not address.startswith("/"):
        return Notifier()
    microseconds = environ.get("WATCHDOG_USEC", "")
    meant_for = environ.get("WATCHDOG_PID", "")
    mine = not meant_for or meant_for == str(os.getpid() if pid is None else pid)
    watched = mine and microseconds.isdecimal() and int(microseconds) > 0
    return Notifier(address, int(microseconds) / 1e6 if watched else None)


# Enough to restart a server or send a message; a longer task belongs in the background (`… &` in a script).
HOOK_TIMEOUT_S: Final = 30.0
# With these a hook could report to systemd as the daemon.
_NOT_PASSED_ON: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


def run_hook(
    command: Sequence[str],
    document: Mapping[str, Any],
    *,
    timeout_s: float = HOOK_TIMEOUT_S,
    environ: Mapping[str, str] | None = None,
) -> str:
    """Run the hook to its end, without a shell and in its own session; return a sentence for the log.

    Blocking; an event loop calls it in a thread. A hook that runs too long is killed with its children. Nothing is raised, because
    a broken hook must not stop the daemon. What it prints is dropped. `document` is of `changes_document`.
    """
    environ = os.environ if environ is None else environ
    try:
        hook = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            # No pipe: a background process of the hook would keep it open.
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={name: value for name, value in environ.items() if name not in _NOT_PASSED_ON},
        )
    except OSError as error:
        return f"The hook {command[0]} cannot be run: {error.strerror}."
    with hook:
        try:
            hook.communicate(json.dumps(document, allow_nan=False).encode(), timeout=timeout_s)
            how = _ending(hook.returncode)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(hook.pid, signal.SIGKILL)
            hook.wait()
            how = f"was killed after {timeout_s:g} s"
    return f"The hook {command[0]} {how}."


def _ending(code: int) -> str:
    return f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"


_BACKLOG = 16
_ACCEPT_PAUSE_S = 1.0


class Peer:
    """One connection of the daemon's.

    Attributes:
        connection: Its socket, which does not block.
        role: ``proxy`` once it said so.
        pid: Its process id as told.
        busy: True while it serves a request.
        lost: True if it is gone, sends nonsense or does not read: it must be dropped.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.role = ""
        self.pid = 0
        self.busy = False
        self.lost = False
        self._unread = b""
        self._unsent = bytearray()

    @property
    def owed(self) -> bool:
        """True if something is left to be sent once it has read."""
        return bool(self._unsent)

    def read(self) -> list[dict[str, Any]]:
        """The messages that have arrived."""
        try:
            part = self.connection.recv(65536)
        except BlockingIOError:
            return []
        except OSError:
            part = b""
        self._unread += part
        if not part or len(self._unread) > LINE_LIMIT_BYTES:
            self.lost = True
            return []
        *lines, self._unread = self._unread.split(b"\n")
        return [decode(line) for line in lines]

    def tell(self, message: dict[str, Any]) -> None:
        """Send a message: what a local socket does not hold (8 KiB on macOS) is sent as the peer reads."""
        if len(self._unsent) > LINE_LIMIT_BYTES:
            self.lost = True
            return
        self._unsent += encode(message)
        self.send()

    def send(self) -> None:
        """Send of what is left as much as the socket takes."""
        try:
            while self._unsent:
                del self._unsent[: self.connection.send(self._unsent)]
        except BlockingIOError:
            return
        except OSError:
            self.lost = True


class Listening:
    """Accepts connections and passes their messages to `hear`; the event ``left`` says that a proxy is gone.

    Its user calls `resume` whenever it wakes up.
    """

    def __init__(
        self,
        state_dir: Path,
        selector: selectors.BaseSelector,
        hear: Callable[[Peer, dict[str, Any]], None],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._now = now
        self._accept_at_s: float | None = None
        self._state_dir = state_dir
        self._path = control_path(state_dir)
        self._selector = selector
        self._hear = hear
        self._peers: dict[int, Peer] = {}
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._bind()
        except BaseException:
            self._socket.close()
            raise
        self._inode = self._path.stat().st_ino
        selector.register(self._socket, selectors.EVENT_READ, self._accept)

    def resume(self) -> float | None:
        """Accept again after a pause; returns the seconds that are left of it, ``None`` if there is none.

        Also listen again if the socket's file is gone: nobody could ask the daemon, and a second one could start beside it.
        """
        if not os.path.lexists(self._path):
            self._listen_again()
        if self._accept_at_s is None:
            return None
        if (left_s := self._accept_at_s - self._now()) > 0:
            return left_s
        self._accept_at_s = None
        self._selector.register(self._socket, selectors.EVENT_READ, self._accept)
        return None

    @property
    def proxies(self) -> list[Peer]:
        """The proxies that are connected."""
        return [peer for peer in self._peers.values() if peer.role == "proxy"]

    def tell_proxies(self, message: dict[str, Any]) -> None:
        """Send a message to every proxy."""
        for peer in self.proxies:
            peer.tell(message)
            self._follow(peer)

    def close(self) -> None:
        """Drop all peers and remove the socket, unless another daemon has put its own there."""
        for peer in list(self._peers.values()):
            self._drop(peer)
        with suppress(KeyError):
            self._selector.unregister(self._socket)
        self._socket.close()
        with suppress(OSError):
            if self._path.stat().st_ino == self._inode:
                self._path.unlink()

    def _listen_again(self) -> None:
        """Put a socket where the old one was removed (a person, a program that cleans up); connections that are open stay."""
        old, self._socket = self._socket, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._bind()
            self._inode = self._path.stat().st_ino
        except (OSError, BusyError, SettingsError):  # the folder is gone too, or another daemon was faster
            self._socket.close()
            self._socket = old
            return
        with suppress(KeyError):
            self._selector.unregister(old)
        old.close()
        self._accept_at_s = None
        self._selector.register(self._socket, selectors.EVENT_READ, self._accept)

    def _bind(self) -> None:
        folder = self._path.parent
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.stat().st_uid != os.getuid():
            raise SettingsError(
                f"The folder {folder} belongs to another user.", "Set AUTOSPEC_HOME to a folder of your own."
            )
        with suppress(OSError):
            if stat.S_ISSOCK(self._path.lstat().st_mode):
                self._take_over()
        mask = os.umask(0o177)
        try:
            self._socket.bind(str(self._path))
        finally:
            os.umask(mask)
        self._socket.listen(_BACKLOG)
        self._socket.setblocking(False)

    def _take_over(self) -> None:
        """Remove the socket of a daemon that was killed; refuse if its daemon is alive."""
        if daemon_listens(self._state_dir):
            raise BusyError(
                f"A daemon is already running: it listens at {self._path}.",
                "`autospec daemon --status` shows what it is doing.",
            )
        self._path.unlink(missing_ok=True)

    def _accept(self) -> None:
        try:
            connection, _ = self._socket.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError:
            # No file descriptor is free. Who waits goes on waiting, and would wake the selector again at once.
            self._selector.unregister(self._socket)
            self._accept_at_s = self._now() + _ACCEPT_PAUSE_S
            return
        connection.setblocking(False)
        peer = Peer(connection)
        try:
            self._selector.register(connection, selectors.EVENT_READ, lambda: self._attend(peer))
        except OSError:  # the system watches no more of them (epoll's limit)
            connection.close()
            return
        self._peers[connection.fileno()] = peer

    def _attend(self, peer: Peer) -> None:
        """A peer has sent something, left, or read what it was sent."""
        peer.send()
        for message in peer.read():
            if not peer.lost:
                self._hear(peer, message)
        self._follow(peer)

    def _follow(self, peer: Peer) -> None:
        """Drop a peer that is lost; else wait until it sends, and while it is owed something, until it reads."""
        if peer.lost:
            self._drop(peer)
        elif peer.connection.fileno() in self._peers:
            key = self._selector.get_key(peer.connection)
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if peer.owed else 0)
            if events != key.events:
                self._selector.modify(peer.connection, events, key.data)

    def _drop(self, peer: Peer) -> None:
        peer.lost = True
        if self._peers.pop(peer.connection.fileno(), None) is None:
            return
        with suppress(KeyError):
            self._selector.unregister(peer.connection)
        peer.connection.close()
        if peer.role:
            self._hear(peer, {"event": "left"})
