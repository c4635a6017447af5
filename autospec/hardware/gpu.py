"""The GPUs of this machine, of all makers: as places for models, a reading of each, and their use by other processes.

What NVIDIA's and AMD's drivers tell is read in modules of their own; a Mac's is read here.
"""

from __future__ import annotations

import platform
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from autospec.cells import Hardware
from autospec.hardware import amd, nvidia
from autospec.hardware.gpu_reading import GpuReading, GpuSource, GpuUse
from autospec.hardware.identity import output_of, text_of

__all__ = [
    "Device",
    "GpuWatch",
    "Metal",
    "cards",
    "devices_here",
    "driver_devices",
    "in_package",
    "is_integrated",
    "metal_limit_bytes",
    "model_memory_bytes",
    "on_metal",
    "parse_gpu_clients",
    "read_gpus",
    "shared_limit_bytes",
    "shares_memory",
    "usable",
]


_MIB = 1024**2
_GIB = 1024**3
# Apple allows the GPU two thirds of up to 32 GB and three quarters of more; macOS 26 allows more of large memories.
_SMALL_MAC_BYTES = 36 * _GIB
# Graphics that share the processor's memory: Intel's except Arc cards, and AMD's processors, whose names have no number. Cards
# that only have an id (`autospec.hardware.identity`): Linux, include/drm/intel/pciids.h, DG1, DG2 and BMG.
_INTEGRATED = re.compile(
    r"\bApple\b|\bIntel\b(?!.*(?:\bArc\b.*\b[AB]\d{2,3}M?\b|(?:\bGPU |\[)0x(?:490|56|e2)|\bData Center GPU\b|\bXe MAX\b))"
    r"|\bRadeon(?: ?\(TM\))?(?:(?: RX)? Vega \d{1,2}| \d+M| 8\d{3}S)?(?: ?\(TM\))? Graphics\b"
    # Mesa's RADV gives cards that it has no name for the same one, with the chip behind it.
    r"(?!.*\bRADV (?:VEGA(?:10|12|20)|NAVI[1-4]\d|GFX120\d)\b)"
    r"|\bRadeon(?: ?\(TM\))? (?:\d{3}M|8\d{3}S)\b|\bAMD Custom GPU 0(?:405|932)\b"
)
# ROCm calls a card like this, too, if it has no name for it: the MI50 (llama-server --list-devices, amdsmi).
_UNNAMED_RADEON = re.compile(r"(?:AMD )?Radeon(?: ?\(TM\))? Graphics")
_KFD_TARGET = re.compile(r"^gfx_target_version (\d+)$", re.MULTILINE)
# Major version, two digits of minor version, two of stepping: 90010 is gfx90a. dGPU in LLVM's table of processors
# (https://llvm.org/docs/AMDGPUUsage.html). A card and an APU have no cores in their nodes alike, so those tell nothing.
_KFD_CARDS = frozenset(
    {80002, 80003, 90000, 90004, 90006, 90008, 90010, 100100, 100101, 100102}
    | {100300, 100301, 100302, 100304, 110000, 110001, 110002, 120000, 120001}
)
# Systems on a chip: NVIDIA's DGX Spark and Jetson, Qualcomm's, small boards. Their GPUs have no memory of their own.
_SYSTEM_ON_CHIP = re.compile(r"\b(?:GB10|Orin|Xavier|Thor|Tegra|Adreno|Mali|V3D|BC-250)\b")
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
    return in_package(description) or bool(_SYSTEM_ON_CHIP.search(description))


def shares_memory(description: str, root: Path = Path("/")) -> bool:
    """`is_integrated` for a GPU of this machine, where Linux tells a card from graphics in the processor with the same name."""
    if _UNNAMED_RADEON.fullmatch(description) and _has_only_cards(root):
        return False
    return is_integrated(description)


def _has_only_cards(root: Path) -> bool:
    """True if AMD's driver for computing has GPUs and knows all of them as cards: which name is whose is not told."""
    nodes = root.glob("sys/class/kfd/kfd/topology/nodes/*/properties")
    found = [int(target[1]) for node in nodes if (target := _KFD_TARGET.search(text_of(node)))]
    gpus = [target for target in found if target]  # a processor's node has 0
    return bool(gpus) and _KFD_CARDS.issuperset(gpus)


def in_package(description: str) -> bool:
    """True for the name of integrated graphics whose energy is in the processor's counter (Intel, AMD; Apple has none)."""
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
    """Return this machine's accelerators, for a backend that does not list them: what a backend lists goes first.

    The result is empty on a machine with only a processor, and ``None`` if there is a GPU with unknown memory.
    """
    if hardware.os.startswith("macos"):
        return (metal_device(hardware),) if hardware.gpu else ()
    if found := driver_devices():
        return found
    # A card beside integrated graphics has memory that nobody tells.
    names = hardware.gpu.split(", ") if hardware.gpu else []
    return () if all(map(is_integrated, names)) else None


def cards(hardware: Hardware) -> tuple[Device, ...]:
    """The GPUs with memory of their own over which a build spreads a model; empty on a Mac, and where no driver tells."""
    return () if not hardware.gpu or hardware.os.startswith("macos") else usable(driver_devices())


def model_memory_bytes(hardware: Hardware) -> int:
    """Memory that can hold models: the system's and the cards' own together; 0 if the system's is unknown."""
    if not hardware.memory_bytes:
        return 0
    return hardware.memory_bytes + sum(card.total_bytes for card in cards(hardware))


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


def driver_devices() -> tuple[Device, ...]:
    """GPUs with memory of their own, from the library of NVIDIA's or AMD's driver; empty without one.

    What CUDA_VISIBLE_DEVICES, ROCR_VISIBLE_DEVICES or HIP_VISIBLE_DEVICES hides is left out, and so are all if that is uncertain. If
    a GPU is divided (MIG), CUDA uses one instance and no other GPU: the first, unless CUDA_VISIBLE_DEVICES names another. Graphics
    that share the processor's memory are left out: drivers tell a part that is kept for them, or nothing.
    """
    if (nvml := nvidia.library()) is not None:
        source = nvidia.Nvidia(nvml)
        visible = source.visible()
        if visible is None:
            return ()
        readings = source.readings()
        seen = [readings[index] for index in visible]
        instances = [reading for reading in seen if reading.is_instance]
        if found := _devices("CUDA", instances[:1] or seen):
            return found
    if (smi := amd.library()) is None:
        return ()
    gpus = amd.Amd(smi)
    readings = gpus.readings()
    visible = gpus.visible()
    if visible is None and sum(not shares_memory(reading.name) for reading in readings) == 1:
        # The number chooses between a card and graphics in the processor, which is left out anyway.
        visible = tuple(range(len(readings)))
    return _devices("ROCm", [readings[index] for index in visible or ()])


def _devices(library: str, readings: Sequence[GpuReading]) -> tuple[Device, ...]:
    return tuple(
        Device(f"{library}{index}", r.name, r.total_bytes, r.free_bytes)
        for index, r in enumerate(readings)
        if r.total_bytes is not None and r.free_bytes is not None and not shares_memory(r.name)
    )


def _library(device: Device) -> str:
    return device.name.rstrip("0123456789")


_CREATOR = re.compile(r'"IOUserClientCreator"\s*=\s*"pid (\d+)')
_TIME = re.compile(r'"accumulatedGPUTime"\s*=\s*(\d+)')
_CLIENTS = ("ioreg", "-r", "-d", "1", "-w", "0", "-c", "AGXDeviceUserClient")


def on_metal() -> bool:
    """True where models compute on a Mac's GPU: Apple silicon, and a Python for it."""
    return sys.platform == "darwin" and platform.machine() == "arm64"


def parse_gpu_clients(text: str) -> dict[int, int]:
    """Nanoseconds on the GPU by process in the output of ``ioreg -r -d 1 -w 0 -c AGXDeviceUserClient``.

    A process may have several clients, and a client several queues.
    """
    found: dict[int, int] = {}
    # Within a client, the queues come before or after the process.
    for client in text.split("+-o ")[1:]:
        if creator := _CREATOR.search(client):
            pid = int(creator[1])
            found[pid] = found.get(pid, 0) + sum(map(int, _TIME.findall(client)))
    return found


def _read() -> dict[int, int]:
    return parse_gpu_clients(output_of(*_CLIENTS))


class Metal:
    """The GPU of this Mac with Apple silicon; see `autospec.hardware.gpu_reading.GpuSource`.

    The driver counts the GPU time of each process; Activity Monitor shows the same figures. Every user may read
    them. The format is Apple's own and may change; it has not been tried on a Mac. A look takes some 20 ms,
    outside the timed part.
    """

    def __init__(
        self, read: Callable[[], Mapping[int, int]] = _read, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._read = read
        self._clock = clock
        self._before: Mapping[int, int] = {}
        self._started_s = 0.0

    def readings(self) -> tuple[GpuReading, ...]:
        """See `GpuSource`. Nothing that an ordinary user may read."""
        return ()

    def energies_j(self) -> tuple[float | None, ...]:
        """See `GpuSource`. powermetrics(1) needs root."""
        return ()

    def start(self) -> None:
        """See `GpuSource`."""
        self._before = self._read()
        self._started_s = self._clock()

    def finish(self, own_pids: frozenset[int], *, at_rest: bool = False) -> GpuUse | None:
        """See `GpuSource`."""
        window_s = self._clock() - self._started_s
        after = self._read()
        if not self._before or not after or window_s <= 0.0:
            return None
        if not at_rest and own_pids.isdisjoint(after):
            return None
        # A process without a figure before has opened the GPU since; one that closed a client has a smaller figure.
        used_ns = sum(
            max(0, ns - self._before.get(pid, 0)) for pid, ns in after.items() if pid not in own_pids
        )
        return GpuUse(min(1.0, used_ns / 1e9 / window_s))


def _sources() -> tuple[GpuSource, ...]:
    """What can be asked here; empty without a driver, or without its library."""
    if sys.platform == "darwin":
        return (Metal(),) if on_metal() else ()
    found: list[GpuSource] = []
    if (nvml := nvidia.library()) is not None:
        found.append(nvidia.Nvidia(nvml))
    if (smi := amd.library()) is not None:
        found.append(amd.Amd(smi))
    return tuple(found)


def read_gpus(sources: Sequence[GpuSource] | None = None) -> tuple[GpuReading, ...]:
    """Every GPU now; empty if nothing can be asked."""
    return tuple(
        reading for source in (_sources() if sources is None else sources) for reading in source.readings()
    )


class GpuWatch:
    """Measures the use by other processes over a window, outside the timed part. Args: `sources` are this machine's by default."""

    def __init__(self, sources: Sequence[GpuSource] | None = None) -> None:
        self._sources = _sources() if sources is None else tuple(sources)

    def start(self) -> None:
        """Start a window."""
        for source in self._sources:
            source.start()

    def finish(self, own_pids: frozenset[int], *, at_rest: bool = False) -> GpuUse | None:
        """End the window; see `GpuSource.finish`."""
        found = [
            use for source in self._sources if (use := source.finish(own_pids, at_rest=at_rest)) is not None
        ]
        if len(found) < 2:
            return found[0] if found else None
        memory_bytes = _sum([use.other_memory_bytes for use in found])
        return GpuUse(
            max((use.other_load for use in found if use.other_load is not None), default=None),
            None if memory_bytes is None else int(memory_bytes),
            heat=None if all(use.heat is None for use in found) else any(use.heat for use in found),
            power_limit_w=_sum([use.power_limit_w for use in found]),
            energy_j=None
            if any(use.energy_j is None for use in found)
            else _sum([use.energy_j for use in found]),
        )

    def energy_j(self) -> float | None:
        """The energy counters of all GPUs together, in joules from an arbitrary zero.

        ``None`` without a GPU, or if one of them has no counter: it may be the one that computes. Where it is known which GPUs compute,
        `GpuUse.energy_j` is of those alone.
        """
        counters = [counter for source in self._sources for counter in source.energies_j()]
        known = [counter for counter in counters if counter is not None]
        return sum(known) if counters and len(known) == len(counters) else None


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None
