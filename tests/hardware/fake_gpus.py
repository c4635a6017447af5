"""Stand-ins for the modules `pynvml` and `amdsmi`, with the return types that their documentation gives.

pynvml: nvidia-ml-py 12 and 13 (pynvml.py) and NVIDIA's NVML API reference. amdsmi: py-interface/amdsmi_interface.py of ROCm 6 and 7.
"""

# ruff: noqa: D102, N802, N818 - the names are the modules', and so are the descriptions

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

GIB = 1024**3
NOT_SUPPORTED, NO_PERMISSION, NOT_FOUND, GPU_IS_LOST = 3, 4, 6, 15
# What the binding returns for NVML_VALUE_NOT_AVAILABLE in some versions; None in others.
UNAVAILABLE = (1 << 64) - 1


class NVMLError(Exception):
    """What pynvml raises; it has a subclass for each value."""

    def __init__(self, value: int) -> None:
        super().__init__(value)
        self.value = value


@dataclass
class Card:
    """One GPU. A function named in `errors` raises NVMLError with that value; `processes` are (pid, bytes)."""

    name: str | bytes = "NVIDIA GeForce RTX 4090"
    total: int = 24 * GIB
    free: int = 23 * GIB
    compute: list[tuple[int, int | None]] = field(default_factory=list)
    graphics: list[tuple[int, int | None]] = field(default_factory=list)
    samples: list[tuple[int, int, int]] = field(default_factory=list)
    reasons: int = 0
    energy_mj: int = 1_000_000
    limit_mw: int = 450_000
    instances: list[Card | None] | None = None
    uuid: str = ""
    errors: dict[str, int] = field(default_factory=dict)
    no_samples: int = NOT_FOUND


class FakeNvml:
    """The module `pynvml` with these GPUs; `missing` are functions that the binding does not have yet."""

    NVMLError = NVMLError

    def __init__(self, *cards: Card, missing: Sequence[str] = ()) -> None:
        self.cards = cards
        self.missing = frozenset(missing)

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("nvml") and name in object.__getattribute__(self, "missing"):
            raise AttributeError(name)
        found = object.__getattribute__(self, name)
        if not name.startswith("nvmlDevice"):
            return found

        def refuse_or_answer(*args: Any) -> Any:
            if args and isinstance(args[0], Card) and name in args[0].errors:
                raise NVMLError(args[0].errors[name])
            return found(*args)

        return refuse_or_answer

    def nvmlInit(self) -> None:
        """The driver answers."""

    def nvmlDeviceGetCount(self) -> int:
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Card:
        card = self.cards[index]
        if "nvmlDeviceGetHandleByIndex" in card.errors:
            raise NVMLError(card.errors["nvmlDeviceGetHandleByIndex"])
        return card

    def nvmlDeviceGetName(self, card: Card) -> str | bytes:
        return card.name

    def nvmlDeviceGetUUID(self, card: Card) -> str:
        return card.uuid

    def nvmlDeviceGetMemoryInfo(self, card: Card) -> Any:
        return SimpleNamespace(total=card.total, free=card.free, used=card.total - card.free)

    def nvmlDeviceGetComputeRunningProcesses(self, card: Card) -> list[Any]:
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in card.compute]

    def nvmlDeviceGetGraphicsRunningProcesses(self, card: Card) -> list[Any]:
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in card.graphics]

    def nvmlDeviceGetProcessUtilization(self, card: Card, since: int) -> list[Any]:
        found = [sample for sample in card.samples if sample[1] > since]
        if not found:
            raise NVMLError(card.no_samples)
        return [SimpleNamespace(pid=pid, timeStamp=at, smUtil=used) for pid, at, used in found]

    def nvmlDeviceGetTemperature(self, _card: Card, sensor: int) -> int:
        assert sensor == 0
        return 61

    def nvmlDeviceGetPowerUsage(self, _card: Card) -> int:
        return 120_500

    def nvmlDeviceGetPowerManagementLimit(self, card: Card) -> int:
        return card.limit_mw

    def nvmlDeviceGetPowerManagementDefaultLimit(self, _card: Card) -> int:
        return 450_000

    def nvmlDeviceGetClockInfo(self, _card: Card, clock: int) -> int:
        return {1: 1980}[clock]

    def nvmlDeviceGetMaxClockInfo(self, _card: Card, clock: int) -> int:
        return {1: 2520}[clock]

    def nvmlDeviceGetCurrentClocksEventReasons(self, card: Card) -> int:
        return card.reasons

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, card: Card) -> int:
        return card.reasons

    def nvmlDeviceGetTotalEnergyConsumption(self, card: Card) -> int:
        return card.energy_mj

    def nvmlDeviceGetMigMode(self, card: Card) -> list[int]:
        return [int(card.instances is not None)] * 2

    def nvmlDeviceGetMaxMigDeviceCount(self, _card: Card) -> int:
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, card: Card, index: int) -> Card:
        instances = card.instances or []
        if index >= len(instances) or instances[index] is None:
            raise NVMLError(NOT_FOUND)
        return instances[index]


class AmdSmiException(Exception):
    """What amdsmi raises."""


class FakeAmdSmi:
    """The module `amdsmi` with one GPU; `answers` replace or remove (``None``) what a function returns."""

    AmdSmiException = AmdSmiException
    AmdSmiTemperatureType = SimpleNamespace(EDGE=0, HOTSPOT=1, JUNCTION=1)
    AmdSmiTemperatureMetric = SimpleNamespace(CURRENT=0)
    AmdSmiClkType = SimpleNamespace(GFX=0)

    def __init__(self, **answers: Any) -> None:
        self.answers = {
            "amdsmi_get_processor_handles": ["card"],
            "amdsmi_get_gpu_asic_info": {"market_name": "AMD Radeon RX 7900 XTX", "vendor_id": 0x1002},
            "amdsmi_get_gpu_vram_usage": {"vram_total": 24560, "vram_used": 6144},
            "amdsmi_get_power_info": {
                "socket_power": "N/A", "current_socket_power": "N/A", "average_socket_power": 98, "power_limit": 327000000,
            },
            "amdsmi_get_power_cap_info": {"power_cap": 327000000, "default_power_cap": 339000000, "max_power_cap": 0},
            "amdsmi_get_clock_info": {"clk": 2304, "min_clk": 500, "max_clk": 2526},
            "amdsmi_get_temp_metric": 54,
            "amdsmi_get_gpu_metrics_info": {"throttle_status": 0, "indep_throttle_status": 0},
            "amdsmi_get_energy_count": {
                "energy_accumulator": 1_000_000, "counter_resolution": 15.3, "timestamp": 0,
            },
            "amdsmi_get_gpu_process_list": [
                {
                    "name": "game", "pid": 77, "mem": 6 * GIB, "engine_usage": {"gfx": 123, "enc": 0},
                    "memory_usage": {"gtt_mem": 0, "cpu_mem": 0, "vram_mem": 6 * GIB},
                },
            ],
        } | answers  # fmt: skip

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("amdsmi_") or self.answers.get(name) is None:
            raise AttributeError(name)

        def answer(*_args: Any) -> Any:
            told = self.answers[name]
            if isinstance(told, Exception):
                raise told
            return told

        return answer
