"""Identify this machine: its kind (`identify`), this one machine (`host_digest`), and how alike two machines are (`likeness`).

Reads /proc and /sys on Linux, and asks sysctl and ioreg on macOS.
"""

from __future__ import annotations

import functools
import hashlib
import math
import os
import platform
import re
import shutil
import struct
import sys
import uuid
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from autospec.cells import Hardware

__all__ = [
    "ROSETTA",
    "ROSETTA_HINT",
    "built_for",
    "describe",
    "host_digest",
    "identify",
    "installed_gib",
    "is_translated",
    "likeness",
    "most_alike",
    "output_of",
    "parse_cpuinfo",
    "parse_ioreg",
    "parse_mach_o",
    "parse_nvidia_smi",
    "parse_platform_uuid",
    "text_of",
]


def output_of(*command: str, timeout_s: float = 5.0) -> str:
    """Return a program's stdout; empty if it is missing, fails or takes too long."""
    import subprocess  # noqa: PLC0415 - slow, and Linux mostly needs no program

    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=timeout_s,
            check=True,
            env={**os.environ, "LC_ALL": "C"},
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode("utf-8", "replace")


def text_of(path: Path | str) -> str:
    """Return a system file's text; empty if it cannot be read."""
    try:
        return Path(path).read_text("utf-8", errors="replace")
    except OSError:
        return ""


_GIB = 1024**3
# mach-o/loader.h, mach-o/fat.h, mach/machine.h.
_MACH_O_64_SWAPPED = 0xCFFAEDFE
_MACH_O_UNIVERSAL = 0xCAFEBABE
_MOST_PROCESSORS = 20
_CPU_X86_64 = 0x01000007
_CPU_ARM64 = 0x0100000C
# Without an answer the machine would get another id, and nothing would be known of it: a machine that swaps takes long.
_PATIENCE_S = 30.0
_MAC_SYSCTLS = ("machdep.cpu.brand_string", "hw.memsize")


ROSETTA = "This Python is an Intel program on Apple silicon (Rosetta): it has no Metal, and its speeds are not this Mac's."
ROSETTA_HINT = (
    "Install one for arm64 (brew install python, with Homebrew in /opt/homebrew), and autospec with it."
)


@functools.cache
def identify() -> Hardware:
    """Return this machine's hardware; read once per process."""
    return _macos() if sys.platform == "darwin" else _linux(Path("/"))


def describe(*, chip: str, memory_bytes: int, cores: int, os_name: str, gpu: str) -> Hardware:
    """Build the `Hardware` with an id that equal machines share.

    The id contains the installed memory in whole GiB, because the kernel's reserved part changes with its version. It leaves
    out the operating system, whose updates do not change the machine.
    """
    gib = installed_gib(memory_bytes)
    digest = hashlib.sha256(f"{chip}|{gib}|{cores}|{gpu}".encode()).hexdigest()[:6]
    words = re.sub(r"\((?:r|tm|c)\)|\b(?:cpu|processor)\b|@.*|\b\d+-core\b", " ", chip.lower())
    slug = "-".join(re.findall(r"[a-z0-9]+", words)) or "unknown"
    return Hardware(
        id=f"{slug}-{gib}g-{digest}",
        chip=chip,
        memory_bytes=memory_bytes,
        cores=cores,
        os=os_name,
        gpu=gpu,
    )


def installed_gib(memory_bytes: int) -> int:
    """Return the installed memory in GiB for what the system reports, which is a little less on Linux.

    Rounded up to a sixteenth of the next lower power of two, at least 1 GiB: memory comes in such sizes, and firmware and kernel
    together keep less than one step.
    """
    gib = memory_bytes / _GIB
    step = max(1, 2 ** (math.floor(math.log2(gib)) - 4)) if gib >= 1 else 1
    return max(1, math.ceil(gib / step) * step)


def parse_cpuinfo(text: str) -> str:
    """The processor's name in /proc/cpuinfo; empty if it has none (most ARM kernels), or only its architecture's (Jetson's)."""
    found = re.search(r"^(?:model name|cpu model|cpu)\s*:\s*(?!ARMv\d+ Processor)(\S.*)$", text, re.MULTILINE)
    return " ".join(found[1].split()) if found else ""


def parse_nvidia_smi(text: str) -> tuple[str, ...]:
    """GPU names in the output of ``nvidia-smi -L``."""
    return tuple(re.findall(r"^GPU \d+: (.+?)(?: \(UUID: .*)?$", text, re.MULTILINE))


def parse_ioreg(text: str) -> int:
    """GPU cores in the output of ``ioreg -rc AGXAccelerator -d 1``; 0 if missing."""
    found = re.search(r'"gpu-core-count" = (\d+)', text)
    return int(found[1]) if found else 0


def is_translated() -> bool:
    """True if this Python is an Intel program on Apple silicon (Rosetta): no Metal, and speeds of another machine."""
    if sys.platform != "darwin" or platform.machine() == "arm64":
        return False
    return output_of("sysctl", "-n", "sysctl.proc_translated").strip() == "1"


def parse_mach_o(head: bytes) -> frozenset[str]:
    """The processors that a macOS program was built for, from its first bytes: ``arm64``, ``x86_64``; empty if it is none."""
    names = {_CPU_X86_64: "x86_64", _CPU_ARM64: "arm64"}
    if len(head) < 8:
        return frozenset()
    magic, second = struct.unpack(">II", head[:8])
    if magic == _MACH_O_64_SWAPPED:
        (cpu,) = struct.unpack("<I", head[4:8])
        return frozenset({names[cpu]} if cpu in names else ())
    # Java's classes begin like universal programs; their second word is a version, above any number of processors.
    if magic != _MACH_O_UNIVERSAL or second > _MOST_PROCESSORS:
        return frozenset()
    entries = (head[8 + 20 * index : 12 + 20 * index] for index in range(second))
    cpus = [struct.unpack(">I", entry)[0] for entry in entries if len(entry) == 4]
    return frozenset(names[cpu] for cpu in cpus if cpu in names)


def built_for(program: Path) -> frozenset[str]:
    """The processors that a macOS program was built for; empty if unknown."""
    try:
        with program.open("rb") as opened:
            return parse_mach_o(opened.read(512))
    except OSError:
        return frozenset()


def _macos() -> Hardware:
    # One call; one answer per line, in the same order.
    lines = output_of("sysctl", "-n", *_MAC_SYSCTLS, timeout_s=_PATIENCE_S).splitlines()
    chip, memory = lines if len(lines) == len(_MAC_SYSCTLS) else ("Mac", "0")
    gpu = ""
    if platform.machine() == "arm64":
        # The same chip is sold with different GPUs.
        cores = parse_ioreg(output_of("ioreg", "-rc", "AGXAccelerator", "-d", "1", timeout_s=_PATIENCE_S))
        gpu = f"{chip} {cores}-core GPU" if cores else f"{chip} GPU"
    return describe(
        chip=chip.strip(),
        memory_bytes=int(memory) if memory.isdigit() else 0,
        cores=os.cpu_count() or 1,
        os_name=f"macos {platform.mac_ver()[0]}".strip(),
        gpu=gpu,
    )


def _linux(root: Path) -> Hardware:
    chip = (
        parse_cpuinfo(text_of(root / "proc/cpuinfo"))
        or text_of(root / "proc/device-tree/model").strip("\0\n ")
        or text_of(root / "sys/devices/virtual/dmi/id/product_name").strip()
        or platform.machine()
    )
    return describe(
        chip=chip,
        memory_bytes=_linux_memory(root),
        cores=_linux_cores(root),
        os_name=f"linux {platform.release()}",
        gpu=_named(_nvidia(root) + _other_gpus(root)),
    )


def _linux_memory(root: Path) -> int:
    found = re.search(r"^MemTotal:\s*(\d+) kB", text_of(root / "proc/meminfo"), re.MULTILINE)
    total = int(found[1]) * 1024 if found else 0
    # A container's limit; version 1 of the control groups writes "none" as a number above any memory.
    named = (
        text_of(root / "sys/fs/cgroup" / file).strip()
        for file in ("memory.max", "memory/memory.limit_in_bytes")
    )
    return min([total, *(int(limit) for limit in named if limit.isdigit())])


def _linux_cores(root: Path) -> int:
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    quota = text_of(root / "sys/fs/cgroup/cpu.max").split()
    if len(quota) == 2 and quota[0].isdigit():
        cores = min(cores, max(1, round(int(quota[0]) / int(quota[1]))))
    return cores


def _nvidia(root: Path) -> tuple[str, ...]:
    names = [
        found[1].strip()
        for card in sorted(root.glob("proc/driver/nvidia/gpus/*/information"))
        if (found := re.search(r"^Model:\s*(.+)$", text_of(card), re.MULTILINE))
    ]
    if names:
        return tuple(names)
    # WSL has the program but not the driver's folder, and only an interactive shell's PATH leads to it: a service's does not.
    program = shutil.which("nvidia-smi") or shutil.which(str(root / "usr/lib/wsl/lib/nvidia-smi"))
    if program is None:
        return ()
    return parse_nvidia_smi(output_of(program, "-L", timeout_s=_PATIENCE_S))


def _other_gpus(root: Path) -> tuple[str, ...]:
    vendors = {"0x1002": "AMD", "0x8086": "Intel"}
    names: list[str] = []
    for card in sorted(root.glob("sys/class/drm/card*")):
        vendor = vendors.get(text_of(card / "device/vendor").strip())
        if vendor and re.fullmatch(r"card\d+", card.name):
            product = text_of(card / "device/product_name").strip()
            names.append(product or f"{vendor} GPU {text_of(card / 'device/device').strip()}")
    return tuple(names)


def _named(gpus: Iterable[str]) -> str:
    """One text for all GPUs: ``2 x NVIDIA GeForce RTX 4090``."""
    return ", ".join(f"{n} x {name}" if n > 1 else name for name, n in sorted(Counter(gpus).items()))


# machine-id(5) asks applications to show only a keyed hash of the id.
_SALT = b"autospec host"


@functools.cache
def host_digest() -> str:
    """Return twelve hex digits that stay the same if memory, system or disk of this machine change.

    Linux: /etc/machine-id. macOS: IOPlatformUUID. Otherwise the network card's address.
    """
    if sys.platform == "darwin":
        found = parse_platform_uuid(output_of("ioreg", "-rd1", "-c", "IOPlatformExpertDevice"))
    else:
        found = text_of("/etc/machine-id").strip() or text_of("/var/lib/dbus/machine-id").strip()
    return hashlib.sha256(_SALT + (found or f"{uuid.getnode():012x}").encode()).hexdigest()[:12]


def parse_platform_uuid(text: str) -> str:
    """The UUID in the output of ``ioreg -rd1 -c IOPlatformExpertDevice``; empty if missing."""
    found = re.search(r'"IOPlatformUUID" = "([0-9A-F-]+)"', text)
    return found[1] if found else ""


# Weights by influence on a model's speed: accelerator, processor, memory. The operating system decides which backends exist.
_GPU, _CHIP, _MEMORY, _CORES, _OS = 0.35, 0.30, 0.15, 0.10, 0.10


def likeness(one: Hardware, other: Hardware) -> float:
    """How well one machine's speeds predict the other's: 1 for the same kind of machine, 0 for nothing in common."""
    if one.id == other.id:
        return 1.0
    return (
        _GPU * _names(one.gpu, other.gpu)
        + _CHIP * _names(one.chip, other.chip)
        + _MEMORY * _ratio(one.memory_bytes, other.memory_bytes)
        + _CORES * _ratio(one.cores, other.cores)
        + _OS * (_system(one) == _system(other))
    )


def most_alike(here: Hardware, others: Iterable[Hardware]) -> Hardware | None:
    """The machine most like this one; the first of equals. ``None`` if there is none."""
    return max(others, key=lambda other: likeness(here, other), default=None)


def _names(one: str, other: str) -> float:
    """Common words ÷ all words, so that an M2 Max is closer to an M2 Ultra than to a Xeon."""
    words, others = (set(re.findall(r"[a-z0-9]+", name.lower())) for name in (one, other))
    return len(words & others) / len(words | others) if words | others else 1.0


def _ratio(one: float, other: float) -> float:
    """1 for equal sizes, 0 from a factor of eight."""
    if one <= 0 or other <= 0:
        return float(one == other)
    return max(0.0, 1.0 - abs(math.log2(one / other)) / 3.0)


def _system(hardware: Hardware) -> str:
    return hardware.os.split(" ", 1)[0]
