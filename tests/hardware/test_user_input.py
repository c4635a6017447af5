"""`autospec.hardware.user_input`: when a person last used the machine, from what Linux and macOS show every user."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest

from autospec.hardware import user_input
from autospec.hardware.user_input import (
    InputCounts,
    LastInput,
    UserInput,
    count_input,
    parse_hid_idle,
    parse_interrupts,
    parse_mutter_idle,
    terminal_idle_s,
)

# Of /proc/interrupts and /proc/bus/input/devices in the forms that owners of laptops and desktops publish.
INTERRUPTS = """\
            CPU0       CPU1       CPU2       CPU3
   1:          0          0       {keyboard}          0  IR-IO-APIC    1-edge      i8042
   8:          0          0          0          0  IR-IO-APIC    8-edge      rtc0
  12:          0          4          0          0  IR-IO-APIC   12-edge      i8042
  16:          0          0          0          0  IR-IO-APIC   16-fasteoi   i801_smbus, idma64.0
 123:          0          0          0     813312  IR-PCI-MSI-0000:00:14.0    0-edge      xhci_hcd
 186:          0    {touchpad}          0          0  intel-gpio    3  PIXA3854:00
 NMI:         12         11         12         12   Non-maskable interrupts
 ERR:          0
"""
KEYBOARD = "402000000 3803078f800d001 feffffdfffefffff fffffffffffffffe"
MOUSE = "1f0000 0 0 0 0"
TOUCHPAD = "e520 10000 0 0 0 0"
POWER_BUTTON = "10000000000000 0"
GAMEPAD = "7cdb000000000000 0 0 0 0"

PCI = "devices/pci0000:00"
AT_KEYBOARD = "devices/platform/i8042/serio0/input/input3"
I2C_TOUCHPAD = f"{PCI}/0000:00:15.1/i2c_designware.1/i2c-14/i2c-PIXA3854:00/0018:093A:0274.0002/input/input9"
RECEIVER = f"{PCI}/0000:00:14.0/usb1/1-3"
USB_MOUSE = f"{RECEIVER}/1-3:1.2/0003:046D:C52B.0003/0003:046D:4074.0004/input/input20"
HEADSET = f"{PCI}/0000:00:14.0/usb1/1-4"
HEADSET_KEYS = f"{HEADSET}/1-4:1.3/0003:0D8C:0014.0005/input/input22"
BLUETOOTH = f"{PCI}/0000:00:14.0/usb1/1-7/1-7:1.0/bluetooth/hci0/hci0:256/0005:046D:B342.0007/input/input24"
UHID = "devices/virtual/misc/uhid/0005:046D:B35B.0008/input/input25"
REMAPPER = "devices/virtual/input/input30"


class Machine:
    """The part of /proc, /sys and /dev of a machine with these devices."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.count = 0
        self.interrupts()

    def interrupts(self, keyboard: int = 100, touchpad: int = 5000) -> None:
        """What the drivers have received."""
        self.write("proc/interrupts", INTERRUPTS.format(keyboard=keyboard, touchpad=touchpad))

    def add(self, place: str, name: str, keys: str, bus: str) -> None:
        """An input device at this place below /sys."""
        for file, text in (("name", name), ("capabilities/key", keys), ("id/bustype", bus)):
            self.write(f"sys/{place}/{file}", text)
        event = self.root / f"sys/class/input/event{self.count}"
        event.mkdir(parents=True)
        (event / "device").symlink_to(self.root / "sys" / place)
        self.count += 1

    def usb(self, place: str, urbs: int, *classes: str) -> None:
        """A USB device that has sent this much, with interfaces of these classes."""
        self.write(f"sys/{place}/urbnum", str(urbs))
        for number, kind in enumerate(classes):
            self.write(f"sys/{place}/{Path(place).name}:1.{number}/bInterfaceClass", kind)

    def laptop(self) -> None:
        """A laptop with its keyboard and touchpad, and the receiver of a wireless mouse."""
        self.write(f"sys/{I2C_TOUCHPAD}/../../../name", "PIXA3854:00")
        self.write(f"sys/{I2C_TOUCHPAD}/../../../../name", "Synopsys DesignWare I2C adapter")
        self.write(f"sys/{PCI}/0000:00:14.0/usb1/urbnum", "77")
        self.usb(RECEIVER, 1000, "03", "03", "03")
        self.add("devices/LNXSYSTM:00/LNXPWRBN:00/input/input1", "Power Button", POWER_BUTTON, "0019")
        self.add(AT_KEYBOARD, "AT Translated Set 2 keyboard", KEYBOARD, "0011")
        self.add(I2C_TOUCHPAD, "PIXA3854:00 093A:0274 Touchpad", TOUCHPAD, "0018")
        self.add(USB_MOUSE, "Logitech M705", MOUSE, "0003")

    def write(self, place: str, text: str) -> None:
        """A file."""
        path = Path(os.path.normpath(self.root / place))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A Linux without devices, of which nobody but these tests tells anything."""
    monkeypatch.setattr(user_input.sys, "platform", "linux")
    monkeypatch.delenv("DBUS_SESSION_BUS_ADDRESS", raising=False)
    return Machine(tmp_path / "root")


class SetClock:
    """Seconds that a test moves."""

    now_s = 1000.0

    def __call__(self) -> float:
        """The time."""
        return self.now_s


def test_idle_times_are_read_from_what_the_systems_print():
    """Nanoseconds on macOS, milliseconds from GNOME; anything else is unknown."""
    assert parse_hid_idle('    |   "HIDIdleTime" = 2500000000\n') == 2.5
    assert parse_mutter_idle("(uint64 1500,)\n") == 1.5
    assert parse_hid_idle("") is None
    assert parse_mutter_idle("Error: no such name") is None


def test_a_terminal_is_as_idle_as_its_last_reading(tmp_path: Path):
    """The most recent one counts; a clock set back gives no negative time; none is unknown."""
    for name, read_at in (("a", 100.0), ("b", 160.0)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (read_at, 0))
    terminals = [tmp_path / "a", tmp_path / "b", tmp_path / "closed"]
    assert terminal_idle_s(terminals, 200.0) == 40.0
    assert terminal_idle_s(terminals, 50.0) == 0.0
    assert terminal_idle_s([], 200.0) is None


def test_interrupts_are_counted_over_processors_and_lines():
    """A keyboard and a mouse of PS/2 have a line each; some lines have two names, the last ones fewer numbers."""
    counts = parse_interrupts(INTERRUPTS.format(keyboard=9, touchpad=21))
    assert counts["i8042"] == 13
    assert counts["PIXA3854:00"] == 21
    assert counts["i801_smbus"] == counts["idma64.0"] == 0
    assert parse_interrupts("") == {}


def test_every_kind_of_device_is_counted(machine: Machine):
    """PS/2, I2C and USB; a power button is nobody's keyboard, and the root hub is not the mouse."""
    machine.laptop()
    receiver = str(machine.root / f"sys/{RECEIVER}")
    assert count_input(machine.root) == InputCounts({"i8042": 104, "PIXA3854:00": 5000, receiver: 1000})


@pytest.mark.parametrize(
    ("place", "keys", "bus", "unseen"),
    [
        (BLUETOOTH, KEYBOARD, "0005", "it"),  # the adapter above it counts headphones, too
        (UHID, MOUSE, "0005", "it"),
        (HEADSET_KEYS, KEYBOARD, "0003", "it"),
        (f"{PCI}/0000:00:15.1/i2c-14/i2c-X/0018:1:2.3/input/input9", TOUCHPAD, "0018", "it"),  # it is polled
        (REMAPPER, KEYBOARD, "0003", ""),
        (USB_MOUSE, GAMEPAD, "0003", ""),
    ],
)
def test_a_device_without_a_counter_of_its_own_is_named(machine: Machine, place, keys, bus, unseen):
    """A counter that runs while nobody is there would keep the daemon from measuring for ever."""
    machine.usb(f"{PCI}/0000:00:14.0/usb1/1-7", 5000, "e0", "e0")
    machine.usb(HEADSET, 5000, "01", "01", "03")
    machine.add(place, "it", keys, bus)
    assert count_input(machine.root) == InputCounts({}, unseen)


@pytest.mark.parametrize("used", ["keyboard", "touchpad", "mouse", "another mouse"])
def test_a_counter_that_moved_is_an_input(machine: Machine, used: str):
    """KDE, Sway and GNOME alike, without asking any of them: before, an hour-old terminal said that nobody was there."""
    machine.laptop()
    terminal = machine.root / "dev/pts/0"
    machine.write("dev/pts/0", "")
    os.utime(terminal, (time.time() - 3600.0, 0))
    clock = SetClock()
    last_input = UserInput(clock, used_s=clock.now_s, root=machine.root)
    assert last_input() == LastInput(0.0)
    clock.now_s += 400.0
    assert last_input() == LastInput(400.0)
    clock.now_s += 5.0
    match used:
        case "keyboard":
            machine.interrupts(keyboard=104)
        case "touchpad":
            machine.interrupts(touchpad=5017)
        case "mouse":
            machine.usb(RECEIVER, 1060)
        case _:
            machine.usb(f"{PCI}/0000:00:14.0/usb1/1-5", 5, "03")
            machine.add(f"{PCI}/0000:00:14.0/usb1/1-5/1-5:1.0/0003:1:2.9/input/input31", "it", MOUSE, "0003")
    assert last_input() == LastInput(0.0)
    clock.now_s += 30.0
    assert last_input() == LastInput(30.0)


def test_noise_is_no_input(machine: Machine):
    """Desktops ask for the battery of wireless devices, and a mouse on a shaken table moves; the daemon would wait for ever."""
    machine.laptop()
    clock = SetClock()
    last_input = UserInput(clock, used_s=clock.now_s, root=machine.root)
    last_input()
    for passed_s, urbs in ((60.0, 1004), (60.0, 1010), (5.0, 1012)):
        clock.now_s += passed_s
        machine.usb(RECEIVER, urbs)
        last_input()
    assert last_input() == LastInput(125.0)
    for passed_s, urbs in ((5.0, 1015), (3600.0, 1025)):
        clock.now_s += passed_s
        machine.usb(RECEIVER, urbs)
        assert last_input() == LastInput(0.0)


def test_without_a_history_counters_say_nothing(machine: Machine):
    """`daemon --once` and `doctor` look once or twice; what a counter is then says nothing of the time before."""
    machine.laptop()
    clock = SetClock()
    last_input = UserInput(clock, root=machine.root)
    assert last_input() == LastInput()
    clock.now_s += 1.0
    assert last_input() == LastInput()
    machine.interrupts(keyboard=110)
    assert last_input() == LastInput(0.0)


def test_a_server_without_devices_has_its_terminals_only(machine: Machine):
    """As before: nobody is said to be there or not to be there."""
    last_input = UserInput(SetClock(), used_s=0.0, root=machine.root)
    assert last_input() == LastInput()
    machine.write("dev/pts/3", "")
    os.utime(machine.root / "dev/pts/3", (time.time() - 50.0, 0))
    assert last_input().idle_s == pytest.approx(50.0, abs=5.0)


def test_gnome_is_asked_where_there_is_a_bus(machine: Machine, monkeypatch: pytest.MonkeyPatch):
    """A service of systemd that started before the login has neither DISPLAY nor WAYLAND_DISPLAY; it has the bus."""
    asked: list[tuple[str, ...]] = []
    answers = iter(["", "(uint64 2500,)\n", "(uint64 7500,)\n"])

    def answer(*command: str, timeout_s: float) -> str:
        asked.append(command)
        return next(answers)

    monkeypatch.setattr(user_input, "output_of", answer)
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    machine.add(UHID, "MX Keys", KEYBOARD, "0005")
    clock = SetClock()
    last_input = UserInput(clock, used_s=0.0, root=machine.root)
    assert last_input() == LastInput(None, "MX Keys")
    assert asked == []
    bus = machine.root / f"run/user/{os.getuid()}/bus"
    bus.parent.mkdir(parents=True)
    monkeypatch.chdir(bus.parent)  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("bus")
        assert last_input() == LastInput(None, "MX Keys")
        # A desktop that does not answer is not asked at every look: each starts a program.
        clock.now_s += 59.0
        assert last_input() == LastInput(None, "MX Keys")
        assert len(asked) == 1
        assert f"DBUS_SESSION_BUS_ADDRESS=unix:path={bus}" in asked[0]
        clock.now_s += 1.0
        assert last_input() == LastInput(2.5)
        assert last_input() == LastInput(7.5)


def test_what_a_compositor_tells_counts_as_well(machine: Machine):
    """Bluetooth's keyboards have no counter, and KDE and Sway see them: then no device is unseen."""
    machine.add(UHID, "MX Keys", KEYBOARD, "0005")
    clock, told = SetClock(), iter([None, False, False, True, False])
    last_input = UserInput(clock, used_s=clock.now_s, root=machine.root)
    last_input._notice.used = lambda _: next(told)  # type: ignore[method-assign]
    found = []
    for _ in range(5):
        found.append(last_input())
        clock.now_s += 60.0
    unknown = LastInput(None, "MX Keys")
    assert found == [unknown, LastInput(60.0), LastInput(120.0), LastInput(0.0), LastInput(60.0)]


def test_this_machine_is_read():
    """The real thing, whatever it has; a look must not disturb a measurement."""
    count_input()
    began = time.process_time()
    for _ in range(10):
        assert all(count >= 0 for count in count_input().by_counter.values())
    assert (time.process_time() - began) / 10 < 0.02
