"""How much memory models can have on this machine's accelerator: values, and what can be asked without a backend."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from autospec.cells import Hardware
from autospec.hardware.commands import output_of
from autospec.hardware.nvml import handles, library

__all__ = [
    "Device",
    "devices_here",
    "is_integrated",
    "metal_device",
    "metal_limit_bytes",
    "nvml_devices",
    "usable",
]

_MIB = 1024**2
_GIB = 1024**3
# Apple gives the GPU two thirds of up to 32 GB and three quarters of more; macOS 26 gives more of large memories.
_SMALL_MAC_BYTES = 36 * _GIB
# Graphics that take their memory from the processor's: Intel's but Arc cards, and AMD's processors, whose names have no number.
_INTEGRATED = re.compile(
    r"\bApple\b|\bIntel\b(?!.*\bArc\b.*\b[AB]\d{2,3}\b)|\bRadeon(?: \d+M| 8\d{3}S)?(?: \(TM\))? Graphics\b"
)
# Not named by their makers: software that draws on the processor.
_SOFTWARE = re.compile(r"llvmpipe|SwiftShader", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Device:
    """One accelerator.

    Attributes:
        name: As a backend names it, e.g. ``CUDA0``.
        description: The maker's name.
        total_bytes: What models may use of it.
        free_bytes: What of that is free now. On a Mac: for a process that has nothing yet; others' use is not told.
        unified: True if that memory is the processor's too.
    """

    name: str
    description: str
    total_bytes: int
    free_bytes: int
    unified: bool = False


def is_integrated(description: str) -> bool:
    """True for graphics that share the processor's memory, by their name."""
    return bool(_INTEGRATED.search(description))


def usable(devices: Sequence[Device]) -> tuple[Device, ...]:
    """Of all devices that a build shows, those that a model is spread over.

    llama.cpp takes integrated graphics only where there is nothing else, and a card once, even if two of its libraries
    show it: the devices of the first library count.
    """
    real = [d for d in devices if d.total_bytes and not _SOFTWARE.search(d.description)]
    discrete = [d for d in real if not d.unified]
    chosen = discrete or real
    first = [d for d in chosen if _library(d) == _library(chosen[0])] if chosen else []
    return tuple(first)


def devices_here(hardware: Hardware) -> tuple[Device, ...] | None:
    """The accelerators of this machine, for a backend that does not tell which it has.

    Returns:
        None of them on a machine that has only a processor; ``None`` where there is a GPU and its memory is unknown.
    """
    if hardware.os.startswith("macos"):
        return (metal_device(hardware),) if hardware.gpu else ()
    if found := nvml_devices():
        return found
    return () if not hardware.gpu or is_integrated(hardware.gpu) else None


def metal_device(hardware: Hardware) -> Device:
    """The GPU of a Mac with Apple silicon."""
    limit = metal_limit_bytes(output_of("sysctl", "-n", "iogpu.wired_limit_mb"), hardware.memory_bytes)
    return Device("MTL0", hardware.gpu, limit, limit, unified=True)


def metal_limit_bytes(wired_limit_mb: str, memory_bytes: int) -> int:
    """What Metal lets all models together use.

    Args:
        wired_limit_mb: What ``sysctl -n iogpu.wired_limit_mb`` prints: 0, or nothing, for the system's own limit.
        memory_bytes: Installed memory.
    """
    set_mib = int(wired_limit_mb) if wired_limit_mb.strip().isdigit() else 0
    if set_mib:
        return set_mib * _MIB
    return memory_bytes * 2 // 3 if memory_bytes <= _SMALL_MAC_BYTES else memory_bytes * 3 // 4


def nvml_devices() -> tuple[Device, ...]:
    """NVIDIA's GPUs as its own library tells them; none where it is not installed."""
    nvml = library()
    if nvml is None:
        return ()
    found = []
    for index, handle in enumerate(handles(nvml)):
        try:
            memory, name = nvml.nvmlDeviceGetMemoryInfo(handle), nvml.nvmlDeviceGetName(handle)
        except nvml.NVMLError:
            continue
        text = name.decode() if isinstance(name, bytes) else str(name)
        found.append(Device(f"CUDA{index}", text, int(memory.total), int(memory.free)))
    return tuple(found)


def _library(device: Device) -> str:
    return device.name.rstrip("0123456789")
