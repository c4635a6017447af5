"""Read the machine: processor times, memory, swap, power and heat. All I/O of `hardware.state`."""

from __future__ import annotations

import functools
import os
import re
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import cast

import psutil

from autospec.hardware.awake import parse_dark_wake
from autospec.hardware.identity import output_of, text_of

__all__ = [
    "Power",
    "ProcessTime",
    "Reading",
    "available_memory_bytes",
    "descendants",
    "linux_battery",
    "own_processors",
    "parse_low_power",
    "parse_memory_pressure",
    "parse_stat",
    "parse_swap_ins",
    "parse_thermal",
    "read",
    "read_power",
]


_MACOS = sys.platform == "darwin"
_MEMORY_PRESSURE = "kern.memorystatus_vm_pressure_level"


@dataclass(frozen=True, slots=True)
class ProcessTime:
    """One process: start in seconds since the epoch, its processor time, and that of its ended children (0 if unknown)."""

    created_s: float
    cpu_s: float
    reaped_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Power:
    """Power source, low-power mode and heat, ``None`` or ``unknown`` if not known.

    macOS only: bytes read back from swap; `dark_wake`: awake for background work, soon asleep again; `memory_short`: the system
    reports memory pressure.
    """

    on_battery: bool | None = None
    battery_percent: float | None = None
    low_power: bool | None = None
    thermal: str = "unknown"
    swap_in_bytes: int = 0
    dark_wake: bool | None = None
    memory_short: bool | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """The machine at one moment; two readings make a `MachineState`.

    `at_s` is monotonic, `wall_s` since the epoch; `busy_s` (without stolen time), `steal_s`, `swap_in_bytes` (Linux) and `throttles`
    (``None`` if not counted) count since the system started; busy and stolen time are those of the `cores` that we may use. `self_s` and `reaped_s` are the processor time of this process and of its
    ended children, `processes` our other processes by pid.
    """

    at_s: float
    wall_s: float
    busy_s: float
    steal_s: float
    cores: int
    self_s: float
    reaped_s: float
    processes: Mapping[int, ProcessTime] = field(default_factory=dict)
    memory_available_bytes: int = 0
    swap_in_bytes: int = 0
    throttles: int | None = None
    power: Power = field(default_factory=Power)


def read(pids: Iterable[int], power: Power) -> Reading:
    """Read the machine; `pids` are our other processes. Takes well below a millisecond, since it brackets measurements."""
    at_s, wall_s = time.monotonic(), time.time()
    busy_s, steal_s = _system_times()
    own = _this_process().cpu_times()
    processes = {pid: found for pid in pids if (found := _process_time(pid)) is not None}
    return Reading(
        at_s=at_s,
        wall_s=wall_s,
        busy_s=busy_s,
        steal_s=steal_s,
        cores=len(_own_processors() or ()) or psutil.cpu_count() or 1,
        self_s=own.user + own.system,
        reaped_s=own.children_user + own.children_system,
        processes=processes,
        memory_available_bytes=available_memory_bytes(),
        swap_in_bytes=_linux_swap_ins(),
        throttles=_linux_throttles(),
        power=power,
    )


def available_memory_bytes(root: Path = Path("/")) -> int:
    """Memory that a program may take without swapping: the system's, or what the limit of a container or service leaves."""
    return min([psutil.virtual_memory().available, *_left_in_cgroups(root)])


# Limit, use, and the part of the use that is given back: cached files, as in the system's MemAvailable. Active ones too, because
# mapped weights are among them, also those of a server that has ended. Version 2 of the control groups, and 1.
_CGROUP_V2 = ("memory.max", "memory.current", "(?:in)?active_file")
_CGROUP_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_(?:in)?active_file")


def _left_in_cgroups(root: Path) -> list[int]:
    """Bytes that each limited control group of this process has left."""
    left = []
    for folder, limit_bytes, use_file, cached in _limited_cgroups(root):
        if (use := text_of(folder / use_file).strip()).isdigit():
            found = re.findall(rf"^{cached} (\d+)$", text_of(folder / "memory.stat"), re.MULTILINE)
            left.append(max(0, limit_bytes - int(use) + sum(map(int, found))))
    return left


@functools.cache  # `read` has no time to look for them each time
def _limited_cgroups(root: Path) -> tuple[tuple[Path, int, str, str], ...]:
    """Folder, limit in bytes, and the names behind it, of each control group that limits this process; none outside Linux."""
    limited = {}
    total = psutil.virtual_memory().total
    for line in text_of(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        limit_file, use_file, cached = _CGROUP_V1 if controllers else _CGROUP_V2
        base = root / "sys/fs/cgroup" / controllers
        own = PurePosixPath(path.lstrip("/"))
        # The limits of all groups above hold, too. In a container the path may be the host's: then only `base` is there.
        for folder in (base / group for group in (own, *own.parents)):
            limit = text_of(folder / limit_file).strip()
            if limit.isdigit() and int(limit) < total:  # version 1 writes "none" as a number above any memory
                limited[folder] = (folder, int(limit), use_file, cached)
    return tuple(limited.values())


def read_power() -> Power:
    """Read what may need a program: call it at most every few seconds, outside the timed part."""
    on_battery, battery_percent = _battery()
    return Power(
        on_battery=on_battery,
        battery_percent=battery_percent,
        low_power=_low_power(),
        thermal=_thermal(),
        swap_in_bytes=parse_swap_ins(output_of("vm_stat")) if _MACOS else 0,
        dark_wake=parse_dark_wake(output_of("pmset", "-g", "systemstate")) if _MACOS else None,
        memory_short=parse_memory_pressure(output_of("sysctl", "-n", _MEMORY_PRESSURE)) if _MACOS else None,
    )


def descendants() -> frozenset[int]:
    """Pids of all live descendants of this process. Takes milliseconds: it visits every process."""
    try:
        return frozenset(child.pid for child in _this_process().children(recursive=True))
    except psutil.Error:
        return frozenset()


def parse_low_power(text: str) -> bool | None:
    """Low power mode in ``pmset -g``; newer Macs print ``powermode``: 0 automatic, 1 low, 2 high. ``None`` without either."""
    found = re.search(r"^\s*(?:lowpowermode|powermode)\s+(\d)", text, re.MULTILINE)
    return found[1] == "1" if found else None


def parse_thermal(notifyutil: str, pmset: str) -> str:
    """Return ``nominal``, ``throttled`` or ``unknown`` from ``notifyutil`` and ``pmset -g therm``.

    The pressure level is 0 nominal, 1 moderate, 2 heavy and more; powermetrics reads the same, and clocks fall from heavy on.
    CPU_Speed_Limit exists on Intel only.
    """
    level = re.search(r"thermalpressurelevel\s+(\d+)\s*$", notifyutil, re.MULTILINE)
    limit = re.search(r"CPU_Speed_Limit\s*=\s*(\d+)", pmset)
    if (level and int(level[1]) >= 2) or (limit and int(limit[1]) < 100):
        return "throttled"
    return "nominal" if level or limit else "unknown"


def parse_memory_pressure(text: str) -> bool | None:
    """Whether macOS reports that memory is short: the level is 1 normal, 2 warning, 4 critical; ``None`` if unknown."""
    return int(text) >= 2 if text.strip().isdecimal() else None


def parse_swap_ins(text: str) -> int:
    """Bytes read back from swap in the output of ``vm_stat``."""
    size = re.search(r"page size of (\d+) bytes", text)
    pages = re.search(r"^Swapins:\s+(\d+)", text, re.MULTILINE)
    return int(size[1]) * int(pages[1]) if size and pages else 0


@functools.cache
def _this_process() -> psutil.Process:
    return psutil.Process()


def _system_times() -> tuple[float, float]:
    if (own := _own_processors()) is not None:
        return parse_stat(text_of("/proc/stat"), own, os.sysconf("SC_CLK_TCK"))
    times = psutil.cpu_times()
    busy = times.user + times.system
    # Linux counts guests in user already; macOS has neither interrupts nor steal.
    for name in ("nice", "irq", "softirq"):
        busy += getattr(times, name, 0.0)
    return busy, getattr(times, "steal", 0.0)


# A line of one processor: user, nice, system, idle, iowait, irq, softirq, steal, each in ticks.
_STAT_LINE = re.compile(r"^cpu(\d+)((?: \d+){8})", re.MULTILINE)


def parse_stat(text: str, processors: frozenset[int], ticks_per_s: int) -> tuple[float, float]:
    """Seconds that these processors were busy, and that were stolen from them, in ``/proc/stat``."""
    busy = stolen = 0
    for number, fields in _STAT_LINE.findall(text):
        if int(number) in processors:
            user, nice, system, _, _, irq, softirq, steal = map(int, fields.split())
            busy += user + nice + system + irq + softirq
            stolen += steal
    return busy / ticks_per_s, stolen / ticks_per_s


def own_processors(may_use: Iterable[int], stat: str) -> frozenset[int] | None:
    """The processors that this process may use, by ``/proc/stat``; ``None`` if these are all, or if their numbers are others (lxcfs)."""
    own = frozenset(may_use)
    listed = {int(number) for number, _ in _STAT_LINE.findall(stat)}
    return own if own < listed else None


@functools.cache
def _own_processors() -> frozenset[int] | None:
    """A container, a batch job or `taskset` may leave a part of the machine to us: others on the rest do not disturb us there."""
    if sys.platform != "linux":
        return None
    return own_processors(os.sched_getaffinity(0), text_of("/proc/stat"))


def _process_time(pid: int) -> ProcessTime | None:
    try:
        process = psutil.Process(pid)
        times = process.cpu_times()
        return ProcessTime(
            created_s=process.create_time(),
            cpu_s=times.user + times.system,
            reaped_s=times.children_user + times.children_system,
        )
    except psutil.Error:
        return None


def _linux_swap_ins() -> int:
    found = re.search(r"^pswpin (\d+)", text_of("/proc/vmstat"), re.MULTILINE)
    return int(found[1]) * os.sysconf("SC_PAGE_SIZE") if found else 0


def _linux_throttles() -> int | None:
    counts = [int(text) for path in _throttle_counters() if (text := text_of(path).strip()).isdigit()]
    return sum(counts) if counts else None


@functools.cache
def _throttle_counters() -> tuple[str, ...]:
    """One counter per package (x86); reading every core takes too long on large machines."""
    by_package: dict[str, str] = {}
    for cpu in sorted(Path("/sys/devices/system/cpu").glob("cpu[0-9]*")):
        counter = cpu / "thermal_throttle/package_throttle_count"
        if counter.exists():
            by_package.setdefault(text_of(cpu / "topology/physical_package_id"), str(counter))
    return tuple(by_package.values())


# Linux: one folder for each battery and mains adapter.
_SUPPLIES = Path("/sys/class/power_supply")


def linux_battery(supplies: Path = _SUPPLIES) -> tuple[bool | None, float | None]:
    """Whether the machine runs on battery, and the charge of its first one in percent; ``None`` if unknown, or without a battery.

    Drivers choose the names (BAT0, macsmc-battery, qcom-battmgr-bat; AC, ADP1, ucsi-source-psy-…), so only the types tell. Batteries
    of wireless mice and gamepads are there, too, with the scope Device.
    """
    batteries: list[Path] = []
    mains, others = set[str](), set[str]()  # 0, or a number for what supplies the machine
    for supply in sorted(supplies.glob("*")):
        kind, online = text_of(supply / "type").strip(), text_of(supply / "online").strip()
        if text_of(supply / "scope").strip() == "Device" or text_of(supply / "present").strip() == "0":
            continue
        if kind == "Battery":
            batteries.append(supply)
        elif online.isdigit():
            (mains if kind == "Mains" else others).add(online)
    if not batteries:
        return False, None
    charge = text_of(batteries[0] / "capacity").strip()
    percent = float(charge) if charge.isdigit() else None
    states = {text_of(battery / "status").strip() for battery in batteries}
    # A port of USB that charges a telephone may be called online.
    if mains - {"0"} or (others - {"0"} and "Discharging" not in states):
        return False, percent
    if "Discharging" in states or mains | others:
        return True, percent
    return False if states & {"Charging", "Full"} else None, percent


def _battery() -> tuple[bool | None, float | None]:
    if sys.platform == "linux":
        return linux_battery()
    try:
        battery = psutil.sensors_battery()
    except (AttributeError, OSError, ValueError, psutil.Error):  # odd firmware, or no such sensor
        return None, None
    if battery is None:  # no battery: mains power
        return False, None
    plugged = cast("bool | None", battery.power_plugged)  # None if unknown
    return None if plugged is None else not plugged, round(battery.percent, 1)


def _low_power() -> bool | None:
    if _MACOS:
        return parse_low_power(output_of("pmset", "-g"))
    profile = text_of("/sys/firmware/acpi/platform_profile").strip()
    return profile == "low-power" if profile else None


def _thermal() -> str:
    if not _MACOS:
        return "unknown" if _linux_throttles() is None else "nominal"
    return parse_thermal(
        output_of("notifyutil", "-g", "com.apple.system.thermalpressurelevel"),
        output_of("pmset", "-g", "therm"),
    )
