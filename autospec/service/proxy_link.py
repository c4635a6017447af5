"""The proxy's end of the control socket: tells the daemon when requests are served. It never delays a request.

Without a daemon the link only looks for one every few seconds.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from autospec.service.control import LINE_LIMIT_BYTES, control_path, decode, encode

__all__ = ["ProxyLink"]

# A restarted daemon must soon know about requests.
_RECONNECT_S = 2.0


class ProxyLink:
    """Counts requests and launches in flight and tells the daemon when there are some and when there are none.

    Attributes:
        daemon: The daemon's last message about itself, e.g. ``{"event": "tuning", "what": …}``; empty without a daemon.
    """

    def __init__(self, state_dir: Path, *, reconnect_s: float = _RECONNECT_S) -> None:
        self.daemon: dict[str, Any] = {}
        self._path = control_path(state_dir)
        self._reconnect_s = reconnect_s
        self._in_flight = 0
        self._writer: asyncio.StreamWriter | None = None
        self._task: asyncio.Task[None] | None = None
        self._free = asyncio.Event()
        self._free.set()

    async def start(self) -> None:
        """Start looking for a daemon in the background."""
        self._task = asyncio.create_task(self._stay_connected(), name="autospec control link")

    async def close(self) -> None:
        """Disconnect; the daemon then assumes that no request is served here."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Around one request, from its first byte to its last, or around the launch of a server."""
        self.begin()
        try:
            yield
        finally:
            self.end()

    def begin(self) -> None:
        """A request or a launch began."""
        self._in_flight += 1
        if self._in_flight == 1:
            if self.daemon.get("event") == "tuning":
                self._free.clear()
            self._send({"event": "busy"})

    def end(self) -> None:
        """A request or a launch ended."""
        self._in_flight -= 1
        if self._in_flight == 0:
            self._send({"event": "idle"})

    @property
    def measuring(self) -> bool:
        """True if the daemon measures and no request is being served here, so that it will go on."""
        return self._in_flight == 0 and self.daemon.get("event") == "tuning"

    async def machine_is_free(self, timeout_s: float = 1.0) -> bool:
        """Wait until the daemon has freed the memory of its measurement; False after `timeout_s`."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._free.wait(), timeout_s)
        return self._free.is_set()

    def _send(self, message: dict[str, Any]) -> None:
        # A few bytes into a local socket's buffer: this neither blocks nor raises.
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(encode(message))

    async def _stay_connected(self) -> None:
        while True:
            with suppress(OSError):
                await self._talk()
            await asyncio.sleep(self._reconnect_s)

    async def _talk(self) -> None:
        reader, writer = await asyncio.open_unix_connection(str(self._path), limit=LINE_LIMIT_BYTES)
        try:
            self._writer = writer
            self._send({"event": "hello", "role": "proxy", "pid": os.getpid()})
            if self._in_flight:
                self._send({"event": "busy"})
            while line := await reader.readline():
                message = decode(line)
                if message.get("event") in ("tuning", "resting", "yielded"):
                    self.daemon = message
                    if message["event"] != "tuning":
                        self._free.set()
        except ValueError:  # a line over the limit
            return
        finally:
            self._writer, self.daemon = None, {}
            self._free.set()
            writer.close()
