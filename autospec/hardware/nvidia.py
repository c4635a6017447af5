"""NVIDIA's GPUs through `nvidia-ml-py` (the module `pynvml`), NVIDIA's own Python binding of its driver's library NVML.

Every function may be missing in an old binding or driver, refused to this user, or not supported by this GPU; what cannot be
read is unknown. Return types and constants: NVML API reference, https://docs.nvidia.com/deploy/nvml-api/.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Mapping
from typing import Any

from autospec.hardware.gpu_reading import HEAT, GpuReading, GpuUse, computing_on, energy_between, use_of

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
        # (number of the card, the card or its instance, whether it is an instance)
        self._units = [
            (number, unit, divided)
            for number, card in enumerate(self._cards)
            for units, divided in (self._units_of(card),)
            for unit in units
        ]
        self._since: list[int] = [0] * len(self._cards)
        self._energies_j: tuple[float | None, ...] = ()

    def readings(self) -> tuple[GpuReading, ...]:
        """See `GpuSource`. A GPU that is divided (MIG) gives one reading per instance."""
        return tuple(self._of_unit(*unit) for unit in self._units)

    def visible(self, environ: Mapping[str, str] = os.environ) -> tuple[int, ...] | None:
        """Which of the `readings` a CUDA program can use, in its order; ``None`` if that is uncertain.

        CUDA numbers the fastest GPU first and the driver goes by the bus, so a number is certain only among equal GPUs.
        """
        named = environ.get("CUDA_VISIBLE_DEVICES")
        if named is None:
            return tuple(range(len(self._units)))
        by_bus = (
            environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID" or len(set(map(self._name, self._cards))) < 2
        )
        found: list[int] = []
        for word in map(str.strip, named.split(",")):
            if word.isdigit() and not by_bus:
                return None
            fitting = [
                index
                for index, (card, unit, _) in enumerate(self._units)
                if (card == int(word) if word.isdigit() else self._has_uuid(card, unit, word))
            ]
            if not fitting:
                break  # CUDA reads no further
            found.append(fitting[0])
        return tuple(found)

    def energies_j(self) -> tuple[float | None, ...]:
        """See `GpuSource`. The counter exists from Volta on, in millijoules since the driver was loaded.

        Unknown for a divided GPU: other instances have other users.
        """
        divided = {number for number, _, is_instance in self._units if is_instance}
        return tuple(
            None if number in divided else _thousandth(self._ask("nvmlDeviceGetTotalEnergyConsumption", card))
            for number, card in enumerate(self._cards)
        )

    def start(self) -> None:
        """See `GpuSource`."""
        self._since = [self._newest(card) for card in self._cards]
        self._energies_j = self.energies_j()

    def finish(self, own_pids: frozenset[int], *, at_rest: bool = False) -> GpuUse | None:
        """See `GpuSource`."""
        energies_j = self.energies_j()
        readings = self.readings()
        loads = [self._loads(card, since) for card, since in zip(self._cards, self._since, strict=True)]
        worked = [
            index
            for index, (card, _, _) in enumerate(self._units)
            if any(load > 0.0 for pid, load in (loads[card] or {}).items() if pid in own_pids)
        ]
        counted = computing_on([reading.processes for reading in readings], own_pids, worked)
        if at_rest:
            seen = self.visible()
            counted = list(range(len(readings)) if seen is None else seen)
        if not counted:
            return None
        cards = sorted({self._units[index][0] for index in counted})
        of_others = [
            None
            if (by_pid := loads[card]) is None
            else min(1.0, sum(load for pid, load in by_pid.items() if pid not in own_pids))
            for card in cards
        ]
        return use_of(
            [readings[index] for index in counted],
            of_others,
            own_pids,
            limits_w=[self._power_limit_w(card) for card in self._cards],
            energy_j=energy_between(
                [self._energies_j[card] for card in cards] if self._energies_j else (),
                [energies_j[card] for card in cards],
            ),
        )

    def _of_unit(self, number: int, unit: Any, divided: bool) -> GpuReading:
        card = self._cards[number]
        memory = self._ask("nvmlDeviceGetMemoryInfo", unit)
        return GpuReading(
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
            self._slowed(card),
            is_instance=divided,
        )

    def _units_of(self, card: Any) -> tuple[list[Any], bool]:
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
        return _text(self._ask("nvmlDeviceGetName", unit))

    def _has_uuid(self, card: int, unit: Any, start: str) -> bool:
        """True if a GPU, or the GPU of an instance, is named by this start of an id (``GPU-3f1b``, ``MIG-…``)."""
        ids = [_text(self._ask("nvmlDeviceGetUUID", named)) for named in (unit, self._cards[card])]
        return bool(start) and any(one.startswith(start) for one in ids)

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

    def _loads(self, card: Any, since: int) -> dict[int, float] | None:
        """The share of the GPU that each process used since then; ``None`` if the driver does not tell."""
        samples = self._samples(card, since)
        if samples is None:
            return None
        used: dict[int, list[int]] = {}
        for sample in samples:
            if sample.timeStamp > since:
                used.setdefault(sample.pid, []).append(sample.smUtil)
        return {pid: sum(shares) / len(shares) / 100.0 for pid, shares in used.items()}

    def _ask(self, name: str, *args: Any) -> Any:
        """What a function of the library returns; ``None`` if it is missing or fails."""
        function = getattr(self._nvml, name, None)
        if function is None:
            return None
        try:
            return function(*args)
        except self._nvml.NVMLError:
            return None


def _text(told: str | bytes | None) -> str:
    return told.decode() if isinstance(told, bytes) else str(told or "")


def _size(told: int | None) -> int | None:
    return None if told is None or told >= _UNAVAILABLE else int(told)


def _thousandth(told: float | None) -> float | None:
    return None if told is None else told / 1000.0
