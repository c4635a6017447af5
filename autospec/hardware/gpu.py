"""The machine's accelerators: their memory, and their use by other processes.

NVIDIA's data comes from `nvidia-ml-py`, if it is installed and a driver answers.
"""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from autospec.cells import Hardware
from autospec.hardware.identity import output_of

__all__ = [
    "Device",
    "GpuUse",
    "GpuWatch",
    "devices_here",
    "is_integrated",
    "library",
    "metal_limit_bytes",
    "nvml_devices",
    "shared_limit_bytes",
    "usable",
]


@functools.cache
def library() -> Any:
    """The initialised module `pynvml`; ``None`` if it is not installed or finds no driver."""
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return None
    return nvml


def handles(nvml: Any) -> list[Any]:
    """One handle per GPU; empty if the driver reports an error."""
    try:
        return [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
    except nvml.NVMLError:
        return []


_MIB = 1024**2
_GIB = 1024**3
# Apple allows the GPU two thirds of up to 32 GB and three quarters of more; macOS 26 allows more of large memories.
_SMALL_MAC_BYTES = 36 * _GIB
# Graphics that share the processor's memory: Intel's except Arc cards, and AMD's processors, whose names have no number.
_INTEGRATED = re.compile(
    r"\bApple\b|\bIntel\b(?!.*\bArc\b.*\b[AB]\d{2,3}\b)|\bRadeon(?: \d+M| 8\d{3}S)?(?: \(TM\))? Graphics\b"
)
# Software renderers on the processor.
_SOFTWARE = re.compile(r"llvmpipe|SwiftShader", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Device:
    """One accelerator: the backend's name of it, e.g. ``CUDA0``, and the maker's description.

    `total_bytes` is the memory that models may use, `free_bytes` its free part; on a Mac the use by others is unknown. `unified`: the
    processor shares this memory.
    """

    name: str
    description: str
    total_bytes: int
    free_bytes: int
    unified: bool = False


def is_integrated(description: str) -> bool:
    """True for the name of a GPU that shares the processor's memory."""
    return bool(_INTEGRATED.search(description))


def usable(devices: Sequence[Device]) -> tuple[Device, ...]:
    """Return the devices over which a build spreads a model.

    llama.cpp uses integrated graphics only if there is nothing else, and each card once, even if two of its libraries list it:
    only the devices of the first library count.
    """
    real = [d for d in devices if d.total_bytes and not _SOFTWARE.search(d.description)]
    discrete = [d for d in real if not d.unified]
    chosen = discrete or real
    first = [d for d in chosen if _library(d) == _library(chosen[0])] if chosen else []
    return tuple(first)


def devices_here(hardware: Hardware) -> tuple[Device, ...] | None:
    """Return this machine's accelerators, for a backend that does not list them.

    The result is empty on a machine with only a processor, and ``None`` if there is a GPU with unknown memory.
    """
    if hardware.os.startswith("macos"):
        return (metal_device(hardware),) if hardware.gpu else ()
    if found := nvml_devices():
        return found
    return () if not hardware.gpu or is_integrated(hardware.gpu) else None


def shared_limit_bytes(hardware: Hardware) -> int:
    """Memory that models may use together where the GPU shares it and the system limits the GPU (a Mac); 0 without a limit."""
    is_mac = hardware.os.startswith("macos") and hardware.gpu
    return metal_device(hardware).total_bytes if is_mac else 0


def metal_device(hardware: Hardware) -> Device:
    """The GPU of a Mac with Apple silicon."""
    limit = metal_limit_bytes(output_of("sysctl", "-n", "iogpu.wired_limit_mb"), hardware.memory_bytes)
    return Device("MTL0", hardware.gpu, limit, limit, unified=True)


def metal_limit_bytes(wired_limit_mb: str, memory_bytes: int) -> int:
    """Memory that Metal allows all models together; ``sysctl`` prints 0 or nothing for the system's default."""
    set_mib = int(wired_limit_mb) if wired_limit_mb.strip().isdigit() else 0
    if set_mib:
        return set_mib * _MIB
    return memory_bytes * 2 // 3 if memory_bytes <= _SMALL_MAC_BYTES else memory_bytes * 3 // 4


def nvml_devices() -> tuple[Device, ...]:
    """NVIDIA's GPUs from its own library; empty if that is not installed."""
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


@dataclass(frozen=True, slots=True)
class GpuUse:
    """Use of the GPUs by other processes: share of the busiest one (``None`` if unknown), and memory on all."""

    other_load: float | None
    other_memory_bytes: int


class GpuWatch:
    """Measures the use by other processes over a window. It takes well below a millisecond, outside the timed part."""

    def __init__(self, nvml: Any = None) -> None:
        self._nvml = library() if nvml is None else nvml
        self._handles = [] if self._nvml is None else handles(self._nvml)
        self._since: list[int] = []

    def start(self) -> None:
        """Start a window."""
        self._since = [self._newest(handle) for handle in self._handles]

    def finish(self, own_pids: frozenset[int]) -> GpuUse | None:
        """End the window.

        Returns ``None`` if no GPU lists any of our processes: they do not compute there, or this is a container, where the driver
        reports other process numbers.
        """
        seen = False
        memory = 0
        loads: list[float] = []
        for handle, since in zip(self._handles, self._since or [0] * len(self._handles), strict=True):
            processes = self._processes(handle)
            seen = seen or any(p.pid in own_pids for p in processes)
            memory += sum(p.usedGpuMemory or 0 for p in processes if p.pid not in own_pids)
            load = self._load(handle, since, own_pids)
            if load is not None:
                loads.append(load)
        return GpuUse(max(loads, default=None), memory) if seen else None

    def _processes(self, handle: Any) -> list[Any]:
        found: dict[int, Any] = {}
        for kind in ("nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetGraphicsRunningProcesses"):
            with suppress(self._nvml.NVMLError):
                found |= {process.pid: process for process in getattr(self._nvml, kind)(handle)}
        return list(found.values())

    def _samples(self, handle: Any, since: int) -> list[Any] | None:
        try:
            samples: list[Any] = self._nvml.nvmlDeviceGetProcessUtilization(handle, since)
        except self._nvml.NVMLError as error:
            # "Not found" means that no process was active since then.
            not_found = getattr(self._nvml, "NVML_ERROR_NOT_FOUND", None)
            told = getattr(error, "value", None)
            return [] if told is not None and told == not_found else None
        return samples

    def _newest(self, handle: Any) -> int:
        return max((s.timeStamp for s in self._samples(handle, 0) or ()), default=0)

    def _load(self, handle: Any, since: int, own_pids: frozenset[int]) -> float | None:
        samples = self._samples(handle, since)
        if samples is None:
            return None
        used: dict[int, list[int]] = {}
        for sample in samples:
            if sample.pid not in own_pids and sample.timeStamp > since:
                used.setdefault(sample.pid, []).append(sample.smUtil)
        return min(1.0, sum(sum(v) / len(v) for v in used.values()) / 100.0)
