"""The daemon's end of the control socket. It has no thread: the selector of the daemon's loop reports messages."""

from __future__ import annotations

import os
import selectors
import socket
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from autospec.errors import BusyError, SettingsError
from autospec.service.control import LINE_LIMIT_BYTES, control_path, decode, encode

__all__ = ["Listening", "Peer"]

_BACKLOG = 16


class Peer:
    """One connection: its role (``proxy`` once it said so), its process id as told, and whether it serves a request."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.role = ""
        self.pid = 0
        self.busy = False
        self._unread = b""

    def read(self) -> list[dict[str, Any]] | None:
        """The messages that have arrived; ``None`` if the peer has left or sends nonsense."""
        try:
            part = self.connection.recv(65536)
        except BlockingIOError:
            return []
        except OSError:
            return None
        self._unread += part
        if not part or len(self._unread) > LINE_LIMIT_BYTES:
            return None
        *lines, self._unread = self._unread.split(b"\n")
        return [decode(line) for line in lines]

    def tell(self, message: dict[str, Any]) -> bool:
        """Send a message; False if the peer does not take it and must be dropped."""
        try:
            # The largest message, a status of some kilobytes, fits into a local socket's buffer unless the peer does not read.
            return self.connection.send(line := encode(message)) == len(line)
        except OSError:
            return False


class Listening:
    """Accepts connections and passes their messages to `hear`; the event ``left`` says that a proxy is gone."""

    def __init__(
        self, state_dir: Path, selector: selectors.BaseSelector, hear: Callable[[Peer, dict[str, Any]], None]
    ) -> None:
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

    @property
    def proxies(self) -> list[Peer]:
        """The proxies that are connected."""
        return [peer for peer in self._peers.values() if peer.role == "proxy"]

    def tell_proxies(self, message: dict[str, Any]) -> None:
        """Send a message to every proxy."""
        for peer in self.proxies:
            if not peer.tell(message):
                self._drop(peer)

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
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(1.0)
            try:
                probe.connect(str(self._path))
            except (ConnectionRefusedError, FileNotFoundError):
                self._path.unlink(missing_ok=True)
            else:
                raise BusyError(
                    f"A daemon is already running: it listens at {self._path}.",
                    "`autospec daemon --status` shows what it is doing.",
                )

    def _accept(self) -> None:
        with suppress(OSError):
            connection, _ = self._socket.accept()
            connection.setblocking(False)
            peer = Peer(connection)
            self._peers[connection.fileno()] = peer
            self._selector.register(connection, selectors.EVENT_READ, lambda: self._read(peer))

    def _read(self, peer: Peer) -> None:
        messages = peer.read()
        for message in messages or ():
            self._hear(peer, message)
        if messages is None:
            self._drop(peer)

    def _drop(self, peer: Peer) -> None:
        if self._peers.pop(peer.connection.fileno(), None) is None:
            return
        with suppress(KeyError):
            self._selector.unregister(peer.connection)
        peer.connection.close()
        if peer.role:
            self._hear(peer, {"event": "left"})
