"""Keep the machine awake while it measures and a Mac while its proxy answers, and notice a wake-up of the system without its user.

Systems go to sleep for lack of user input, whatever the processor does. macOS: caffeinate(8) holds the assertion against idle sleep;
a closed lid still sleeps. Linux: systemd-inhibit(1).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

__all__ = ["AwakeForRequests", "awake_command", "kept_awake", "parse_dark_wake"]

_CAFFEINATE = "/usr/bin/caffeinate"
# The helper ends within milliseconds after its signal.
_END_WITHIN_S = 2.0


def awake_command(
    platform: str, pid: int, which: Callable[[str], str | None] = shutil.which
) -> tuple[str, ...]:
    """The program that keeps the system awake while it runs; empty if this system has none. `pid` is the process that measures."""
    if platform == "darwin" and which(_CAFFEINATE):
        # -i: no idle sleep; -m: no sleep of the disks; -w: until that process ends.
        return _CAFFEINATE, "-i", "-m", "-w", str(pid)
    if platform == "linux" and (inhibit := which("systemd-inhibit")) and (cat := which("cat")):
        # cat ends when its input does, i.e. with this process, however that ends.
        return inhibit, "--what=sleep", "--who=autospec", "--why=It measures", "--mode=block", cat
    return ()


@contextmanager
def kept_awake() -> Iterator[None]:
    """Keep the system awake within the block. Without a suitable program, or if it fails, nothing happens."""
    helper = start_helper(awake_command(sys.platform, os.getpid()))
    try:
        yield
    finally:
        if helper is not None:
            end_helper(helper)


def parse_dark_wake(text: str) -> bool | None:
    """Return whether the output of ``pmset -g systemstate`` shows a dark wake.

    In a dark wake, the system runs for up to a minute with its display off and without sound (Power Nap), then sleeps again. A Mac
    whose display alone sleeps keeps ``Audio``. ``None`` if unknown.
    """
    found = re.search(r"^Current System Capabilities are:(.*)$", text, re.MULTILINE)
    if found is None:
        return None
    capabilities = found[1].split()
    return "CPU" in capabilities and not {"Graphics", "Audio"} & set(capabilities)


def start_helper(command: tuple[str, ...]) -> subprocess.Popen[bytes] | None:
    """Start what `awake_command` returned; ``None`` if that is nothing, or it fails."""
    if command:
        with suppress(OSError):
            return subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                # Ctrl-C is for the measurement, and systemd-inhibit must not ask for a password at the terminal.
                start_new_session=True,
            )
    return None


def end_helper(helper: subprocess.Popen[bytes]) -> None:
    """End it, and wait until it has ended."""
    if helper.stdin is not None:
        with suppress(OSError):
            helper.stdin.close()
    helper.terminate()
    try:
        helper.wait(_END_WITHIN_S)
    except subprocess.TimeoutExpired:
        helper.kill()
        helper.wait()


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
        from asyncio import get_running_loop  # noqa: PLC0415  (the daemon at rest does not load it)

        if self._command and self._timer is None:
            self._timer = get_running_loop().call_later(self._after_s, self._hold)

    def end(self) -> None:
        """No request is left."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._helper is not None:
            from asyncio import get_running_loop  # noqa: PLC0415

            # Not in the event loop: it waits for the helper's end, which takes milliseconds.
            get_running_loop().run_in_executor(None, end_helper, self._helper)
            self._helper = None

    def _hold(self) -> None:
        self._helper = self._start(self._command)
