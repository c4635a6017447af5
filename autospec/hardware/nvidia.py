"""NVIDIA's GPUs through `nvidia-ml-py` (the module `pynvml`), NVIDIA's own Python binding of its driver's library NVML.

Every function may be missing in an old binding or driver, refused to this user, or not supported by this GPU; what cannot be
read is unknown. Return types and constants: NVML API reference, https://docs.nvidia.com/deploy/nvml-api/.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

from autospec.hardware.gpu_reading import HEAT, GpuReading, GpuUse

__all__ = ["Nvidia", "library"]

# nvmlClocksEventReasons: software and hardware thermal slowdown; power brake; hardware slowdown of another or unknown cause.
_THERMAL = 0x20 | 0x40
_POWER_BRAKE = 0x80
_HARDWARE = 0x08
# NVML_VALUE_NOT_AVAILABLE is all bits set.
_UNAVAILABLE = 1 << 63
_TEMPERATURE_GPU = 0
_CLOCK_SM = 1
# What the binding raises where no process was active: "not found", or "success" with nothing in it.
_NO_SAMPLES = (0, 6)


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


class Nvidia:
    """All GPUs of this machine; see `autospec.hardware.gpu_reading.GpuSource`. Args: `nvml` is the initialised module."""

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml
        count = self._ask("nvmlDeviceGetCount") or 0
        found = (self._ask("nvmlDeviceGetHandleByIndex", index) for index in range(count))
        # A GPU that fell off the bus has no handle.
        self._cards = [card for card in found if card is not None]
        self._since: list[int] = [0] * len(self._cards)

    def readings(self) -> tuple[GpuReading, ...]:
        """See `GpuSource`. A GPU that is divided (MIG) gives one reading per instance."""
        return tuple(reading for card in self._cards for reading in self._of_card(card))

    def energies_j(self) -> tuple[float | None, ...]:
        """See `GpuSource`. The counter exists from Volta on, in millijoules since the driver was loaded.

        Unknown for a divided GPU: other instances have other users.
        """
        return tuple(
            None
            if self._is_divided(card)
            else _thousandth(self._ask("nvmlDeviceGetTotalEnergyConsumption", card))
            for card in self._cards
        )

    def start(self) -> None:
        """See `GpuSource`."""
        self._since = [self._newest(card) for card in self._cards]

    def finish(self, own_pids: frozenset[int], *, at_rest: bool = False) -> GpuUse | None:
        """See `GpuSource`."""
        seen = at_rest and bool(self._cards)
        memory_bytes = 0
        loads: list[float] = []
        for card, since in zip(self._cards, self._since, strict=True):
            processes = self._processes(card) or {}
            seen = seen or not own_pids.isdisjoint(processes)
            memory_bytes += sum(held or 0 for pid, held in processes.items() if pid not in own_pids)
            if (load := self._load(card, since, own_pids)) is not None:
                loads.append(load)
        if not seen:
            return None
        slowed = [reasons for card in self._cards if (reasons := self._slowed(card)) is not None]
        limits = [w for card in self._cards if (w := self._power_limit_w(card)) is not None]
        return GpuUse(
            max(loads, default=None),
            memory_bytes,
            heat=any(HEAT in reasons for reasons in slowed) if slowed else None,
            power_limit_w=sum(limits) if limits else None,
        )

    def _of_card(self, card: Any) -> list[GpuReading]:
        reasons = self._slowed(card)
        units, divided = self._units(card)
        return [
            GpuReading(
                self._name(unit) or self._name(card) or "NVIDIA GPU",
                getattr(memory, "total", None),
                getattr(memory, "free", None),
                self._processes(unit),
                self._ask("nvmlDeviceGetTemperature", card, _TEMPERATURE_GPU),
                _thousandth(self._ask("nvmlDeviceGetPowerUsage", card)),
                self._power_limit_w(card),
                _thousandth(self._ask("nvmlDeviceGetPowerManagementDefaultLimit", card)),
                self._ask("nvmlDeviceGetClockInfo", card, _CLOCK_SM),
                self._ask("nvmlDeviceGetMaxClockInfo", card, _CLOCK_SM),
                reasons,
                is_instance=divided,
            )
            for unit in units
            for memory in (self._ask("nvmlDeviceGetMemoryInfo", unit),)
        ]

    def _units(self, card: Any) -> tuple[list[Any], bool]:
        """The MIG instances of a divided GPU, else the GPU itself; and whether it is divided."""
        if not self._is_divided(card):
            return [card], False
        count = self._ask("nvmlDeviceGetMaxMigDeviceCount", card) or 0
        found = (self._ask("nvmlDeviceGetMigDeviceHandleByIndex", card, index) for index in range(count))
        return [instance for instance in found if instance is not None], True

    def _is_divided(self, card: Any) -> bool:
        mode = self._ask("nvmlDeviceGetMigMode", card)  # now, and after the next reset
        return bool(mode and mode[0])

    def _name(self, unit: Any) -> str:
        name = self._ask("nvmlDeviceGetName", unit)
        return name.decode() if isinstance(name, bytes) else str(name or "")

    def _processes(self, unit: Any) -> dict[int, int | None] | None:
        """Memory by pid; ``None`` if the driver lists no processes to this user."""
        lists = [
            listed
            for kind in ("nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetGraphicsRunningProcesses")
            if (listed := self._ask(kind, unit)) is not None
        ]
        if not lists:
            return None
        found: dict[int, int | None] = {}
        for process in (process for listed in lists for process in listed):
            # One that computes and draws is in both lists, perhaps with its memory in one of them only.
            held, before = _size(process.usedGpuMemory), found.get(process.pid)
            found[process.pid] = held if before is None else max(before, held or 0)
        return found

    def _slowed(self, card: Any) -> tuple[str, ...] | None:
        bits = self._ask("nvmlDeviceGetCurrentClocksEventReasons", card)
        if bits is None:  # its name until driver 535
            bits = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons", card)
        if bits is None:
            return None
        heat = (HEAT,) if bits & _THERMAL else ()
        brake = ("power brake",) if bits & _POWER_BRAKE else ()
        other = ("hardware",) if bits & _HARDWARE and not (heat or brake) else ()
        return (*heat, *brake, *other)

    def _power_limit_w(self, card: Any) -> float | None:
        """The limit that is set. The enforced one moves by itself on laptops."""
        return _thousandth(self._ask("nvmlDeviceGetPowerManagementLimit", card))

    def _samples(self, card: Any, since: int) -> list[Any] | None:
        try:
            samples: list[Any] = self._nvml.nvmlDeviceGetProcessUtilization(card, since)
        except AttributeError:
            return None
        except self._nvml.NVMLError as error:
            return [] if getattr(error, "value", None) in _NO_SAMPLES else None
        return samples

    def _newest(self, card: Any) -> int:
        return max((s.timeStamp for s in self._samples(card, 0) or ()), default=0)

    def _load(self, card: Any, since: int, own_pids: frozenset[int]) -> float | None:
        samples = self._samples(card, since)
        if samples is None:
            return None
        used: dict[int, list[int]] = {}
        for sample in samples:
            if sample.pid not in own_pids and sample.timeStamp > since:
                used.setdefault(sample.pid, []).append(sample.smUtil)
        return min(1.0, sum(sum(v) / len(v) for v in used.values()) / 100.0)

    def _ask(self, name: str, *args: Any) -> Any:
        """What a function of the library returns; ``None`` if it is missing or fails."""
        function = getattr(self._nvml, name, None)
        if function is None:
            return None
        try:
            return function(*args)
        except self._nvml.NVMLError:
            return None


def _size(told: int | None) -> int | None:
    return None if told is None or told >= _UNAVAILABLE else int(told)


def _thousandth(told: float | None) -> float | None:
    return None if told is None else told / 1000.0
