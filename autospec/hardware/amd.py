"""AMD's GPUs through `amdsmi`, which comes with ROCm.

Written from its documentation (https://rocm.docs.amd.com/projects/amdsmi/) and from py-interface/amdsmi_interface.py; it has not
run on such a GPU. A figure that a GPU lacks is the text ``N/A`` there.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import os
from collections.abc import Mapping
from typing import Any

from autospec.hardware.gpu_reading import HEAT, GpuReading, GpuUse, computing_on, energy_between, use_of

__all__ = ["Amd", "library"]

_MIB = 1024**2
_LACKING = "N/A"
# drivers/gpu/drm/amd/pm/swsmu/inc/amdgpu_smu.h: bits 32 to 47 of the throttle status are temperatures.
_THERMAL = 0xFFFF << 32
# Limits were watts until ROCm 6.0 and are microwatts since; no GPU has a limit of 100 kW.
_MICROWATTS_FROM = 1e5


@functools.cache
def library() -> Any:
    """The initialised module `amdsmi`; ``None`` if it is not installed or finds no driver."""
    try:
        smi = importlib.import_module("amdsmi")
        smi.amdsmi_init()
    except Exception:  # noqa: BLE001 - with a missing driver its import and its start fail in many ways
        return None
    return smi


class Amd:
    """All GPUs of this machine; see `autospec.hardware.gpu_reading.GpuSource`. Args: `smi` is the initialised module."""

    def __init__(self, smi: Any) -> None:
        self._smi = smi
        self._cards = list(self._ask("amdsmi_get_processor_handles") or ())
        self._energies_j: tuple[float | None, ...] = ()

    def readings(self) -> tuple[GpuReading, ...]:
        """See `GpuSource`."""
        return tuple(self._of_card(card) for card in self._cards)

    def visible(self, environ: Mapping[str, str] = os.environ) -> tuple[int, ...] | None:
        """Which of the `readings` a HIP program can use, in its order; ``None`` if that is uncertain.

        ROCR_VISIBLE_DEVICES hides GPUs from all programs, and the other two number what it leaves
        (https://rocm.docs.amd.com/en/latest/conceptual/gpu-isolation.html). Numbers are certain only among equal GPUs. A UUID is
        not believed: the library tells another one than the variable takes.
        """
        alike = len({reading.name for reading in self.readings()}) < 2
        seen = tuple(range(len(self._cards)))
        for names in (("ROCR_VISIBLE_DEVICES",), ("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")):
            told = next((environ[name] for name in names if environ.get(name)), None)
            if told is None:
                if "ROCR_VISIBLE_DEVICES" in names and "ROCR_VISIBLE_DEVICES" in environ:
                    return ()  # empty, it hides all; the others do nothing then
                continue
            words = [word.strip() for word in told.split(",")]
            if not (alike and all(word.removeprefix("-").isdigit() for word in words)):
                return None
            known = itertools.takewhile(range(len(seen)).__contains__, map(int, words))
            seen = tuple(seen[index] for index in known)
        return seen

    def energies_j(self) -> tuple[float | None, ...]:
        """See `GpuSource`. A counter with the size of its unit in microjoules."""
        return tuple(self._energy_j(card) for card in self._cards)

    def start(self) -> None:
        """See `GpuSource`. The load of other processes is unknown."""
        self._energies_j = self.energies_j()

    def finish(self, own_pids: frozenset[int], *, at_rest: bool = False) -> GpuUse | None:
        """See `GpuSource`. The time that a process computed is not told, only the time that it drew."""
        energies_j = self.energies_j()
        readings = self.readings()
        if at_rest:
            seen = self.visible()
            counted = list(range(len(readings)) if seen is None else seen)
        else:
            counted = computing_on([reading.processes for reading in readings], own_pids)
        if not counted:
            return None
        return use_of(
            [readings[index] for index in counted],
            (),
            own_pids,
            limits_w=[reading.power_limit_w for reading in readings],
            energy_j=energy_between(
                [self._energies_j[index] for index in counted] if self._energies_j else (),
                [energies_j[index] for index in counted],
            ),
        )

    def _of_card(self, card: Any) -> GpuReading:
        asic = self._told("amdsmi_get_gpu_asic_info", card)
        memory = self._told("amdsmi_get_gpu_vram_usage", card)
        power = self._told("amdsmi_get_power_info", card)
        caps = self._told("amdsmi_get_power_cap_info", card)
        clock = self._told("amdsmi_get_clock_info", card, self._member("AmdSmiClkType", "GFX"))
        total, used = _number(memory.get("vram_total")), _number(memory.get("vram_used"))
        name = asic.get("market_name")
        drawn = (power.get(key) for key in ("socket_power", "current_socket_power", "average_socket_power"))
        return GpuReading(
            str(name) if name and name != _LACKING else "AMD GPU",
            None if total is None else int(total * _MIB),
            None if total is None or used is None else int((total - used) * _MIB),
            self._processes(card),
            self._temperature_c(card),
            next((watts for value in drawn if (watts := _number(value)) is not None), None),
            _watts(caps.get("power_cap")),
            _watts(caps.get("default_power_cap")),
            _number(clock.get("clk", clock.get("cur_clk"))),
            _number(clock.get("max_clk")),
            self._slowed(card),
        )

    def _processes(self, card: Any) -> dict[int, int | None] | None:
        """Memory by pid. Before ROCm 6 the list has handles in place of dictionaries: unknown."""
        listed = self._ask("amdsmi_get_gpu_process_list", card)
        if listed is None or not all(isinstance(process, dict) for process in listed):
            return None
        found: dict[int, int | None] = {}
        for process in listed:
            usage = process.get("memory_usage")
            held = _number(usage.get("vram_mem")) if isinstance(usage, dict) else None
            found[int(process["pid"])] = None if held is None else int(held)
        return found

    def _temperature_c(self, card: Any) -> float | None:
        current = self._member("AmdSmiTemperatureMetric", "CURRENT")
        for sensor in ("HOTSPOT", "JUNCTION", "EDGE"):
            kind = self._member("AmdSmiTemperatureType", sensor)
            if (
                kind is not None
                and (told := _number(self._ask("amdsmi_get_temp_metric", card, kind, current))) is not None
            ):
                return told
        return None

    def _slowed(self, card: Any) -> tuple[str, ...] | None:
        bits = self._told("amdsmi_get_gpu_metrics_info", card).get("indep_throttle_status")
        # All bits set is the driver's "unknown".
        if not isinstance(bits, int) or bits == (1 << 64) - 1:
            return None
        return (HEAT,) if bits & _THERMAL else ()

    def _energy_j(self, card: Any) -> float | None:
        told = self._told("amdsmi_get_energy_count", card)
        # "power" until ROCm 6.
        count = _number(told.get("energy_accumulator", told.get("power")))
        unit = _number(told.get("counter_resolution"))
        return None if count is None or not unit else count * unit / 1e6

    def _member(self, enum: str, name: str) -> Any:
        return getattr(getattr(self._smi, enum, None), name, None)

    def _told(self, name: str, *args: Any) -> dict[str, Any]:
        told = self._ask(name, *args)
        return told if isinstance(told, dict) else {}

    def _ask(self, name: str, *args: Any) -> Any:
        """What a function of the library returns; ``None`` if it is missing or fails."""
        function = getattr(self._smi, name, None)
        if function is None:
            return None
        try:
            return function(*args)
        except self._smi.AmdSmiException:
            return None


def _number(told: Any) -> float | None:
    return float(told) if isinstance(told, int | float) and not isinstance(told, bool) else None


def _watts(told: Any) -> float | None:
    watts = _number(told)
    # No limit is reported as 0.
    if not watts:
        return None
    return watts / 1e6 if watts >= _MICROWATTS_FROM else watts
