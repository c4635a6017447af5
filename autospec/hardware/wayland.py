"""Input as a Wayland compositor reports it: KDE's KWin, Sway, Hyprland and others, but not GNOME's.

A small client of the protocol ext-idle-notify-v1 (https://wayland.app/protocols/ext-idle-notify-v1), which every program of the user may
use. The compositor tells when nobody has used keyboard and mouse for a time, and when somebody does again. It knows Bluetooth and remote
desktops, too, and a film that plays counts as use.
"""

from __future__ import annotations

import socket
import struct
from contextlib import suppress
from pathlib import Path

__all__ = ["IdleNotice"]

# A message: its object, then its size and number in one word, then its arguments; all in the machine's byte order.
_HEAD = struct.Struct("=II")
_DISPLAY, _REGISTRY, _ANSWERED, _SEAT, _NOTIFIER, _NOTICE = 1, 2, 3, 4, 5, 6
_GLOBAL, _DONE = (_REGISTRY, 0), (_ANSWERED, 0)
_FAILED, _IDLED, _RESUMED = (_DISPLAY, 0), (_NOTICE, 0), (_NOTICE, 1)
_IDLE_AFTER_MS = 5000
# Later than this, a compositor that has told nothing has seen somebody all the time.
_TOLD_AFTER_S = 6.0
_ANSWER_WITHIN_S = 1.0
# A desktop may start later.
_TRY_AGAIN_S = 60.0


class IdleNotice:
    """Watches the first compositor in this folder (``/run/user/UID``) that offers the protocol."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._connection: socket.socket | None = None
        self._unread = b""
        self._idle: bool | None = None
        self._asked_s = -float("inf")

    def used(self, now_s: float) -> bool | None:
        """Whether somebody used the machine since the previous call; ``None`` if no compositor tells, and at first."""
        if self._connection is None:
            if now_s - self._asked_s >= _TRY_AGAIN_S:
                self._asked_s = now_s
                self._connect()
            return None
        used = not self._idle
        try:
            while part := self._connection.recv(65536):
                self._unread += part
            ended = True
        except BlockingIOError:
            ended = False
        except OSError:
            ended = True
        for event, _ in self._events():
            ended |= event == _FAILED
            used |= event == _RESUMED
            self._idle = event == _IDLED if event in (_IDLED, _RESUMED) else self._idle
        if ended:  # somebody logged out
            self.close()
            return True
        return None if self._idle is None and now_s - self._asked_s < _TOLD_AFTER_S else used

    def close(self) -> None:
        """Watch no more; the next call of `used` starts to watch again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connect(self) -> None:
        for path in sorted(self._folder.glob("wayland-*")):
            if path.is_socket():
                with suppress(OSError, struct.error):
                    if self._watch(path):
                        return

    def _watch(self, path: Path) -> bool:
        """Ask this compositor for its notice; returns False if it offers none."""
        self._unread, self._idle = b"", None
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.settimeout(_ANSWER_WITHIN_S)
            connection.connect(str(path))
            connection.sendall(_message(_DISPLAY, 1, _REGISTRY) + _message(_DISPLAY, 0, _ANSWERED))
            offered = self._offered(connection)
            if {"wl_seat", "ext_idle_notifier_v1"} <= offered.keys():
                connection.sendall(
                    _message(_REGISTRY, 0, offered["wl_seat"], "wl_seat", 1, _SEAT)
                    + _message(
                        _REGISTRY, 0, offered["ext_idle_notifier_v1"], "ext_idle_notifier_v1", 1, _NOTIFIER
                    )
                    + _message(_NOTIFIER, 1, _NOTICE, _IDLE_AFTER_MS, _SEAT)
                )
                connection.setblocking(False)
                self._connection = connection
        finally:
            if self._connection is None:
                connection.close()
        return self._connection is not None

    def _offered(self, connection: socket.socket) -> dict[str, int]:
        """The number of each interface that the compositor offers."""
        offered: dict[str, int] = {}
        while part := connection.recv(65536):
            self._unread += part
            for event, body in self._events():
                if event == _DONE:
                    return offered
                if event == _GLOBAL:
                    number, length = _HEAD.unpack_from(body)
                    offered.setdefault(body[8 : 7 + length].decode("ascii", "replace"), number)
        return {}

    def _events(self) -> list[tuple[tuple[int, int], bytes]]:
        """The whole messages that have arrived."""
        events = []
        while len(self._unread) >= _HEAD.size:
            target, word = _HEAD.unpack_from(self._unread)
            size = max(word >> 16, _HEAD.size)
            if len(self._unread) < size:
                break
            events.append(((target, word & 0xFFFF), self._unread[_HEAD.size : size]))
            self._unread = self._unread[size:]
        return events


def _message(target: int, number: int, *arguments: int | str) -> bytes:
    body = b""
    for argument in arguments:
        if isinstance(argument, int):
            body += struct.pack("=I", argument)
        else:
            text = argument.encode() + b"\0"
            body += struct.pack("=I", len(text)) + text + b"\0" * (-len(text) % 4)
    return _HEAD.pack(target, (_HEAD.size + len(body)) << 16 | number) + body
