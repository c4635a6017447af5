"""Keep a Mac awake while the proxy answers requests."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable

from autospec.hardware.awake import awake_command, end_helper, start_helper

__all__ = ["AwakeForRequests"]

# Macs go to sleep after a minute at the earliest, so short requests need nothing.
_LONG_REQUESTS_S = 20.0


class AwakeForRequests:
    """Keeps a Mac awake while requests are answered: an answer may take longer than the Mac waits for its user.

    Nothing happens on other systems, whose users choose in their settings when a server may sleep. Call `begin` when requests begin
    and `end` when none is left, in an event loop.

    Args:
        platform: As in `sys.platform`.
        start: Starts the helper; returns ``None`` if it cannot.
        after_s: Seconds of continued requests after which it is started.
    """

    def __init__(
        self,
        platform: str = sys.platform,
        start: Callable[[tuple[str, ...]], subprocess.Popen[bytes] | None] = start_helper,
        after_s: float = _LONG_REQUESTS_S,
    ) -> None:
        # The helper also ends with this process.
        self._command = awake_command(platform, os.getpid()) if platform == "darwin" else ()
        self._start = start
        self._after_s = after_s
        self._timer: asyncio.TimerHandle | None = None
        self._helper: subprocess.Popen[bytes] | None = None

    def begin(self) -> None:
        """Requests begin."""
        if self._command and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._after_s, self._hold)

    def end(self) -> None:
        """No request is left."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._helper is not None:
            # Not in the event loop: it waits for the helper's end, which takes milliseconds.
            asyncio.get_running_loop().run_in_executor(None, end_helper, self._helper)
            self._helper = None

    def _hold(self) -> None:
        self._helper = self._start(self._command)
