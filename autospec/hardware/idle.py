"""How long ago a user typed or moved the mouse on this machine; ``None`` if unknown."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from autospec.hardware.identity import output_of

__all__ = ["parse_hid_idle", "parse_mutter_idle", "terminal_idle_s", "user_idle_s"]


def user_idle_s(now: float | None = None) -> float | None:
    """Return seconds since the last input of any user; ``None`` if unknown, e.g. on a server without a login.

    macOS: HIDIdleTime of the I/O registry, which covers every keyboard and mouse. Linux: terminals with a login, like w(1), and
    GNOME's idle monitor in a desktop session.
    """
    if sys.platform == "darwin":
        return parse_hid_idle(output_of("ioreg", "-c", "IOHIDSystem", "-d", "4"))
    found = [terminal_idle_s(_terminals(), time.time() if now is None else now)]
    if os.environ.get("DBUS_SESSION_BUS_ADDRESS") and (
        os.environ.get("WAYLAND_DISPLAY") or os.environ.get("DISPLAY")
    ):
        found.append(parse_mutter_idle(output_of(
            "gdbus", "call", "--session", "--dest", "org.gnome.Mutter.IdleMonitor",
            "--object-path", "/org/gnome/Mutter/IdleMonitor/Core",
            "--method", "org.gnome.Mutter.IdleMonitor.GetIdletime", timeout_s=2.0,
        )))  # fmt: skip
    return min((idle for idle in found if idle is not None), default=None)


def parse_hid_idle(text: str) -> float | None:
    """Seconds in the output of ``ioreg -c IOHIDSystem -d 4``: HIDIdleTime is in nanoseconds."""
    found = re.search(r'"HIDIdleTime"\s*=\s*(\d+)', text)
    return int(found[1]) / 1e9 if found else None


def parse_mutter_idle(text: str) -> float | None:
    """Seconds in the answer of ``GetIdletime``: ``(uint64 12345,)``, in milliseconds."""
    found = re.search(r"uint64 (\d+)", text)
    return int(found[1]) / 1e3 if found else None


def terminal_idle_s(terminals: Iterable[Path], now: float) -> float | None:
    """Seconds since the last input to any of these terminals (their access time), at least 0."""
    touched = []
    for terminal in terminals:
        try:
            touched.append(terminal.stat().st_atime)
        except OSError:  # just closed
            continue
    return max(0.0, now - max(touched)) if touched else None


def _terminals() -> list[Path]:
    """Pseudo terminals and consoles that belong to a logged-in user."""
    found = []
    for path in (*Path("/dev/pts").glob("[0-9]*"), *Path("/dev").glob("tty[1-6]")):
        try:
            owner = path.stat().st_uid
        except OSError:
            continue
        # A console at its login prompt belongs to root.
        if owner or path.parent.name == "pts":
            found.append(path)
    return found
