"""When a person last used a keyboard, mouse or touchpad of this machine (`UserInput`).

macOS tells the time, and so does GNOME. Otherwise Linux tells it to nobody: KDE, Sway and Hyprland leave logind's IdleHint at "no", and
reading a device changes no access time. But the kernel counts what its drivers receive, and every user may read these counters:
``urbnum`` of a USB device, and the interrupts of PS/2 (i8042) and I2C. One that has moved since the previous look is an input. The
compositors of Wayland tell whether there was one (`autospec.hardware.wayland`).
"""

from __future__ import annotations

import functools
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from autospec.hardware.identity import output_of, text_of
from autospec.hardware.wayland import IdleNotice

__all__ = [
    "InputCounts",
    "LastInput",
    "UserInput",
    "count_input",
    "parse_hid_idle",
    "parse_interrupts",
    "parse_mutter_idle",
    "terminal_idle_s",
]

# linux/input-event-codes.h. Like udev: a keyboard has all of the first keys; power buttons and volume keys have not.
_FIRST_KEYS = 0xFFFFFFFE
_BTN_LEFT, _BTN_TOUCH = 1 << 0x110, 1 << 0x14A
_WORD_BITS = sys.maxsize.bit_length() + 1
# bInterfaceClass of HID, of firmware updates, and of the maker's own. A device that also plays sound or reads cards counts that, too.
_COUNTS_INPUT = frozenset({"03", "fe", "ff"})
# A mouse that a lorry shakes, a wireless keyboard that reports its battery, and a desktop that asks for it twice a minute are no input.
# One key makes two: pressed, released. After a long time without a look, the safe answer is an input.
_NOISE, _NOISE_PER_S, _NOISE_AT_MOST = 2.0, 0.1, 6.0
# Where no desktop answered, one may have started after this time.
_ASK_AGAIN_S = 60.0


@dataclass(frozen=True, slots=True)
class LastInput:
    """Seconds since the last input, ``None`` if unknown; `unseen` names a keyboard or mouse whose input cannot be noticed, if any."""

    idle_s: float | None = None
    unseen: str = ""


@dataclass(frozen=True, slots=True)
class InputCounts:
    """What the drivers of keyboards, mice and touchpads have received, by counter, and the name of a device that has none."""

    by_counter: Mapping[str, int]
    unseen: str = ""

    def moved_since(self, before: InputCounts, passed_s: float) -> bool:
        """Whether somebody used or plugged in a device between two looks."""
        noise = min(max(_NOISE, _NOISE_PER_S * passed_s), _NOISE_AT_MOST)
        return any(
            abs(count - before.by_counter.get(name, math.inf)) > noise
            for name, count in self.by_counter.items()
        )


class UserInput:
    """Call it to learn when the last input was. Most of what it reads tells only whether there was one since the previous call.

    Args:
        clock: Seconds, monotonic.
        used_s: An input at this time is assumed, so that a machine which nobody uses is idle since then. With ``None`` such a machine
            tells nothing before the first input.
        root: Where /proc, /sys and /dev are.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        used_s: float | None = None,
        root: Path = Path("/"),
    ) -> None:
        self._clock = clock
        self._used_s = used_s
        self._root = root
        self._before: InputCounts | None = None
        self._looked_s = clock()
        self._notice = IdleNotice(_runtime_dir(root))
        self._ask_from_s = -float("inf")

    def __call__(self) -> LastInput:
        """The last input of any user."""
        if sys.platform == "darwin":
            return LastInput(parse_hid_idle(output_of("ioreg", "-c", "IOHIDSystem", "-d", "4")))
        now_s, counts = self._clock(), count_input(self._root)
        noticed = self._notice.used(now_s)
        passed_s, self._looked_s = now_s - self._looked_s, now_s
        if noticed or (self._before is not None and counts.moved_since(self._before, passed_s)):
            self._used_s = now_s
        self._before = counts
        is_watched = bool(counts.by_counter) or noticed is not None
        watched = now_s - self._used_s if is_watched and self._used_s is not None else None
        gnome = self._gnome_idle_s(now_s)
        found = (watched, gnome, terminal_idle_s(_terminals(self._root), time.time()))
        idle_s = min((idle for idle in found if idle is not None), default=None)
        return LastInput(idle_s, counts.unseen if gnome is None and noticed is None else "")

    def close(self) -> None:
        """Leave the compositor."""
        self._notice.close()

    def _gnome_idle_s(self, now_s: float) -> float | None:
        """GNOME's answer. A service that started before the login has no variable of the display."""
        bus = _session_bus(self._root)
        if not bus or now_s < self._ask_from_s:
            return None
        found = parse_mutter_idle(output_of(
            "env", f"DBUS_SESSION_BUS_ADDRESS={bus}",
            "gdbus", "call", "--session", "--dest", "org.gnome.Mutter.IdleMonitor",
            "--object-path", "/org/gnome/Mutter/IdleMonitor/Core",
            "--method", "org.gnome.Mutter.IdleMonitor.GetIdletime", timeout_s=2.0,
        ))  # fmt: skip
        if found is None:
            self._ask_from_s = now_s + _ASK_AGAIN_S
        return found


def count_input(root: Path = Path("/")) -> InputCounts:
    """Read the counters of all devices that a person uses. Takes about a millisecond."""
    interrupts = functools.cache(lambda: parse_interrupts(text_of(root / "proc/interrupts")))
    counts: dict[str, int] = {}
    unseen = ""
    for device in sorted(root.glob("sys/class/input/event*/device")):
        real = device.resolve()
        # A program's device repeats a real one, or nobody touches it.
        if (root / "sys/devices/virtual/input") in real.parents or not _is_used_by_a_person(
            text_of(real / "capabilities/key")
        ):
            continue
        match text_of(real / "id/bustype").strip():
            case "0003":  # BUS_USB of linux/input.h
                counter, count = _usb_counter(real)
            case "0011":  # BUS_I8042
                counter, count = "i8042", interrupts().get("i8042")
            case "0018":  # BUS_I2C
                counter = _i2c_client(real)
                count = interrupts().get(counter)
            case _:
                counter, count = "", None
        if count is None:
            unseen = unseen or text_of(real / "name").strip() or "an input device"
        else:
            counts[counter] = count
    return InputCounts(counts, unseen)


def parse_interrupts(text: str) -> dict[str, int]:
    """Interrupts on all processors by every word behind their numbers, in ``/proc/interrupts``: ``i8042``, ``ELAN0501:00``."""
    heads, *lines = text.splitlines() or [""]
    processors = len(heads.split())
    counts: dict[str, int] = {}
    for line in lines:
        fields = line.partition(":")[2].split()
        count = sum(int(field) for field in fields[:processors] if field.isdigit())
        for word in {field.rstrip(",") for field in fields[processors:]}:
            counts[word] = counts.get(word, 0) + count
    return counts


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


def _is_used_by_a_person(keys: str) -> bool:
    """Whether the capabilities (hexadecimal words, the highest first) are of a keyboard, a mouse, or something to touch."""
    bits = 0
    for word in keys.split():
        bits = bits << _WORD_BITS | int(word, 16)
    return bits & _FIRST_KEYS == _FIRST_KEYS or bits & (_BTN_LEFT | _BTN_TOUCH) != 0


def _usb_counter(device: Path) -> tuple[str, int | None]:
    """The folder of the USB device of this input device, and how much it has sent; ``None`` if that is not only input."""
    for folder in device.parents:
        if (sent := text_of(folder / "urbnum").strip()).isdigit():
            classes = {text_of(file).strip() for file in folder.glob(f"{folder.name}:*/bInterfaceClass")}
            return str(folder), int(sent) if classes <= _COUNTS_INPUT else None
    return "", None


def _i2c_client(device: Path) -> str:
    """The name of the I2C device of this input device, which its interrupt has, too."""
    return next((name for folder in device.parents if (name := text_of(folder / "name").strip())), "")


def _runtime_dir(root: Path) -> Path:
    return root / f"run/user/{os.getuid()}"


def _session_bus(root: Path) -> str:
    """The address of the user's message bus; empty if there is none."""
    if address := os.environ.get("DBUS_SESSION_BUS_ADDRESS"):
        return address
    socket = _runtime_dir(root) / "bus"
    return f"unix:path={socket}" if socket.is_socket() else ""


def _terminals(root: Path) -> list[Path]:
    """Pseudo terminals and consoles that belong to a logged-in user."""
    found = []
    for path in (*root.glob("dev/pts/[0-9]*"), *root.glob("dev/tty[1-6]")):
        try:
            owner = path.stat().st_uid
        except OSError:
            continue
        # A console at its login prompt belongs to root.
        if owner or path.parent.name == "pts":
            found.append(path)
    return found
