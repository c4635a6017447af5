"""What drivers and their libraries tell of GPUs, at one moment and over a window. What none of them tells is ``None``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

__all__ = ["HEAT", "GpuReading", "GpuSource", "GpuUse"]

HEAT = "heat"
"""The word in `GpuReading.slowed` for clocks that are low because of the temperature."""


@dataclass(frozen=True, slots=True)
class GpuReading:
    """One GPU, or one MIG instance of it, at one moment.

    Attributes:
        name: The maker's.
        total_bytes: Its own memory; `free_bytes` is the free part.
        processes: Memory of each process on it by pid; ``None`` for a process whose memory is not told. In a container the numbers
            are often those of the host.
        temperature_c: Degrees Celsius.
        power_w: Power now; `power_limit_w` is the limit that is set, `power_limit_default_w` the maker's.
        clock_mhz: Of the cores now; `clock_max_mhz` is the highest.
        slowed: Why its clocks are lower than they could be: `HEAT`, ``power brake``, ``hardware``. A limit of power, which many GPUs
            reach under every load, is not one of them.
        is_instance: True for a part of a divided GPU (MIG).
    """

    name: str
    total_bytes: int | None = None
    free_bytes: int | None = None
    processes: Mapping[int, int | None] | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    power_limit_default_w: float | None = None
    clock_mhz: float | None = None
    clock_max_mhz: float | None = None
    slowed: tuple[str, ...] | None = None
    is_instance: bool = False

    def held_bytes(self, own_pids: frozenset[int] = frozenset()) -> int | None:
        """Memory that other processes hold.

        If the driver does not tell every process's memory, as to a user without the right to ask: all memory in use.
        """
        if self.processes is not None:
            others = [held for pid, held in self.processes.items() if pid not in own_pids]
            known = [held for held in others if held is not None]
            if len(known) == len(others):
                return sum(known)
        if self.total_bytes is None or self.free_bytes is None:
            return None
        return self.total_bytes - self.free_bytes

    def to_json(self) -> dict[str, Any]:
        """All fields but the processes: their number, and the memory that they hold."""
        return {
            "name": self.name,
            "total_bytes": self.total_bytes,
            "free_bytes": self.free_bytes,
            "held_bytes": self.held_bytes(),
            "processes": None if self.processes is None else len(self.processes),
            "temperature_c": self.temperature_c,
            "power_w": self.power_w,
            "power_limit_w": self.power_limit_w,
            "power_limit_default_w": self.power_limit_default_w,
            "clock_mhz": self.clock_mhz,
            "clock_max_mhz": self.clock_max_mhz,
            "slowed": None if self.slowed is None else list(self.slowed),
        }


@dataclass(frozen=True, slots=True)
class GpuUse:
    """The GPUs over one window.

    Attributes:
        other_load: Share of the busiest GPU that other processes used.
        other_memory_bytes: Memory of other processes on all GPUs.
        heat: Whether heat slowed a GPU at the end of the window.
        power_limit_w: The power limits that are set, all GPUs together.
    """

    other_load: float | None = None
    other_memory_bytes: int | None = None
    heat: bool | None = None
    power_limit_w: float | None = None


class GpuSource(Protocol):
    """One maker's library or system interface."""

    def readings(self) -> tuple[GpuReading, ...]:
        """Every GPU now."""

    def energies_j(self) -> tuple[float | None, ...]:
        """The energy counter of every GPU in joules, from an arbitrary zero; ``None`` for a GPU without one."""

    def start(self) -> None:
        """Start a window."""

    def finish(self, own_pids: frozenset[int], *, at_rest: bool = False) -> GpuUse | None:
        """End the window.

        Args:
            own_pids: Processes that do not count as others.
            at_rest: True if none of our processes computed in the window.

        Returns:
            ``None`` if no GPU lists any of our processes, unless they were at rest: they do not compute there, or this is a
            container, where the driver reports other process numbers.
        """
